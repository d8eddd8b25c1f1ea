"""The UNets of DDPMs: diffusers' ``UNet2DModel``, and a student of one, ``RedUNet2DModel``."""

import inspect
from typing import Any, cast

import torch
from diffusers import UNet2DModel
from torch import nn

from ..core.resampling import BlockConv, LevelEnd, Resampling, TokenMap
from ..core.taps import Tap
from ..errors import UserError
from ..pipelines.modeling_red_unet import RedUNet2DModel
from ..pipelines.red_block import RedAround, REDBlock
from ..recipes import DEFAULT, RECIPES
from ..sources.image_files import one_line
from ..sources.model_folder import ModelFolder, find_model
from .unet2d_maps import BROKEN, block_convs, ends_of, maps_of
from .unet2d_widening import widened_state

__all__ = ["widened_state"]  # a function of the family, in a file of its own

DOWN_BLOCKS = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP_BLOCKS = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
TASK = "denoise"
WIDENS = True
CHEAP_NORM = "group"
LARGEST_INPUT = 2**50
"""Bytes; torch counts in 63 bits, and a feature map is many times the input."""


def recognises(config: dict[str, Any]) -> bool:
    """Every config that is of no other family: a ``UNet2DModel`` is known by its arguments, all of which have
    defaults."""
    return "architecture" not in config


def refers(ref: str) -> bool:
    """Every name that is of no other family."""
    return True


def find(ref: str) -> ModelFolder:
    """Raises UserError as ``find_model``."""
    return find_model(ref)


def size_of(config: dict[str, Any]) -> Any:
    return config.get("sample_size")


def default_student() -> dict[str, Any]:
    return RECIPES[DEFAULT]["student"]


def sized(config: dict[str, Any], image_size: int) -> dict[str, Any]:
    return {**config, "sample_size": image_size}


def paper_peaks(unet: UNet2DModel, inputs: tuple[Any, ...]) -> dict[str, int]:
    """None: the definition in ``core/paper_memory.py`` is of UNets."""
    return {}


def is_student(config: dict[str, Any]) -> bool:
    """Does a config, of a folder or of a network, tell of a ``RedUNet2DModel``?"""
    named = "RedUNet2DModel" if config.get("student_plan") else "UNet2DModel"
    return config.get("_class_name", named) == "RedUNet2DModel"


def base_config(config: dict[str, Any]) -> dict[str, Any]:
    """The ``UNet2DModel`` config that a student's is written on: no reduction, no RED blocks; of a teacher its own."""
    if not is_student(config):
        return config
    base = {key: value for key, value in config.items() if key != "student_plan" and not key.startswith("_")}
    for key in ("down_block_types", "up_block_types"):
        base[key] = [name.split(".")[-1] for name in base.get(key) or ()]
    return base


def own_student(
    architecture: str, arguments: dict[str, Any], teacher_config: dict[str, Any]
) -> tuple[dict[str, Any], list[TokenMap]]:
    """Raises UserError: a UNet's student is made of its layers."""
    raise UserError(f"student.architecture {architecture} is no vision transformer of timm: give timm:NAME")


def widened(config: dict[str, Any], widen: tuple[int, ...]) -> dict[str, Any]:
    """A ``UNet2DModel`` config with ``widen[i]`` times the channels in level i."""
    default = inspect.signature(UNet2DModel).parameters["block_out_channels"].default
    channels = config.get("block_out_channels", default)
    return {**config, "block_out_channels": [c * factor for c, factor in zip(channels, widen, strict=True)]}


def resampling_table(config: dict[str, Any]) -> list[Resampling]:
    """The resampling layers of a network in the order of the forward: stem, downs, ups, head.

    A student has those of its deepest levels still, at stride 1.

    Raises:
        UserError: a kind of network that has no student here.
    """
    unet = network_on_meta(config)
    config = dict(unet.config)  # what was left open has diffusers' defaults here
    size, depth = config["sample_size"], len(config["down_block_types"])
    size = size if isinstance(size, int) else size[0]
    downs = [f"down_blocks.{i}.downsamplers.0" for i in range(depth) if unet.down_blocks[i].downsamplers]
    ups = [f"up_blocks.{i}.upsamplers.0" for i in range(depth) if unet.up_blocks[i].upsamplers]
    if len(downs) != depth - 1 or len(ups) != depth - 1:
        raise UserError(f"teacher has {depth} levels but {len(downs)} down- and {len(ups)} up-samplers: not supported")
    if size % 2 ** len(downs):
        raise UserError(
            f"image size {size} does not divide by {2 ** len(downs)}, as the teacher's {len(downs)} down-samplers need"
        )
    kinds = {"conv_in": "stem", **dict.fromkeys(downs, "down"), **dict.fromkeys(ups, "up"), "conv_norm_out": "head"}
    reads = {path: _reads(unet, path) for path in kinds}
    taps = [tap for path in kinds for tap in (Tap(reads[path], "input"), Tap(path, "output"))]
    maps, rows = maps_of(unet, taps), []
    for path, kind in kinds.items():
        before, after = maps[Tap(reads[path], "input")], maps[Tap(path, "output")]
        resolution = (before.shape[-1], after.shape[-1])
        rows.append(
            Resampling(
                path=path,
                reads=reads[path],
                kind=kind,
                stride=max(resolution) // min(resolution),
                channels=(before.shape[1], after.shape[1]),
                resolution=resolution,
                layers=("conv_out" if kind == "head" else path,),
            )
        )
    return rows


def cheap_layers(config: dict[str, Any]) -> list[BlockConv]:
    return block_convs(network_on_meta(base_config(config)))


def level_ends(config: dict[str, Any]) -> list[LevelEnd]:
    return ends_of(network_on_meta(config))


def network_on_meta(config: dict[str, Any]) -> UNet2DModel:
    """The network without memory for its weights, in eval mode.

    Raises:
        UserError: with the reason when it is neither a plain DDPM UNet nor a student of one, or not of squares.
    """
    _check_size(config.get("sample_size"))
    reason = _unsupported(base_config(config))
    if reason:
        raise UserError(f"this teacher cannot be distilled: {reason}")
    network = RedUNet2DModel if is_student(config) else UNet2DModel
    try:
        with torch.device("meta"):
            return cast(UNet2DModel, network.from_config(config)).eval()
    except BROKEN as error:
        raise UserError(f"diffusers cannot build this teacher's config: {one_line(error)}") from error


def build_student(config: dict[str, Any], sample_size: int, plan: dict[str, Any]) -> RedUNet2DModel:
    """The student of a plan, freshly initialised on the current default device, from its teacher's config.

    Raises:
        UserError: the plan does not fit this teacher.
    """
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        return RedUNet2DModel(**{**config, "sample_size": sample_size, "student_plan": plan})
    except BROKEN as error:
        raise UserError(f"the plan does not fit this teacher: {error}") from error


def with_input(
    unet: UNet2DModel, batch_size: int, image_size: int | None, dtype: torch.dtype
) -> tuple[UNet2DModel, tuple[Any, ...]]:
    """The network in this dtype, and what a denoising step gives it on the meta device: a sample (B, C, H, W), a
    timestep and, with classes, labels (B,).

    Args:
        image_size: pixels a side; None is the network's own sample size.

    Raises:
        UserError: no images, a size that the down-samplers do not divide, or an input past counting.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")
    size = unet.config.sample_size if image_size is None else image_size
    height, width = (size, size) if isinstance(size, int) else size
    _check_divides(unet, height, width)
    if batch_size * unet.config.in_channels * height * width * dtype.itemsize > LARGEST_INPUT:
        raise UserError(f"{batch_size} images of {height} pixels a side are more than 2**50 bytes: too large to count")
    sample = torch.empty(batch_size, unet.config.in_channels, height, width, device="meta", dtype=dtype)
    if unet.dtype != dtype:
        with torch.device("meta"):
            unet = type(unet).from_config(unet.config).eval()
        nn.Module.to(unet, dtype)  # diffusers' own `to` warns of layers to keep in float32, and has none to name
    labels = None
    if unet.class_embedding is not None:
        labels = torch.zeros(batch_size, dtype=torch.long, device="meta")
    return unet, (sample, 0, labels)


def _reads(unet: UNet2DModel, path: str) -> str:
    """The module whose input is the layer's own: behind the RED block in front of it, where there is one."""
    layer = unet.get_submodule(path)
    behind_red = isinstance(layer, RedAround) and isinstance(layer.red_in, REDBlock)
    return f"{path}.layer" if behind_red else path


def _check_size(size: Any) -> None:
    """Raises UserError unless a ``sample_size`` tells of squares."""
    if size is None:
        raise UserError("this network's config has no sample_size: give --image_size, the pixels a side")
    if not isinstance(size, int) and len(set(size)) != 1:
        raise UserError(
            f"this network's sample_size is {list(size)}, a rectangle, and squares alone are planned, trained and"
            " measured: give --image_size, their pixels a side"
        )


def _check_divides(unet: UNet2DModel, height: int, width: int) -> None:
    """A student has moved strides to its stem and head: as many down-samplers, and as much to divide by.

    A size that does not divide can go through a student all the same, and give an image of another size.
    """
    if min(height, width) < 1:
        raise UserError(f"image_size must be at least 1, not {min(height, width)}")
    downs = sum(bool(block.downsamplers) for block in unet.down_blocks)
    for size in (height, width):
        if size % 2**downs:
            raise UserError(
                f"image size {size} does not divide by {2**downs}, as the network's {downs} down-samplers need"
            )


def _unsupported(config: dict[str, Any]) -> str | None:
    for key, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        for kind in config.get(key) or ():
            if kind not in known:
                return f"{key} has {kind}, supported are {', '.join(known)}"
    if config.get("class_embed_type"):
        return f"its class_embed_type is {config['class_embed_type']}, and classes need an embedding: num_class_embeds"
    if config.get("time_embedding_type", "positional") == "fourier":
        return "its output is divided by a Fourier time embedding: a score-SDE network, not a DDPM"
    if config.get("in_channels") != config.get("out_channels"):
        channels = f"{config.get('in_channels')} channels in, {config.get('out_channels')} out"
        return f"it has {channels}, which must agree (no learned variance)"
    return None
