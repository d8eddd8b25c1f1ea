"""What a UNet's levels hold and make: its maps by a pass without data, its residual blocks, and where a level ends."""

import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D

from ..core.meta import meta_as_cpu
from ..core.resampling import BlockConv, LevelEnd
from ..core.taps import Maps, Tap, reading
from ..errors import UserError
from ..sources.image_files import one_line

BROKEN = (TypeError, ValueError, LookupError, AttributeError, RuntimeError, ArithmeticError)
"""What a config of any kind makes diffusers raise, torch where its values meet shapes, and a student's plan."""


def maps_of(unet: UNet2DModel, taps: list[Tap]) -> Maps:
    """The maps at these places, in the order in which they are made, on the meta device.

    Raises:
        UserError: images of its ``sample_size`` do not go through it.
    """
    size, zero = unet.config.sample_size, torch.zeros(1, dtype=torch.long, device="meta")
    height, width = (size, size) if isinstance(size, int) else size
    example = torch.empty(1, unet.config.in_channels, height, width, device="meta")
    with torch.no_grad(), meta_as_cpu(), reading(unet, taps) as reader:
        try:
            return reader.run(unet, example, zero, zero if unet.class_embedding is not None else None)[1]
        except BROKEN as error:
            raise UserError(f"this teacher's config makes no network that runs: {one_line(error)}") from error


def block_convs(unet: UNet2DModel) -> list[BlockConv]:
    """The 3x3 convolutions of its residual blocks, in the order of the forward; the middle is of the deepest level."""
    last = len(unet.down_blocks) - 1
    parts = [(f"down_blocks.{i}", i) for i in range(last + 1)]
    parts += [("mid_block", last)] if unet.mid_block is not None else []
    parts += [(f"up_blocks.{i}", last - i) for i in range(last + 1)]
    found = []
    for part, level in parts:
        blocks = unet.get_submodule(part).named_modules(prefix=part)
        for path, block in blocks:
            for name in ("conv1", "conv2") if isinstance(block, ResnetBlock2D) else ():
                conv = getattr(block, name)
                channels = (conv.in_channels, conv.out_channels)
                found.append(BlockConv(level=level, path=f"{path}.{name}", channels=channels))
    return found


def ends_of(unet: UNet2DModel) -> list[LevelEnd]:
    """In front of the sampler of each level, on the way down and on the way up."""
    parts = {}
    for part, blocks in (("down", unet.down_blocks), ("up", unet.up_blocks)):
        for i, block in enumerate(blocks):
            kind = "attentions" if getattr(block, "attentions", None) else "resnets"
            parts[f"{part}_blocks.{i}.{kind}.{len(getattr(block, kind)) - 1}"] = part
    maps = maps_of(unet, [Tap(path, "output") for path in parts])
    return [
        LevelEnd(path=tap.path, part=parts[tap.path], channels=value.shape[1], resolution=value.shape[-1])
        for tap, value in maps.items()
    ]
