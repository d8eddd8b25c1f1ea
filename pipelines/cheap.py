"""Cheap convolutions: what stands in the place of a 3x3 convolution of a residual block, with fewer weights.

Source: Crowley, Gray and Storkey, "Moonshine: Distilling with Cheap Convolutions", NeurIPS 2018, arXiv 1711.02613, with
the names of its authors' code. Imports torch only: this file travels inside student folders.
"""

import math
import re
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

_NUMBER = r"\d{1,5}"
_SPELLINGS = tuple(
    re.compile(spelling.replace("#", _NUMBER))
    for spelling in (
        # the authors' code: DConvG8 has groups of 8 channels, DConvA8 has 8 groups
        r"DConvG(?P<group_size>#)",
        r"DConvA(?P<groups>#)",
        r"ConvB(?P<bottleneck>#)",
        r"G(?P<group_size>#)B(?P<bottleneck>#)",
        r"A(?P<groups>#)B(?P<bottleneck>#)",
        # the paper: N channels, or M behind the bottleneck
        r"G\((?P<groups>#)\)",
        r"G\(N/(?P<group_size>#)\)",
        r"B\((?P<bottleneck>#)\)",
        r"BG\((?P<bottleneck>#),(?P<groups>#)\)",
        r"BG\((?P<bottleneck>#),M/(?P<group_size>#)\)",
    )
)
SPELLED = "S, Conv2x2, DConv, DConvG8, DConvA4, ConvB2, G8B2, A4B2, DConvB4 or the paper's G(4), B(2), BG(2,4)"


@dataclass(frozen=True, kw_only=True)
class CheapKind:
    """Which cheap convolution it is, of N_in to N_out channels; with no argument the full one.

    Args:
        bottleneck: 1, or b: 1x1 to N_out / b channels, k x k, 1x1 to N_out, with a norm and an activation between.
        group_size, groups: of the k x k, the channels of each group, or how many groups; 0 of both for none. Without a
            bottleneck the k x k keeps N_in channels, and behind norm and activation a 1x1 makes N_out.
        corners: the four corners of the 3x3 alone, a 2x2 kernel of dilation 2.
    """

    bottleneck: int = 1
    group_size: int = 0
    groups: int = 0
    corners: bool = False

    def __str__(self) -> str:
        if self.corners:
            return "Conv2x2"
        grouped = f"G{self.group_size}" * (self.group_size > 1) + f"A{self.groups}" * (self.groups > 0)
        if self.bottleneck == 1:
            return f"DConv{grouped}" if self.group_size or self.groups else "S"
        return f"{grouped or ('DConv' if self.group_size else 'Conv')}B{self.bottleneck}"

    @property
    def is_full(self) -> bool:
        """Is it the convolution as it was?"""
        return self == CheapKind()

    def sizes(self, in_channels: int, out_channels: int) -> tuple[int, int]:
        """Channels and groups of its k x k. Raises ValueError where they do not divide."""
        if out_channels % self.bottleneck:
            raise ValueError(f"{self}: {out_channels} channels are not divided by {self.bottleneck}")
        inner = out_channels // self.bottleneck if self.bottleneck > 1 else in_channels
        groups = inner // self.group_size if self.group_size else self.groups or 1
        if self.group_size and inner % self.group_size:
            raise ValueError(f"{self}: {inner} channels are not divided into groups of {self.group_size}")
        if inner % groups:
            raise ValueError(f"{self}: {inner} channels are not divided into {groups} groups")
        return inner, groups


def parse_kind(text: str) -> CheapKind:
    """A kind by the name that the authors' code has for it, or the paper; ``str`` of it is the former. Raises
    ValueError of a text that is none."""
    plain = text.replace(" ", "")
    if plain in ("S", "Conv"):
        return CheapKind()
    if plain == "Conv2x2":
        return CheapKind(corners=True)
    depthwise = {"DConv": "DConvG1", "G(N)": "G(N/1)"}.get(plain, plain)
    depthwise = re.sub(r"^DConvB", "G1B", re.sub(r",M\)$", ",M/1)", depthwise))
    for spelling in _SPELLINGS:
        found = spelling.fullmatch(depthwise)
        if found:
            numbers = {name: int(number) for name, number in found.groupdict().items()}
            if min(numbers.values()) < 1 or numbers.get("bottleneck") == 1:
                raise ValueError(f"{text} has a number that is too small: groups are from 1, a bottleneck from 2 on")
            return CheapKind(**numbers)
    raise ValueError(f"{text[:40]!r} is no convolution that is known: give {SPELLED}")


class CheapConv2d(nn.Module):
    """(B, C_in, H, W) -> (B, C_out, H / stride, W / stride), in the place of a convolution of a residual block.

    ``down``, ``conv`` and ``up`` are its convolutions, with ``down_norm`` and ``conv_norm`` and an activation behind
    the first two; ``down`` is only in a bottleneck, ``up`` and the norms not where ``conv`` is alone.

    Args:
        kernel, stride, padding: of the convolution that it stands for, a side.
        bias: of its last convolution; the others have a norm behind them, whose shift does its work.
        norm: "batch", with ReLU, as in the paper; "group" (8 groups where they divide the channels), with SiLU.

    Raises:
        ValueError: the channels do not divide as the kind needs it, or an unknown norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kind: CheapKind,
        *,
        kernel: int = 3,
        stride: int = 1,
        padding: int = 1,
        bias: bool = False,
        norm: str = "batch",
    ):
        super().__init__()
        if norm not in ("batch", "group"):
            raise ValueError(f"unknown norm {norm!r} of a cheap convolution: expected batch or group")
        inner, groups = kind.sizes(in_channels, out_channels)
        self.down: nn.Module | None = None
        self.up: nn.Module | None = None
        alone = kind.is_full or kind.corners
        size, dilation = (2, kernel - 1) if kind.corners else (kernel, 1)
        if kind.bottleneck > 1:
            self.down = nn.Conv2d(in_channels, inner, 1, bias=False)
            self.down_norm = _norm_of(norm, inner)
        self.conv = nn.Conv2d(
            inner,
            out_channels if alone else inner,
            size,
            stride,
            padding,
            dilation=dilation,
            groups=groups,
            bias=bias and alone,
        )
        if not alone:
            self.conv_norm = _norm_of(norm, inner)
            self.up = nn.Conv2d(inner, out_channels, 1, bias=bias)
            self.activation: nn.Module = nn.ReLU() if norm == "batch" else nn.SiLU()
        for module in self.modules():  # as the authors' networks start
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, math.sqrt(2 / (module.out_channels * math.prod(module.kernel_size))))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.down is not None:
            x = self._activated(self.down_norm(self.down(x)))
        x = self.conv(x)
        return x if self.up is None else self.up(self._activated(self.conv_norm(x)))

    def _activated(self, x: torch.Tensor) -> torch.Tensor:
        # In place where gradients allow it: a map less at the peak.
        if isinstance(self.activation, nn.ReLU):
            return F.relu(x, inplace=True)
        return F.silu(x, inplace=not torch.is_grad_enabled())


def _norm_of(kind: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(8 if channels % 8 == 0 else 1, channels)
