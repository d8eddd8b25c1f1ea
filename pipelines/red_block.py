"""RED (residual encoded distillation) block, and the wrapper that puts one on each side of a layer.

Source: Chen et al., "ReDistill: Residual Encoded Distillation for Peak Memory Reduction of CNNs",
TMLR 2025, arXiv 2406.03744. Imports torch only: this file travels inside student folders.
"""

import torch
from torch import nn

# Identity-like start: gate = sigmoid(4) = 0.982, residual = relu6(0.01) = 0.01. Both sit where their
# gradient is alive (relu6 has none at exactly 0, sigmoid next to none past 6).
IDENTITY_GATE_BIAS = 4.0
IDENTITY_RESIDUAL_BIAS = 0.01

RED_NORMS = ("batch", "group")
RED_STARTS = ("paper", "identity")


class REDBlock(nn.Module):
    """``y = x * gate(x) + residual(x)``; (B, C, H, W) -> (B, C, H, W).

    gate(x) = sigmoid(norm(conv1x1(x))) and residual(x) = relu6(norm(conv3x3(x))).

    Args:
        channels: C.
        norm: "batch" (the paper's) or "group" (independent of the batch; 8 groups where they divide C).
        start: "paper" (PyTorch's default initialisation) or "identity" (y is close to x at the start,
            which a student that is warm started from its teacher needs).

    Raises:
        ValueError: an unknown norm or start.
    """

    def __init__(self, channels: int, norm: str = "batch", start: str = "paper"):
        super().__init__()
        if start not in RED_STARTS:
            raise ValueError(f"unknown RED start {start!r}: expected one of {', '.join(RED_STARTS)}")
        # No bias before a norm: the norm's own shift does its work.
        self.gate_conv = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
        self.gate_norm = _norm(norm, channels)
        self.residual_conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.residual_norm = _norm(norm, channels)
        if start == "identity":
            for layer, bias in (
                (self.gate_norm, IDENTITY_GATE_BIAS),
                (self.residual_norm, IDENTITY_RESIDUAL_BIAS),
            ):
                nn.init.zeros_(layer.weight)
                nn.init.constant_(layer.bias, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # In place where gradients allow it: a map less at the peak, and a pass over memory less, for each.
        gate = self.gate_norm(self.gate_conv(x)).sigmoid_()
        residual = nn.functional.relu6(self.residual_norm(self.residual_conv(x)), inplace=True)
        return torch.addcmul(residual, x, gate) if torch.is_grad_enabled() else residual.addcmul_(x, gate)


def fold_batch_norms(network: nn.Module) -> None:
    """Fold the BatchNorms of a network's RED blocks into their convolutions: the same outputs to rounding.

    For inference; in place and not to be undone: the network no longer loads into its class, so save it before.

    Raises:
        RuntimeError: the network is in training mode, where BatchNorm does not use its running statistics.
    """
    if network.training:
        raise RuntimeError("fold_batch_norms is for inference: call eval() first")
    for block in network.modules():
        for branch in ("gate", "residual"):
            norm = getattr(block, f"{branch}_norm", None)
            if isinstance(block, REDBlock) and isinstance(norm, nn.BatchNorm2d):
                conv = nn.utils.fuse_conv_bn_eval(getattr(block, f"{branch}_conv"), norm)
                setattr(block, f"{branch}_conv", conv)
                setattr(block, f"{branch}_norm", nn.Identity())


class RedAround(nn.Module):
    """A layer with a RED block before and/or after it; takes and passes on the layer's own arguments."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.red_in: nn.Module = nn.Identity()
        self.layer = layer
        self.red_out: nn.Module = nn.Identity()

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return self.red_out(self.layer(self.red_in(x), *args, **kwargs))


class TokensAround(RedAround):
    """A block of a transformer, the tokens behind which are laid out as a map for a RED block; those in front of them
    (class, registers) pass by it.

    Args:
        layer: tokens (B, prefix + side * side, C) -> the same.
        prefix: tokens that are none of the map.
        side: of the map, (B, C, side, side), row by row.
    """

    def __init__(self, layer: nn.Module, prefix: int, side: int):
        super().__init__(layer)
        self.prefix, self.side = prefix, side

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        tokens = self.layer(x, *args, **kwargs)
        passing, laid_out = tokens[:, : self.prefix], tokens[:, self.prefix :]
        feature_map = self.red_out(laid_out.transpose(1, 2).unflatten(2, (self.side, self.side)))
        return torch.cat((passing, feature_map.flatten(2).transpose(1, 2)), dim=1)


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(8 if channels % 8 == 0 else 1, channels)
    raise ValueError(f"unknown RED norm {kind!r}: expected one of {', '.join(RED_NORMS)}")
