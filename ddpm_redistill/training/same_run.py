"""What a resumed run must have in common with the run that it goes on with, and what may be another."""

from typing import Any

from ..config import FEATURE_TERMS
from ..errors import UserError

HOUSEKEEPING = ("log_every", "sample_every", "checkpoint_every", "keep_checkpoints", "num_workers")
"""Of training: without effect on any weight."""
ROUNDING = ("compile", "gradient_checkpointing")
"""Of training: the same run to float rounding."""
PLACES = ("data", "teacher")
"""Where they are; what they hold is compared by its sha256, whatever these say."""


def changed_settings(
    before: dict[str, Any], now: dict[str, Any], newest_step: int, *, anyway: bool
) -> list[tuple[str, Any, Any]]:
    """(setting, before, now) of each that differs between two flat configs, all of which may.

    Args:
        newest_step: of the checkpoints that are there, 0 for none.
        anyway: the person asked for what is safe to change; else nothing may differ.

    Raises:
        UserError: naming the first setting that may not differ, and why.
    """
    # A setting that the run's version had not is no difference; arguments of diffusers' classes are all or nothing.
    theirs = {key for key in now if key.startswith(("unet.", "scheduler."))}
    # A recipe is a name for settings, which are compared one by one.
    keys = sorted((before.keys() | theirs) - {"output_dir", "recipe"})
    changes = [(key, before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)]
    for key, was, value in changes:
        difference = f"{key} was {was} and is now {value}"
        unsafe = why_unsafe(key, now, newest_step)
        if unsafe:
            also = f", and --resume_anyway does not help: {unsafe}" if anyway else ""
            raise UserError(f"{difference}{also}; use the same config or another output_dir")
        if not anyway:
            raise UserError(f"{difference}; use the same config, --resume_anyway, or another output_dir")
    return changes


def why_unsafe(key: str, now: dict[str, Any], newest_step: int) -> str | None:
    """Why a run that goes on with another value would not be the run of either value; None if it would."""
    section, _, name = key.rpartition(".")
    if key in PLACES or (section == "training" and name in (*HOUSEKEEPING, *ROUNDING)):
        return None
    if key == "training.steps":
        if now["training.schedule"] != "constant":
            return f"with the {now['training.schedule']} schedule every step's learning rate depends on it"
        if now.get("loss.feature_share", 1.0) < 1 and any(now.get(f"loss.{term}") for term in FEATURE_TERMS):
            return f"loss.feature_share {now['loss.feature_share']} is a share of them"
        return f"the run is at step {newest_step} already" if now[key] < newest_step else None
    if key == "training.gradient_accumulation":
        red = now.get("student.red_norm") == "batch" and now.get("student.red_placement") != "none"
        if red or now.get("loss.similarity"):
            return "BatchNorm in RED blocks and loss.similarity are taken over a micro-batch"
        return None
    return "it would be another run from here on"


def check_record(name: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """``before``: what ``name`` in the run folder recorded; what only one of them has is no difference.

    Raises:
        UserError: naming the first entry that differs.
    """
    then, today = flatten(before), flatten(now)
    for key in sorted(then.keys() & today.keys()):
        if then[key] != today[key]:
            raise UserError(f"{key} was {then[key]} ({name}) and is now {today[key]}; that is never safe to change")


def flatten(nested: dict[str, Any] | list[Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; tuples become lists, as YAML has them, and lists of groups are counted."""
    flat: dict[str, Any] = {}
    for key, value in nested.items() if isinstance(nested, dict) else enumerate(nested):
        groups = isinstance(value, list) and any(isinstance(each, dict) for each in value)
        if isinstance(value, dict) or groups:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
