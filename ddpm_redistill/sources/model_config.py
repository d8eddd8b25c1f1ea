"""The values of a model's JSON files against what the class that they are for takes, so that a wrong one is named."""

import inspect
import math
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import UserError

LARGEST = 2**16
"""Of whole numbers in a config: channels, pixels a side, groups."""
LARGEST_BY_NAME = {"layers_per_block": 100, "num_train_timesteps": 10**6, "num_class_embeds": 10**6}
MOST_ENTRIES = 32
"""Of lists in a network's config: levels."""
MAY_BE_ZERO = {"freq_shift", "downsample_padding", "steps_offset"}
REFUSED = {"quantization_config": "a quantized network"}
"""Keys at which diffusers would hand the file over to another library."""

KINDS = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false", tuple: "a list"}


def check_values(config: dict[str, Any], target: type, path: Path) -> None:
    """Raises UserError naming the file and the first value that an argument of ``target`` cannot be.

    Keys that ``target`` has no argument for are passed over, as diffusers does: other samplers' settings, and those
    of later versions.
    """
    for key, what in REFUSED.items():
        if config.get(key) is not None:
            raise UserError(f"{path} has {key}: {what} cannot be loaded, give the one that it was made from")
    for key, hint in get_type_hints(target.__init__).items():  # type: ignore[misc]
        if key not in config:
            continue
        value = config[key]
        if not _fits(value, hint):
            raise UserError(f"{path} has {key} {_shown(value)}, which must be {_expected(hint)}")
        entries = value if isinstance(value, list) else [value]
        if len(entries) > MOST_ENTRIES and key != "trained_betas":
            raise UserError(f"{path} has {key} of {len(entries)} entries: more than {MOST_ENTRIES} are no network's")
        least, most = 0 if key in MAY_BE_ZERO else 1, LARGEST_BY_NAME.get(key, LARGEST)
        for entry in entries:
            if type(entry) is int and type(entry) in _kinds(hint) and not least <= entry <= most:
                raise UserError(f"{path} has {key} {_shown(value)}: whole numbers from {least} to {most} are possible")


def without_variance(
    config: dict[str, Any], scheduler: dict[str, Any], network: type
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Config and scheduler of the network that predicts the mean alone, of one that predicts its variance too: twice
    the channels out, and a scheduler that says so (Nichol and Dhariwal 2021, arXiv 2102.09672). None of any other.

    The variance is then the lower end of the range that it was learned in.
    """
    told = _told(config, network)
    if told["out_channels"] != 2 * told["in_channels"] or not _learns_variance(scheduler):
        return None
    return {**config, "out_channels": told["in_channels"]}, {**scheduler, "variance_type": "fixed_small"}


def why_no_ddpm(config: dict[str, Any], scheduler: dict[str, Any], network: type) -> str | None:
    """Why a network of such values, which were checked, is none that is sampled here; None when it is one."""
    told = _told(config, network)
    if told["class_embed_type"]:
        return (
            f"its class_embed_type is {told['class_embed_type']}, and classes need an embedding: num_class_embeds alone"
        )
    channels = f"{told['in_channels']} channels in, {told['out_channels']} out"
    if told["out_channels"] == 2 * told["in_channels"]:
        variance = scheduler.get("variance_type", "not given")
        return (
            f"it has {channels}, as with a learned variance, and its scheduler's variance_type is {variance}: learned"
            " or learned_range would say that the second half is the variance"
        )
    if told["in_channels"] != told["out_channels"]:
        return f"it has {channels}, which must agree"
    if _learns_variance(scheduler):
        kind = scheduler["variance_type"]
        return f"its scheduler's variance_type is {kind}, and the network predicts none: it has {channels}"
    if told["time_embedding_type"] == "fourier":
        return "its output is divided by a Fourier time embedding: a score-SDE network, not a DDPM"
    return None


def _told(config: dict[str, Any], network: type) -> dict[str, Any]:
    """A config with diffusers' defaults where it is silent."""
    arguments = inspect.signature(network).parameters
    return {key: config.get(key, arguments[key].default) for key in arguments}


def _learns_variance(scheduler: dict[str, Any]) -> bool:
    return str(scheduler.get("variance_type")).startswith("learned")


def check_own_size(ref: str, config: Mapping[str, Any]) -> None:
    """Raises UserError unless a network, by its whole config, can make images of its own size."""
    size, downs = config["sample_size"], len(config["down_block_types"]) - 1
    if size is None:
        raise UserError(f"{ref} makes no images: its config has no sample_size, the pixels a side; write it in there")
    for side in [size] if isinstance(size, int) else size:
        if side % 2**downs:
            needed = f"{2**downs}, as its {downs} down-samplers need"
            raise UserError(f"{ref} makes no images: its sample_size {side} does not divide by {needed}")


def _fits(value: Any, hint: Any) -> bool:
    """Is a JSON value what an argument of this type takes?"""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:  # the class itself says which it knows
        return isinstance(value, str)
    if origin in (tuple, list):
        return isinstance(value, list) and all(_fits(entry, inner[0]) for entry in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint


def _kinds(hint: Any) -> set[Any]:
    """The plain types in a type."""
    inner = get_args(hint)
    return {hint} if not inner else {kind for each in inner for kind in _kinds(each)}


def _expected(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_expected(each) for each in inner))
    if origin in (tuple, list):
        return f"a list, each entry {_expected(inner[0])}"
    if hint is type(None):
        return "null"
    return "a text" if origin is Literal else KINDS.get(hint, "a list" if origin is None else "an object")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
