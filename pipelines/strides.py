"""Set the stride of one layer, with its weights kept in shape. Imports torch alone."""

from torch import nn


def set_stride(layer: nn.Module, stride: int) -> None:
    """Give a convolution, or a down- or up-sampler of diffusers, the stride 1; its weights keep their shape.

    Raises:
        ValueError: a layer of another kind, or another stride than 1 where the layer has no such.
    """
    if stride != 1:
        raise ValueError(f"a layer's stride can be taken away, not made {stride}")
    if hasattr(layer, "time_emb_proj"):  # ResnetBlock2D: its resampling has no weights
        layer.downsample = layer.upsample = None
    elif hasattr(layer, "interpolate"):  # Upsample2D
        layer.interpolate = False
    elif isinstance(getattr(layer, "conv", None), nn.Conv2d):
        # Downsample2D; its padding 0 means "pad right and below", which is for stride 2 only
        layer.padding = 1
        layer.conv.stride = (1, 1)
        layer.conv.padding = (1, 1)
    else:
        raise ValueError(f"{type(layer).__name__} has no stride that can be taken away")
