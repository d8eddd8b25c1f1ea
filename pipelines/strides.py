"""The stride of one layer changed in place, so that a map of S pixels a side becomes one of S / stride.

Imports torch only: this file travels inside student folders.
"""

import warnings
from typing import Any

import torch
from torch import nn

STRIDED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
"""Layers whose stride can be set; their subclasses that pad for themselves ("same" padding) among them."""


def set_stride(layer: nn.Module, stride: int) -> None:
    """Give a convolution, a pooling, or a down- or up-sampler of diffusers another stride; its weights stay.

    The padding stays where the maps come out as they should, else it is half the kernel. An even kernel at stride 1
    has no such padding: a convolution then pads one pixel more on the far side (``padding="same"``). A pooling whose
    windows do not overlap (kernel not above the stride) only thins the map out, so its kernel becomes the new stride:
    at stride 1 it passes the map on as it is, which is what timm builds for a shortcut that does not stride.

    Raises:
        ValueError: it is none of them, no padding of it gives S / stride, or a sampler is to stride.
    """
    if any(hasattr(layer, name) for name in ("interpolate", "time_emb_proj", "use_conv")):
        _stop_sampler(layer, stride)
        return
    if not isinstance(layer, STRIDED):
        raise ValueError(f"{type(layer).__name__} is no convolution, pooling or sampler: its stride cannot be set")
    kernel, before = _side(layer.kernel_size), _side(layer.stride)
    layer.stride = (stride, stride)
    if isinstance(layer, nn.Conv2d):
        reach = layer.dilation[0] * (kernel - 1) + 1
    else:
        if kernel <= before:
            layer.kernel_size, layer.padding, kernel = (stride, stride), (0, 0), stride
        reach = kernel
    paddings: list[Any] = [layer.padding, *((p, p) for p in (reach // 2, (reach - 1) // 2))]
    if isinstance(layer, nn.Conv2d) and stride == 1:
        paddings.append("same")
    for padding in paddings:
        layer.padding = padding
        if _divides(layer, stride, kernel):
            return
    raise ValueError(f"no padding of this {type(layer).__name__} makes 1 / {stride} of a map: kernel {kernel}")


def _stop_sampler(layer: Any, stride: int) -> None:
    """Make a down- or up-sampler of diffusers keep the resolution. Raises ValueError for another stride."""
    if stride != 1:
        raise ValueError(f"a {type(layer).__name__} can lose its stride, not take {stride}")
    if hasattr(layer, "time_emb_proj"):  # ResnetBlock2D: its resampling has no weights
        layer.downsample = layer.upsample = None
    elif hasattr(layer, "interpolate"):  # Upsample2D
        layer.interpolate = False
    else:  # Downsample2D; its padding 0 means "pad right and below", which is for stride 2 only
        layer.padding = 1
        layer.conv.stride = (1, 1)
        layer.conv.padding = (1, 1)


def _divides(layer: nn.Module, stride: int, kernel: int) -> bool:
    """By running it: layers that pad for themselves do so in ways of their own."""
    weight = getattr(layer, "weight", None)
    channels = layer.in_channels if isinstance(layer, nn.Conv2d) else 1
    probe = torch.empty(0) if weight is None else weight
    for outputs in (kernel + 1, kernel + 2):
        size = outputs * stride
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch says once that "same" with an even kernel may copy the input
                out = layer(torch.zeros(1, channels, size, size, device=probe.device, dtype=probe.dtype))
        except RuntimeError:  # a pooling pads by half its kernel at most
            return False
        if out.shape[-1] != outputs:
            return False
    return True


def _side(value: int | tuple[int, ...]) -> int:
    sides = {value} if isinstance(value, int) else set(value)
    if len(sides) != 1:
        raise ValueError(f"{value} has two sizes, and squares alone are changed")
    return sides.pop()
