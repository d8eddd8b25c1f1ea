"""Cheap convolutions that start as nearly as they can what the full ones of a student with trained weights are.

The product of a block's convolutions is one kernel W (C_out, C_in, k, k) of a certain form. It starts as the teacher's
in that form (``factors``), and norms and activations in between so that they change it little (``start_as``).
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..pipelines.cheap import CheapConv2d

SHIFT = 2.0
"""Standard deviations by which what enters an activation is moved to the side where that is nearly a straight line."""
SHIFT_BEFORE_PADDING = 1.0
"""The same in front of a k x k, whose padding has zeros in the place of what was moved: more shift is more error at the
border, less is more in the middle, and on maps of 16 pixels with ReLU the sum is least about here."""


def cheap_start(full: nn.Module, student: nn.Module) -> None:
    """Give a student what the same student with full convolutions has, and its cheap ones what comes near to these."""
    state, given = student.state_dict(), full.state_dict()
    student.load_state_dict({**state, **{name: value for name, value in given.items() if name in state}})
    for name, block in student.named_modules():
        if isinstance(block, CheapConv2d):
            start_as(block, cast(nn.Conv2d, full.get_submodule(name)))


def factors(weight: Tensor, inner: int, groups: int, bottleneck: bool) -> tuple[Tensor | None, Tensor, Tensor]:
    """-> (down (M, C_in) or None, kernel (M, M / g, k, k), up (C_out, M)): a kernel as a product, by truncated SVDs.

    Without a bottleneck M is C_in: the part of ``weight`` that reads the channels of one group, a matrix of C_out rows,
    is replaced by its best approximation of rank M / g. These parts have no weight in common, so that the whole is the
    best product of a grouped convolution and a 1x1 (least squares of the weights, Eckart and Young), and equal to
    ``weight`` where every part has that rank: of a depthwise kernel rank 1.

    With one, ``down`` is an orthonormal basis of the M input directions with most of ``weight`` in them (its singular
    vectors over input channels), dealt out to the groups by turns, and what it leaves is treated as above: the best
    for this ``down``. That is the sequentially truncated higher-order SVD (Vannieuwenhoven et al. 2012): equal to
    ``weight`` where without groups both its ranks, over input and over output channels, are M at most; the best where
    C_in is M at most; else its error is at most sqrt(2) times the least. With groups there is no such bound.
    """
    size, down, core = weight.shape[-2:], None, weight
    if bottleneck:
        flat = weight.transpose(0, 1).flatten(1)  # (C_in, C_out * k * k)
        down = torch.linalg.svd(flat, full_matrices=False)[0].T[:inner]
        down = F.pad(down, (0, 0, 0, inner - len(down)))  # no more directions than input channels
        down = down.unflatten(0, (-1, groups)).transpose(0, 1).flatten(0, 1)
        core = torch.einsum("oikl,mi->omkl", weight, down)
    width = inner // groups
    parts = core.unflatten(1, (groups, width)).transpose(0, 1).flatten(2)  # (g, C_out, M / g * k * k)
    left, values, right = torch.linalg.svd(parts, full_matrices=False)
    missing = max(0, width - values.shape[1])  # fewer output channels than a group has
    up = F.pad((left * values.unsqueeze(1))[:, :, :width], (0, missing))
    kernel = F.pad(right[:, :width], (0, 0, 0, missing))
    return down, kernel.flatten(0, 1).unflatten(1, (width, *size)), up.transpose(0, 1).flatten(1)


@torch.no_grad()
def start_as(block: CheapConv2d, conv: nn.Conv2d) -> None:
    """Give a cheap block values with which it does nearly what ``conv`` does.

    What is not exact beside ``factors`` is what norms and activations do in between. A norm divides by a spread and
    takes away a mean that no weight knows, so both are estimated: as if the channels that the block reads were
    independent, and each an activation of standard normal values. The next layer multiplies by that spread again, and
    the activation gets its input moved to where it is close to a straight line, which the next layer undoes. What is
    constant is taken off by the last bias; without one it stays, as a constant for each channel, which the norm of a
    classifier that reads the sum takes off once its statistics are those of the student.
    """
    weight = conv.weight.detach().float()
    if block.up is None:
        inner_conv = cast(nn.Conv2d, block.conv)
        inner_conv.weight.copy_(weight[:, :, ::2, ::2] if inner_conv.kernel_size == (2, 2) else weight)
        if conv.bias is not None:
            cast(Tensor, inner_conv.bias).copy_(conv.bias)
        return
    kernel_layer, up_layer = cast(nn.Conv2d, block.conv), cast(nn.Conv2d, block.up)
    down, kernel, up = factors(weight, kernel_layer.in_channels, kernel_layer.groups, block.down is not None)
    up_layer.weight.copy_(up[:, :, None, None])
    fill = kernel.flatten(1).norm(dim=1) < 1e-6  # nothing to start from: such a channel stays random, and unread
    kernel[fill] = kernel_layer.weight[fill].float()
    mean, spread = _moments(block.activation, 0.0)[1:]
    offset = torch.zeros(len(up))
    if block.down is not None and down is not None:
        first = cast(nn.Conv2d, block.down)
        fill = down.norm(dim=1) < 1e-6
        down[fill] = first.weight[fill, :, 0, 0].float()
        first.weight.copy_(down[:, :, None, None])
        means, spreads = mean * down.sum(1), spread * down.norm(dim=1)
        _settle(block.down_norm, means, spreads, SHIFT_BEFORE_PADDING)
        slope, centre, width = _moments(block.activation, SHIFT_BEFORE_PADDING)
        per_group = (len(kernel_layer.weight) // kernel_layer.groups, kernel_layer.groups)
        of_inputs = [value.view(per_group[1], -1).repeat_interleave(per_group[0], 0) for value in (means, spreads)]
        offset = up @ (kernel.sum((2, 3)) * of_inputs[0]).sum(1)
        kernel = kernel * (of_inputs[1] / slope)[:, :, None, None]
        mean, spread = centre, width
    kernel_layer.weight.copy_(kernel)
    means, spreads = mean * kernel.sum((1, 2, 3)), spread * kernel.flatten(1).norm(dim=1)
    _settle(block.conv_norm, means, spreads, SHIFT)
    slope, centre, _ = _moments(block.activation, SHIFT)
    up_layer.weight.copy_((up * spreads / slope)[:, :, None, None])
    if block.down is None:
        offset = up @ means
    if up_layer.bias is not None:
        bias = offset - centre * (up * spreads / slope).sum(1)
        up_layer.bias.copy_(bias if conv.bias is None else bias + conv.bias)


def _settle(norm: nn.Module, means: Tensor, spreads: Tensor, shift: float) -> None:
    """Make ``norm`` give each channel the mean ``shift`` and the spread 1, if its input has these, (C,) each."""
    spreads = spreads.clamp_min(1e-6)
    if isinstance(norm, nn.BatchNorm2d):
        cast(Tensor, norm.running_mean).copy_(means)
        cast(Tensor, norm.running_var).copy_(spreads.square())
        norm.weight.fill_(1.0)
        norm.bias.fill_(shift)
        return
    assert isinstance(norm, nn.GroupNorm)
    by_group = means.view(norm.num_groups, -1), spreads.view(norm.num_groups, -1)
    centre = by_group[0].mean(1, keepdim=True)
    whole = (by_group[1].square() + (by_group[0] - centre).square()).mean(1, keepdim=True).sqrt()
    norm.weight.copy_((whole / by_group[1]).flatten())
    norm.bias.copy_((shift - (by_group[0] - centre) / by_group[1]).flatten())


def _moments(activation: nn.Module, shift: float) -> tuple[float, float, float]:
    """Of ``activation(n + shift)``, n standard normal: the slope of the straight line in n that is nearest to it, the
    mean, and the standard deviation."""
    n = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = torch.exp(-n.square() / 2) / math.sqrt(2 * math.pi) * (n[1] - n[0])
    made = activation(n + shift)
    mean = float((made * density).sum())
    return float((made * n * density).sum()), mean, math.sqrt(float((made.square() * density).sum()) - mean**2)
