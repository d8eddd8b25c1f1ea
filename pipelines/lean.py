"""Lean execution of a ``UNet2DModel``, teacher or student: the same network, weights and outputs, less live memory.

Eager execution of a residual block of the decoder holds its input, the skips that wait, the concatenation, and the
outputs of norm and activation, each as a whole map. Here the convolutions read normalised strips of a few rows
(``lean_layers.py``), a skip is dropped when it has been read, and results are written over what nothing reads any
more. The outputs are the same to float rounding.

The setting trades speed for memory: how large a strip may be, and whether the skips of the first level, the largest
ones, are kept or computed again from the sample when the decoder needs them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from .lean_layers import LEAN_LAYERS, lean_layers, run
from .lean_strips import Workspace, conv_by_strips, group_affine, moments, normalised
from .red_block import RedAround

BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D", "UNetMidBlock2D")
BLOCKS += ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")


@dataclass(frozen=True)
class Setting:
    """Room for a strip, as a share of the stem's output: in the first level, where the peak is, and ``below`` it.
    With ``recompute`` the first level's skips are not kept."""

    strip: float
    below: float
    recompute: bool


SETTINGS = {
    "fast": Setting(strip=2, below=2, recompute=False),
    "balanced": Setting(strip=1 / 2, below=1 / 2, recompute=False),
    "smallest": Setting(strip=1 / 4, below=1 / 2, recompute=True),
}
LEAN_SETTINGS = tuple(SETTINGS)


class CannotRunLeanError(ValueError):
    """A network with blocks that lean execution does not know."""


@contextmanager
def lean_execution(unet: UNet2DModel, setting: str = "balanced") -> Iterator[UNet2DModel]:
    """Inside the ``with``, ``unet(sample, timestep)`` runs lean: for inference, without gradients.

    Args:
        unet: a ``UNet2DModel`` or ``RedUNet2DModel``, in eval mode when it is called; any device and dtype.
        setting: "fast", "balanced" or "smallest".

    Raises:
        CannotRunLeanError: a network with blocks that lean execution does not know.
        ValueError: an unknown setting, or a network whose ``forward`` somebody has replaced already (lean execution
            itself, or offloading hooks).
    """
    if setting not in SETTINGS:
        raise ValueError(f"unknown lean setting {setting!r}: expected one of {', '.join(SETTINGS)}")
    if not hasattr(unet, "down_blocks"):
        raise CannotRunLeanError(f"no lean execution of a {type(unet).__name__}: it is of UNets")
    for block in [*unet.down_blocks, unet.mid_block, *unet.up_blocks]:
        if block is not None and type(block).__name__ not in BLOCKS:
            raise CannotRunLeanError(f"no lean execution of a {type(block).__name__}: known are {', '.join(BLOCKS)}")
    replaced: list[tuple[nn.Module, Any]] = [(unet, partial(lean_forward, SETTINGS[setting]))]
    replaced += [(module, LEAN_LAYERS[type(module)]) for module in lean_layers(unet)]
    for module, _ in replaced:
        if "forward" in vars(module):
            raise ValueError(
                f"the forward of this {type(module).__name__} has been replaced already: it cannot be lean"
            )
    try:
        for module, forward in replaced:
            module.forward = partial(forward, module)
        yield unet
    finally:
        for module, _ in replaced:
            vars(module).pop("forward", None)


@torch.no_grad()
def lean_forward(
    setting: Setting,
    unet: UNet2DModel,
    sample: Tensor,
    timestep: Tensor | float | int,
    class_labels: Tensor | None = None,
    return_dict: bool = True,
) -> UNet2DOutput | tuple[Tensor]:
    """``UNet2DModel.forward``: sample (B, C_in, H, W), timestep () or (B,) -> (B, C_out, H, W).

    Raises:
        RuntimeError: the network is in training mode.
        ValueError: class labels are missing, or there is no embedding for them.
    """
    if unet.training:
        raise RuntimeError("lean execution is for inference: call unet.eval() first")
    if unet.config.center_input_sample:
        sample = 2 * sample - 1
    timesteps = torch.as_tensor(timestep, device=sample.device).expand(len(sample))
    temb = time_embedding(unet, timesteps, class_labels)
    stem = unet.conv_in.layer if isinstance(unet.conv_in, RedAround) else unet.conv_in
    height, width = sample.shape[2] // stem.stride[0], sample.shape[3] // stem.stride[1]
    first_map = sample.element_size() * len(sample) * stem.out_channels * height * width
    workspace = Workspace(height, int(setting.strip * first_map), int(setting.below * first_map))

    def step(block: nn.Module, i: int, maps: list[Tensor], keep: bool = False) -> list[Tensor]:
        """A level's i-th resnet and the attention after it."""
        maps[:] = [block.resnets[i](maps, workspace, temb, keep)]
        if hasattr(block, "attentions"):
            maps[:] = [block.attentions[i](maps, workspace)]
        return maps

    def first_level(count: int) -> list[Tensor]:
        """The first level's map after ``count`` steps, from the sample."""
        maps = [run(unet.conv_in, [sample], workspace)]
        for i in range(count):
            maps = step(unet.down_blocks[0], i, maps)
        return maps

    # the encoder; a skip is a map, or the number of steps of the first level that lead to it
    maps = first_level(0)
    skips: list[Tensor | int] = [0 if setting.recompute else maps[0]]
    for level, block in enumerate(unet.down_blocks):
        recompute = setting.recompute and level == 0
        for i in range(len(block.resnets)):
            maps = step(block, i, maps, keep=maps[0] is skips[-1])
            skips.append(i + 1 if recompute else maps[0])
        for sampler in block.downsamplers or ():
            maps = [run(sampler, maps, workspace, temb, keep=maps[0] is skips[-1])]
            skips.append(maps[0])

    if unet.mid_block is not None:
        maps = [unet.mid_block.resnets[0](maps, workspace, temb, keep=maps[0] is skips[-1])]
        for attention, resnet in zip(unet.mid_block.attentions, unet.mid_block.resnets[1:], strict=True):
            if attention is not None:
                maps = [attention(maps, workspace)]
            maps = [resnet(maps, workspace, temb)]

    # the decoder: each skip goes with the step that reads it
    for block in unet.up_blocks:
        for i in range(len(block.resnets)):
            skip = skips.pop()
            maps += first_level(skip) if isinstance(skip, int) else [skip]
            del skip
            maps = step(block, i, maps)
        for sampler in block.upsamplers or ():
            maps = [run(sampler, maps, workspace, temb)]

    sample = head(unet, maps, workspace)
    if unet.config.time_embedding_type == "fourier":
        sample = sample / timesteps.reshape(-1, 1, 1, 1)
    return UNet2DOutput(sample=sample) if return_dict else (sample,)


def time_embedding(unet: UNet2DModel, timesteps: Tensor, class_labels: Tensor | None) -> Tensor:
    """Timesteps (B,) and class labels (B,), where the network has classes -> (B, time embedding channels)."""
    temb = unet.time_embedding(unet.time_proj(timesteps).to(unet.dtype))
    if (unet.class_embedding is None) != (class_labels is None):
        raise ValueError("class_labels go with a network that has a class embedding, and only with one")
    if unet.class_embedding is not None:
        if unet.config.class_embed_type == "timestep":
            class_labels = unet.time_proj(class_labels)
        temb = temb + unet.class_embedding(class_labels).to(unet.dtype)
    return temb


def head(unet: UNet2DModel, maps: list[Tensor], workspace: Workspace) -> Tensor:
    """Norm, activation and last convolution: (B, C, H, W) -> (B, C_out, H, W), of a student r times as large."""
    norm = unet.conv_norm_out
    if isinstance(norm, RedAround):
        maps[:] = [norm.red_in(maps, workspace)]
        norm = norm.layer
    conv, *rest = unet.conv_out if isinstance(unet.conv_out, nn.Sequential) else [unet.conv_out]
    height, width = maps[0].shape[2:]
    row = maps[0].element_size() * len(maps[0]) * width * (conv.in_channels + conv.out_channels)
    read = normalised(maps, *group_affine(norm, *moments(maps[0], workspace)[:2]), unet.conv_act)
    sample = conv_by_strips(conv, read, height, row, workspace)
    maps.clear()
    for layer in rest:
        sample = layer(sample)
    return sample
