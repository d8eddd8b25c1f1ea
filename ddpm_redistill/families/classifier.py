"""Convolutional classifiers: any of timm, wide residual networks, and their students."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..core.layer_memory import layer_memory
from ..core.resampling import BlockConv, LevelEnd, Resampling, TokenMap
from ..core.strided_layers import strided_rows
from ..core.taps import Tap, reading
from ..errors import UserError
from ..pipelines.strides import STRIDED
from ..pipelines.wide_resnet import WideBlock
from ..recipes import CLASSIFIER_STUDENT
from ..sources.image_files import one_line
from .classifier_config import ClassifierConfig, config_from_dict
from .classifier_files import BROKEN, build, build_on_meta, find_config, refers

__all__ = ["refers"]

NAME = "this classifier"
TASK = "classify"
WIDENS = False
CHEAP_NORM = "batch"
RESIDUAL = {"BasicBlock": ("conv1", "conv2"), "Bottleneck": ("conv2",), "WideBlock": ("conv1", "conv2")}
"""Of timm's ResNets and of wide residual networks: the blocks, and their 3x3 convolutions."""
RESIDUAL_MODULES = ("timm.models.resnet", WideBlock.__module__)
LARGEST_INPUT = 2**50
"""Bytes; torch counts in 63 bits, and a feature map is many times the input."""


@dataclass(frozen=True)
class FoundClassifier:
    """What ``plan`` and ``memory`` ask of a model, without its weights."""

    ref: str
    config: dict[str, Any]
    pixels_per_latent: int = 1
    autoencoder: None = None

    def say(self) -> None:
        """Nothing in it is passed over."""


def find(ref: str) -> FoundClassifier:
    """Raises UserError as ``find_config``."""
    return FoundClassifier(ref, find_config(ref).to_dict())


def recognises(config: dict[str, Any]) -> bool:
    return "architecture" in config


def is_student(config: dict[str, Any]) -> bool:
    return config.get("student_plan") is not None


def base_config(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "student_plan"} if is_student(config) else config


def size_of(config: dict[str, Any]) -> int:
    return int(config["image_size"])


def sized(config: dict[str, Any], image_size: int) -> dict[str, Any]:
    return {**config, "image_size": image_size}


def default_student() -> dict[str, Any]:
    return CLASSIFIER_STUDENT


def network_on_meta(config: dict[str, Any]) -> nn.Module:
    return build_on_meta(_read(config))


def resampling_table(config: dict[str, Any]) -> list[Resampling]:
    """The stem, the pooling straight behind it, then each layer or block that strides, in the order of the forward. A
    student has those that have lost their stride still, at stride 1."""
    rows = _rows(_read(config))
    if not is_student(config):
        return rows
    lost = {layer for edit in config["student_plan"]["edits"] for layer in edit.get("layers", ())}
    strided = iter(rows)
    all_rows: list[Resampling] = []
    for row in _rows(_read(base_config(config))):
        if row.kind != "stem" and lost.issuperset(row.layers):
            side = all_rows[-1].resolution[1]
            all_rows.append(replace(row, stride=1, resolution=(side, side)))
        else:
            all_rows.append(next(strided))
    return all_rows


def cheap_layers(config: dict[str, Any]) -> list[BlockConv]:
    """A level is the sequence that a block is in: layer1 to layer4, group1 to group3."""
    levels: list[str] = []
    found: list[BlockConv] = []
    for path, block in network_on_meta(base_config(config)).named_modules():
        kind = type(block)
        if kind.__module__ not in RESIDUAL_MODULES:
            continue
        level = path.rpartition(".")[0]
        for name in RESIDUAL.get(kind.__name__, ()):
            conv = getattr(block, name)
            if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3) and conv.groups == conv.dilation[0] == 1:
                levels += [level] if level not in levels else []
                channels = (conv.in_channels, conv.out_channels)
                found.append(BlockConv(level=levels.index(level), path=f"{path}.{name}", channels=channels))
    return found


def level_ends(config: dict[str, Any]) -> list[LevelEnd]:
    levels = [layer.path.rsplit(".", 2)[0] for layer in cheap_layers(config)]
    taps = [Tap(level, "output") for level in dict.fromkeys(levels)]
    told = _read(config)
    network = build_on_meta(told)
    images = torch.zeros(1, told.in_channels, told.image_size, told.image_size, device="meta")
    with torch.no_grad(), reading(network, taps) as reader:
        maps = reader.run(network, images)[1]
    return [
        LevelEnd(path=tap.path, part="down", channels=maps[tap].shape[1], resolution=maps[tap].shape[-1])
        for tap in taps
    ]


def own_student(
    architecture: str, arguments: dict[str, Any], teacher_config: dict[str, Any]
) -> tuple[dict[str, Any], list[TokenMap]]:
    """Raises UserError: a convolutional network's maps are aligned where its teacher's layers are its own."""
    find_config(architecture)  # raises, of a name that is none
    raise UserError(
        f"student.architecture {architecture} is no vision transformer: a convolutional student is made of its"
        " teacher's layers, leave student.architecture out"
    )


def build_student(config: dict[str, Any], sample_size: int, plan: dict[str, Any]) -> nn.Module:
    student = _read({**base_config(config), "image_size": sample_size, "student_plan": plan})
    _check_runs(student, torch.zeros(1, student.in_channels, sample_size, sample_size, device="meta"))
    return build(student)


def with_input(
    network: nn.Module, batch_size: int, image_size: int | None, dtype: torch.dtype
) -> tuple[nn.Module, tuple[Any, ...]]:
    """The network in this dtype, and images (B, C, S, S) on the meta device."""
    config = _read(dict(network.config))  # type: ignore[arg-type]
    size = config.image_size if image_size is None else image_size
    for name, value in (("batch_size", batch_size), ("image_size", size)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    if batch_size * config.in_channels * size**2 * dtype.itemsize > LARGEST_INPUT:
        raise UserError(f"{batch_size} images of {size} pixels a side are more than 2**50 bytes: too large to count")
    if next(network.parameters()).dtype != dtype:
        network = build_on_meta(config).to(dtype)
    images = torch.zeros(batch_size, config.in_channels, size, size, device="meta", dtype=dtype)
    _check_runs(config, images)
    return network, (images,)


def paper_peaks(network: nn.Module, inputs: tuple[Any, ...]) -> dict[str, int]:
    """The authors' theoretical peak of classifiers, which counts every layer (``core/layer_memory.py``)."""
    on_meta = build_on_meta(_read(dict(network.config))).to(inputs[0].dtype)  # type: ignore[arg-type]
    peak = max(size for _, size in layer_memory(on_meta, inputs[0]))
    return {"paper_peak": peak, "paper_peak_with_skips": peak}


def _read(config: dict[str, Any]) -> ClassifierConfig:
    return config_from_dict(config, NAME)


def _check_runs(config: ClassifierConfig, images: torch.Tensor) -> None:
    """Raises UserError where images of this size do not go through it."""
    try:
        network = build_on_meta(config)
        if images.dtype != torch.float32:
            network.to(images.dtype)  # not where nothing changes: tensors without data of another kind cannot be moved
        with torch.no_grad():
            network(images)
    except BROKEN as error:
        side = images.shape[-1]
        what = f"the student of {config.architecture}" if config.student_plan else config.architecture
        raise UserError(f"{what} does not run on images of {side} pixels: {one_line(error)}") from error


def _rows(config: ClassifierConfig) -> list[Resampling]:
    """Of the strided layers of a network. Raises UserError with the reason where it has no student here, or its strides
    do not suit the image size."""
    name, size = config.architecture, config.image_size
    network = build_on_meta(config)
    try:
        rows = strided_rows(network, torch.zeros(1, config.in_channels, size, size, device="meta"))
    except ValueError as error:
        raise UserError(f"{name} cannot be planned: {one_line(error)}") from error
    except BROKEN as error:
        raise UserError(f"{name} does not run on images of {size} pixels: {one_line(error)}") from error
    if len(rows) < 2 and config.student_plan is None:
        raise UserError(
            f"{name} cannot be planned: no convolution and no pooling strides behind {rows[0].path}, which makes"
            f" {rows[0].resolution[1]} pixels a side of {size}, so that none can lose its stride"
        )
    for row in rows:
        for path in row.layers:
            kind = type(network.get_submodule(path))
            if not issubclass(kind, STRIDED):
                raise UserError(f"{name} cannot be planned: {path} strides by a {kind.__name__}, which no edit changes")
    return rows
