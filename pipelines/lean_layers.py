"""Lean execution of the layers of a UNet: each function is the ``forward`` of one layer class, with less live memory.

All share one signature. ``maps`` is a list, ``[x]`` or ``[x, skip]`` (which stand for their concatenation over
channels), and the layer empties it as soon as nothing reads it any more: a tensor passed by itself would live until
the call returns. ``keep`` says that somebody else still needs the maps, so that they are not written over.
``workspace`` says how large a strip may be.
"""

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F

from .lean_strips import (
    Read,
    Workspace,
    conv_by_strips,
    conv_rows,
    group_affine,
    is_plain,
    moments,
    normalised,
    plain,
    pooled,
    strips,
)
from .red_block import RedAround, REDBlock


def lean_resnet(
    block: ResnetBlock2D, maps: list[Tensor], workspace: Workspace, temb: Tensor | None = None, keep: bool = False
) -> Tensor:
    """(B, C_in, H, W) -> (B, C_out, H, W). Concatenation, norm and activation exist as strips only.

    The shortcut is written over one of the maps, and the second convolution is added onto it. A resnet that
    resamples, or whose convolutions are not 3x3, runs as it is.
    """
    if block.upsample or block.downsample or not (is_plain(block.conv1) and is_plain(block.conv2)):
        return _as_it_is(block, maps, temb)
    height = maps[0].shape[2]
    row = _row_bytes(maps[0])

    time_scale = time_shift = None
    if block.time_emb_proj is not None:
        projected = block.time_emb_proj(temb if block.skip_time_act else block.nonlinearity(temb))[:, :, None, None]
        if block.time_embedding_norm == "scale_shift":
            time_scale, time_shift = projected.chunk(2, 1)
        else:
            time_shift = projected

    def add_time(rows: Tensor, first: int, last: int) -> Tensor:
        return rows if time_shift is None or time_scale is not None else rows.add_(time_shift)

    mean, variance = (torch.cat(values, 1) for values in zip(*(moments(x, workspace)[:2] for x in maps), strict=True))
    hidden = conv_by_strips(
        block.conv1,
        normalised(maps, *group_affine(block.norm1, mean, variance), block.nonlinearity),
        height,
        row * (block.conv1.in_channels + block.conv1.out_channels),
        workspace,
        finish=add_time,
    )

    residual = maps[0]
    if block.conv_shortcut is not None:
        channels = block.conv_shortcut.out_channels
        onto = None if keep else next((x for x in maps if x.shape[1] == channels), None)
        residual = conv_by_strips(
            block.conv_shortcut, plain(maps), height, row * (block.in_channels + channels), workspace, onto=onto
        )
        keep = onto = None
    maps.clear()

    scale, shift = group_affine(block.norm2, *moments(hidden, workspace)[:2])
    if time_scale is not None:
        scale, shift = scale * (1 + time_scale), shift * (1 + time_scale) + time_shift

    def add_residual(rows: Tensor, first: int, last: int) -> Tensor:
        rows.add_(residual[:, :, first:last])
        return rows if block.output_scale_factor == 1 else rows.div_(block.output_scale_factor)

    return conv_by_strips(
        block.conv2,
        normalised([hidden], scale, shift, block.nonlinearity),
        height,
        row * (block.conv2.in_channels + block.conv2.out_channels),
        workspace,
        finish=add_residual,
        onto=None if keep else residual,
    )


def lean_attention(
    attention: Attention, maps: list[Tensor], workspace: Workspace, temb: Tensor | None = None, keep: bool = False
) -> Tensor:
    """Self-attention over positions, (B, C, H, W) -> the same: keys and values whole, queries a strip at a time.

    Neither the score matrix nor the normalised map exists. With another processor than diffusers' default, or
    options that ``UNet2DModel`` does not set, it runs as it is.
    """
    default = type(attention.processor) in (AttnProcessor, AttnProcessor2_0) and not attention.is_cross_attention
    if not default or attention.group_norm is None or attention.spatial_norm is not None or attention.norm_q:
        return _as_it_is(attention, maps)
    x = maps.pop()
    batch, _, height, width = x.shape
    read = normalised([x], *group_affine(attention.group_norm, *moments(x, workspace)[:2]))
    spans = strips(height, _row_bytes(x) * 4 * x.shape[1], workspace)

    def tokens(first: int, last: int) -> Tensor:
        return read(first, last).flatten(2).transpose(1, 2)

    def heads(projected: Tensor) -> Tensor:
        return projected.unflatten(2, (attention.heads, -1)).transpose(1, 2)

    shape = (batch, height * width, attention.to_k.out_features)
    key, value = x.new_empty(shape), x.new_empty(shape)
    for first, last in spans:
        normal = tokens(first, last)
        key[:, first * width : last * width] = attention.to_k(normal)
        value[:, first * width : last * width] = attention.to_v(normal)
    del normal
    out = torch.empty_like(x) if keep else x
    for first, last in spans:
        query = heads(attention.to_q(tokens(first, last)))
        found = F.scaled_dot_product_attention(query, heads(key), heads(value))
        rows = attention.to_out[0](found.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, (-1, width))
        if attention.residual_connection:
            rows = rows + x[:, :, first:last]
        out[:, :, first:last] = rows / attention.rescale_output_factor
    return out


def lean_upsample(
    layer: Upsample2D, maps: list[Tensor], workspace: Workspace, temb: Tensor | None = None, keep: bool = False
) -> Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W): the enlarged map exists as strips only, inside the convolution."""
    conv = getattr(layer, "conv", None)
    if layer.use_conv_transpose or layer.norm is not None or conv is None or not is_plain(conv):
        return _as_it_is(layer, maps)
    x = maps.pop()
    factor = 2 if layer.interpolate else 1

    def read(first: int, last: int) -> Tensor:
        rows = x[:, :, first // factor : -(-last // factor)]
        if factor > 1:
            rows = F.interpolate(rows, scale_factor=2.0, mode="nearest")
        return rows[:, :, first % factor : first % factor + last - first]

    row = _row_bytes(x) * factor * (conv.in_channels + conv.out_channels)
    return conv_by_strips(conv, read, x.shape[2] * factor, row, workspace)


def lean_red(
    block: REDBlock, maps: list[Tensor], workspace: Workspace, temb: Tensor | None = None, keep: bool = False
) -> Tensor:
    """``x * gate(x) + residual(x)`` written over x strip by strip, BatchNorm folded into one scale and shift."""
    x = maps.pop()
    height = x.shape[2]
    spans = strips(height, _row_bytes(x) * 3 * x.shape[1], workspace)
    read = plain([x])
    gate_affine = _affine(block.gate_conv, block.gate_norm, read, height, spans, workspace)
    residual_affine = _affine(block.residual_conv, block.residual_norm, read, height, spans, workspace)
    out = torch.empty_like(x) if keep else x
    above = None  # the row before the strip, as it was before it was written over

    def read_around(first: int, last: int) -> Tensor:
        rows = x[:, :, first:last]
        return rows if above is None else torch.cat([above, rows[:, :, 1:]], 2)

    for first, last in spans:
        gate = gate_affine(conv_rows(block.gate_conv, read, first, last, height)).sigmoid_()
        residual = residual_affine(conv_rows(block.residual_conv, read_around, first, last, height))
        rows = gate.mul_(x[:, :, first:last]).add_(F.relu6(residual, inplace=True))
        above = None if keep else x[:, :, last - 1 : last].clone()
        out[:, :, first:last] = rows
    return out


def lean_around(
    around: RedAround, maps: list[Tensor], workspace: Workspace, temb: Tensor | None = None, keep: bool = False
) -> Tensor:
    """A layer with its RED blocks."""
    if isinstance(around.red_in, REDBlock):
        maps[:] = [around.red_in(maps, workspace, keep=keep)]
        keep = False
    maps[:] = [run(around.layer, maps, workspace, temb, keep)]
    return around.red_out(maps, workspace) if isinstance(around.red_out, REDBlock) else maps.pop()


LEAN_LAYERS: dict[type[nn.Module], Any] = {
    ResnetBlock2D: lean_resnet,
    Attention: lean_attention,
    Upsample2D: lean_upsample,
    REDBlock: lean_red,
    RedAround: lean_around,
}


def lean_layers(network: nn.Module) -> list[nn.Module]:
    """The layers of ``LEAN_LAYERS`` in a network, without the samplers inside resnets, which run as they are."""
    resnets = [module for module in network.modules() if type(module) is ResnetBlock2D]
    inside = {module for resnet in resnets for module in resnet.modules()} - {*resnets}
    return [module for module in network.modules() if type(module) in LEAN_LAYERS and module not in inside]


def run(
    layer: nn.Module, maps: list[Tensor], workspace: Workspace, temb: Tensor | None = None, keep: bool = False
) -> Tensor:
    """A layer whose ``forward`` is lean now, or any other one that takes the map alone."""
    if type(layer) in LEAN_LAYERS:
        return layer(maps, workspace, temb, keep)
    return layer(maps.pop())


def _as_it_is(layer: nn.Module, maps: list[Tensor], *args: Any) -> Tensor:
    x = torch.cat(maps, 1) if len(maps) > 1 else maps[0]
    maps.clear()
    return type(layer).forward(layer, x, *args)


def _row_bytes(x: Tensor) -> int:
    """Of one row of one channel of all images of the batch."""
    return x.element_size() * len(x) * x.shape[3]


def _affine(
    conv: nn.Conv2d, norm: nn.Module, read: Read, height: int, spans: list[tuple[int, int]], workspace: Workspace
) -> Any:
    """A norm after a convolution as a function of strips, in place; a group norm costs a pass of its own."""
    if isinstance(norm, nn.Identity):  # folded into the convolution already
        return lambda rows: rows
    if isinstance(norm, nn.BatchNorm2d):
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        scale, shift = scale[:, None, None], shift[:, None, None]
    else:
        parts = (moments(conv_rows(conv, read, first, last, height), workspace) for first, last in spans)
        scale, shift = group_affine(norm, *pooled(parts)[:2])
    return lambda rows: rows.mul_(scale).add_(shift)
