"""Vision transformers of timm, as students of convolutional classifiers.

Known by what they are, not by a name: a patch embedding, and blocks that read and make tokens of one number, as many as
there are patches beside those in front (class, registers).
"""

import json
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ..core.resampling import BlockConv, LevelEnd, Resampling, TokenMap
from ..core.taps import Tap, reading
from ..errors import UserError
from ..recipes import TOKENS_STUDENT
from .classifier import (
    base_config,
    find,
    is_student,
    network_on_meta,
    size_of,
    sized,
    with_input,
)
from .classifier_config import ClassifierConfig, config_from_dict
from .classifier_files import BROKEN, build, build_on_meta, find_config
from .classifier_files import refers as refers_to_classifier

__all__ = [
    "base_config",
    "find",
    "is_student",
    "network_on_meta",
    "size_of",
    "sized",
    "with_input",
]  # as of every classifier

TASK = "classify"
WIDENS = False
CHEAP_NORM = "batch"
NAME = "this classifier"
MOST_KNOWN = 64


def recognises(config: dict[str, Any]) -> bool:
    if "architecture" not in config:
        return False
    try:
        return _has_tokens(json.dumps(base_config(config), sort_keys=True))
    except UserError:  # it is for the family of the rest to say what is wrong
        return False


def refers(ref: str) -> bool:
    if not refers_to_classifier(ref):
        return False
    try:
        config = find_config(ref).to_dict()
        return recognises({**config, "num_classes": config["num_classes"] or 1})  # 0 of one published without a head
    except UserError:
        return False


def default_student() -> dict[str, Any]:
    return TOKENS_STUDENT


def resampling_table(config: dict[str, Any]) -> list[Resampling]:
    """Raises UserError: no layer of it changes the resolution."""
    raise UserError(
        f"{config['architecture']} cannot be planned: it is a vision transformer, whose tokens keep one resolution, so"
        " that none can lose its stride; it can be the student of a convolutional network, as student.architecture"
    )


def cheap_layers(config: dict[str, Any]) -> list[BlockConv]:
    return []


def level_ends(config: dict[str, Any]) -> list[LevelEnd]:
    return []


def own_student(
    architecture: str, arguments: dict[str, Any], teacher_config: dict[str, Any]
) -> tuple[dict[str, Any], list[TokenMap]]:
    """For its teacher's images, in its numbers, and its classes."""
    told = {key: teacher_config[key] for key in ("num_classes", "in_channels", "image_size", "mean", "std")}
    classes = {"classes": teacher_config["classes"]} if teacher_config.get("classes") else {}
    config = config_from_dict({"architecture": architecture, "arguments": arguments, **told, **classes}, "the student")
    patch, side = _patch(build_on_meta(config)), config.image_size
    if side % patch:
        raise UserError(
            f"images of {side} pixels a side are not divided by patches of {patch}: choose image_size, or patch_size"
            " among student.arguments"
        )
    maps = _token_maps(config)
    if not maps:
        raise UserError(f"student.architecture {architecture} is no vision transformer with these arguments")
    return config.to_dict(), maps


def build_student(config: dict[str, Any], sample_size: int, plan: dict[str, Any]) -> nn.Module:
    """``config``: its teacher's, or its own."""
    options = plan["options"]
    own = own_student(options["architecture"], options["arguments"] or {}, sized(config, sample_size))[0]
    return build(config_from_dict({**own, "student_plan": plan}, NAME))


def paper_peaks(network: nn.Module, inputs: tuple[Any, ...]) -> dict[str, int]:
    """None: the authors count convolutional layers."""
    return {}


@lru_cache(maxsize=MOST_KNOWN)
def _has_tokens(config: str) -> bool:
    """By its config as JSON: a network is built to know."""
    return bool(_token_maps(config_from_dict(json.loads(config), NAME)))


def _patch(network: Any) -> int:
    """Pixels a side of a patch, 1 of a network that has none."""
    embedding = getattr(network, "patch_embed", None)
    projection = getattr(embedding, "proj", None)
    return projection.stride[0] if isinstance(projection, nn.Conv2d) else 1


def _token_maps(config: ClassifierConfig) -> list[TokenMap]:
    """What leaves each of its blocks; empty of another network. Found by running it on the meta device."""
    network: Any = build_on_meta(config)
    blocks, grid = getattr(network, "blocks", None), getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or grid is None or grid[0] != grid[1]:
        return []
    ends = [(Tap(f"blocks.{i}", "input"), Tap(f"blocks.{i}", "output")) for i in range(len(blocks))]
    images = torch.zeros(1, config.in_channels, config.image_size, config.image_size, device="meta")
    try:
        with torch.no_grad(), reading(network, [tap for pair in ends for tap in pair]) as reader:
            maps = reader.run(network, images)[1]
        shapes = [(tuple(maps[before].shape), tuple(maps[after].shape)) for before, after in ends]
    except BROKEN:
        return []
    count = grid[0] * grid[1]
    if any(before != after or len(after) != 3 or after[1] < count for before, after in shapes):
        return []
    return [
        TokenMap(path=f"blocks.{i}", prefix=after[1] - count, channels=after[2], resolution=grid[0])
        for i, (_, after) in enumerate(shapes)
    ]
