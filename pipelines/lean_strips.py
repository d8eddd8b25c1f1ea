"""A convolution's input and output a few rows at a time, so that what is computed from a map never exists whole.

Shapes are (B, C, H, W); a strip is the rows ``first`` to ``last`` (excluded) of a map. Imports torch only: this file
travels inside student folders.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Read = Callable[[int, int], Tensor]
"""(first, last) -> those rows of a map, (B, C, last - first, W). The map itself need not exist."""

Moments = tuple[Tensor, Tensor, int]
"""Mean and variance over the positions of each channel, (B, C) float32, and how many positions."""


@dataclass(frozen=True)
class Workspace:
    """Bytes that a strip may take: of maps with at least ``height`` rows, where the peak is, and of smaller ones."""

    height: int
    at_height: int
    below: int

    def of(self, height: int) -> int:
        return self.at_height if height >= self.height else self.below


def strips(height: int, row_bytes: int, workspace: Workspace) -> list[tuple[int, int]]:
    """Split ``height`` rows evenly, so that a strip and the two rows around it fit into the workspace.

    A strip has at least two rows, since each costs reading two more: where even that is too large, the workspace is
    exceeded.
    """
    size = workspace.of(height)
    if height * row_bytes <= size:
        return [(0, height)]
    rows = max(2, size // row_bytes - 2)
    rows = math.ceil(height / math.ceil(height / rows))
    return [(first, min(first + rows, height)) for first in range(0, height, rows)]


def is_plain(conv: nn.Module) -> bool:
    """Whether ``conv_rows`` can run it: a 1x1 or 3x3 convolution that keeps the resolution."""
    return (
        type(conv) is nn.Conv2d
        and (conv.kernel_size, conv.padding) in (((1, 1), (0, 0)), ((3, 3), (1, 1)))
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
    )


def conv_rows(conv: nn.Conv2d, read: Read, first: int, last: int, height: int) -> Tensor:
    """Rows ``first`` to ``last`` of ``conv(map)``, (B, C_out, last - first, W), for the map that ``read`` gives."""
    halo, sides = conv.padding
    top, bottom = max(first - halo, 0), min(last + halo, height)
    at_edge = top == 0 or bottom == height  # pad with zero rows on both sides, and drop the side that is no edge
    padding = (halo if at_edge else 0, sides)
    rows = F.conv2d(read(top, bottom), conv.weight, conv.bias, padding=padding, groups=conv.groups)
    start = first - top if at_edge else 0
    return rows[:, :, start : start + last - first]


def conv_by_strips(
    conv: nn.Conv2d,
    read: Read,
    height: int,
    row_bytes: int,
    workspace: Workspace,
    finish: Callable[[Tensor, int, int], Tensor] = lambda rows, first, last: rows,
    onto: Tensor | None = None,
) -> Tensor:
    """``finish(conv(map))``, (B, C_out, H, W), of the map that ``read`` gives, in one strip or several.

    Args:
        finish: (rows, first, last) -> what to write; it may change ``rows`` in place.
        onto: memory for the result, which may overlap what ``finish`` reads of the same rows, not what ``read``
            reads. Not used, and another tensor returned, when one strip holds all.
    """
    out = onto
    for first, last in strips(height, row_bytes, workspace):
        rows = finish(conv_rows(conv, read, first, last, height), first, last)
        if last - first == height:
            return rows
        if out is None:
            out = rows.new_empty(*rows.shape[:2], height, rows.shape[3])
        out[:, :, first:last] = rows
        del rows  # before the next strip is made
    assert out is not None
    return out


def moments(x: Tensor, workspace: Workspace) -> Moments:
    """Of each channel of a map or a strip, in float32 whatever its dtype, as many channels at a time as there is room.

    Centred before squaring, so that nothing cancels; ``torch.var_mean`` is some 20x slower on a CPU.
    """
    positions = x.shape[2] * x.shape[3]
    channels = max(1, workspace.of(x.shape[2]) // (4 * len(x) * positions))
    means, variances = [], []
    for part in x.split(channels, 1):
        exact = part.float()
        mean = exact.mean((2, 3), keepdim=True)
        centred = exact - mean if exact is part else exact.sub_(mean)
        means.append(mean[:, :, 0, 0])
        variances.append(torch.linalg.vector_norm(centred, dim=(2, 3)).square_().div_(positions))
        del exact, centred
    return torch.cat(means, 1), torch.cat(variances, 1), positions


def pooled(parts: Iterator[Moments]) -> Moments:
    """The moments of a map from those of its strips (Chan et al. 1979: no sum of squares, so nothing cancels)."""
    means, variances, counts = zip(*parts, strict=True)
    shares = [count / sum(counts) for count in counts]  # numbers, not a tensor: nothing is to be copied to a device
    mean = sum(share * each for share, each in zip(shares, means, strict=True))
    rows = zip(shares, means, variances, strict=True)
    variance = sum(share * (each + (centre - mean) ** 2) for share, centre, each in rows)
    return mean, variance, sum(counts)


def group_affine(norm: nn.GroupNorm, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """A group norm of a map with these moments as ``x * scale + shift``; both (B, C, 1, 1) float32."""
    groups = (len(mean), norm.num_groups, -1)
    spread, centre = torch.var_mean(mean.view(groups), dim=2, correction=0, keepdim=True)
    rstd = torch.rsqrt(variance.view(groups).mean(2, keepdim=True) + spread + norm.eps)
    size = (*groups[:2], mean.shape[1] // norm.num_groups)
    scale, shift = (value.expand(size).reshape(mean.shape) for value in (rstd, -centre * rstd))
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    return scale[:, :, None, None], shift[:, :, None, None]


def plain(maps: list[Tensor]) -> Read:
    """Reads maps that stand for their concatenation over channels. Emptying the list frees them."""

    def read(first: int, last: int) -> Tensor:
        rows = [x[:, :, first:last] for x in maps]
        return torch.cat(rows, 1) if len(rows) > 1 else rows[0]

    return read


def normalised(maps: list[Tensor], scale: Tensor, shift: Tensor, activation: nn.Module | None = None) -> Read:
    """Reads ``activation(x * scale + shift)`` of maps as in ``plain``; scale and shift (B, C, 1, 1)."""
    channels = [x.shape[1] for x in maps]
    affines = list(zip(scale.split(channels, 1), shift.split(channels, 1), strict=True))

    def read(first: int, last: int) -> Tensor:
        some = maps[0]
        out = some.new_empty(len(some), sum(channels), last - first, some.shape[3])
        for x, here, (scale, shift) in zip(maps, out.split(channels, 1), affines, strict=True):
            if x.dtype == scale.dtype:
                torch.mul(x[:, :, first:last], scale, out=here).add_(shift)
            else:  # half precision: normalised in float32, then rounded once
                here.copy_(torch.addcmul(shift, x[:, :, first:last], scale))
        if type(activation) is nn.SiLU:
            return F.silu(out, inplace=True)
        return activation(out) if activation is not None else out

    return read
