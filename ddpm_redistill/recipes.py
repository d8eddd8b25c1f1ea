"""The recipes that are pinned by name, and what they make of the settings that a config leaves open. No torch here."""

from dataclasses import asdict, replace
from typing import Any

from .config import LOSS_TERMS, DistillConfig, LossConfig, StudentConfig
from .errors import UserError

# The paper's student, and what its recipe leaves to the two distances (Chen et al., arXiv 2406.03744).
PAPER_STUDENT = {
    "red_placement": "full",
    "red_norm": "batch",
    "red_start": "paper",
    "start": "random",
    "head_start": "teacher",
    "prediction_type": "epsilon",
}
NO_TERM = dict.fromkeys(LOSS_TERMS, 0.0)
PAPER_LOSS = {
    **NO_TERM,
    "task": 1.0,
    "red": 50.0,
    "weighting": "none",
    "gamma": 5.0,
    "clip_sample": False,
    "feature_share": 1.0,
}

DEFAULT = "natural"
"""The default recipe where nothing is known of the images."""
GUIDED_LOSS = {"task": 0.0, "output": 1.0}
"""What ``loss.guidance`` makes of the weights that are left open."""

OUR_STUDENT = {
    "red_placement": "outer",
    "red_norm": "batch",
    "red_start": "identity",
    "start": "teacher",
    "head_start": "zero",
    "prediction_type": "sample",
}
OUR_LOSS = {
    **NO_TERM,
    "red": 10.0,
    "red_distance": "mse",
    "weighting": "snr_plus_one",
    "gamma": 2.0,
    "clip_sample": True,
}

CLASSIFIER_STUDENT = {
    "red_placement": "full",
    "red_norm": "batch",
    "red_start": "identity",
    "start": "teacher",
}
"""Of a classifier's student."""
TOKENS_STUDENT = {
    "red_placement": "full",
    "red_norm": "batch",
    "red_start": "identity",
    "start": "random",
}
"""Of a vision transformer that is a classifier's student."""
CLASSIFIER_LOSS = {
    **NO_TERM,
    "task": 1.0,
    "red": 1.0,
    "red_distance": "cosine",
    "temperature": 4.0,
    "feature_share": 1.0,
}
"""Of a classifier's student: the paper's for ImageNet; the temperature, which counts once output has a weight, is that
of Crowley et al. 2018, arXiv 1711.02613."""
OF_DDPMS = ("guidance", "weighting", "gamma", "clip_sample")
"""Settings of the loss that are of a DDPM alone."""

# What each recipe says for the settings that a config leaves open; docs/recipe.md says why.
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "natural": {"student": OUR_STUDENT, "loss": {**OUR_LOSS, "task": 0.5, "output": 0.5, "feature_share": 1.0}},
    "saturated": {"student": OUR_STUDENT, "loss": {**OUR_LOSS, "task": 1.0, "feature_share": 0.25}},
    "redistill": {"student": PAPER_STUDENT, "loss": {**PAPER_LOSS, "red_distance": "mse"}},
    "redistill_cosine": {"student": PAPER_STUDENT, "loss": {**PAPER_LOSS, "red_distance": "cosine"}},
}


def resolve(config: DistillConfig, default: str = DEFAULT) -> DistillConfig:
    """The same config with every setting that was left open filled in by its recipe; ``default``: the recipe that the
    default one is.

    Raises:
        UserError: an unknown recipe, a negative loss weight, or no loss at all.
    """
    chosen: Any = default if config.recipe == "default" else config.recipe
    if chosen not in RECIPES:
        raise UserError(f"unknown recipe {chosen!r}: expected one of default, {', '.join(RECIPES)}")
    recipe = RECIPES[chosen]
    student = {**recipe["student"], **_given(config.student)}
    guidance = config.loss.guidance
    loss = {**recipe["loss"], **({} if guidance is None else GUIDED_LOSS), **_given(config.loss)}
    weights = _checked_weights(loss)
    if guidance is not None and not 0 <= guidance < float("inf"):
        raise UserError(f"loss.guidance must be a finite number from 0 on, not {guidance}")
    if guidance is not None and (weights["task"] or not weights["output"]):
        raise UserError(
            "loss.guidance is of the teacher's output: leave loss.output above 0 and loss.task at 0, since the images"
            " that the task is about are of no guidance"
        )
    if not 0 < loss["gamma"] < float("inf"):
        raise UserError(f"loss.gamma must be positive, not {loss['gamma']}")
    _check_share(loss, weights)
    return replace(config, recipe=chosen, student=StudentConfig(**student), loss=LossConfig(**loss))


def classifier_loss(given: LossConfig) -> LossConfig:
    """The loss of a classifier's student, with every setting that was left open filled in.

    Raises:
        UserError: a setting that only a DDPM has, a negative weight, or no loss at all.
    """
    for name in OF_DDPMS:
        if getattr(given, name) is not None:
            raise UserError(f"loss.{name} is set, which is of a DDPM's noise, and this is a classifier: leave it out")
    loss = {**CLASSIFIER_LOSS, **_given(given)}
    weights = _checked_weights(loss)
    if not 0 < loss["temperature"] < float("inf"):
        raise UserError(f"loss.temperature must be positive, not {loss['temperature']}")
    _check_share(loss, weights)
    return LossConfig(**loss)


def _checked_weights(loss: dict[str, Any]) -> dict[str, float]:
    weights = {name: loss[name] for name in LOSS_TERMS}
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise UserError(f"loss.{name} must be zero or positive, not {weight}")
    return weights


def _check_share(loss: dict[str, Any], weights: dict[str, float]) -> None:
    if not 0 < loss["feature_share"] <= 1:
        raise UserError(f"loss.feature_share must be above 0 and at most 1, not {loss['feature_share']}")
    if not any(weights.values()):
        names = ", ".join(f"loss.{name}" for name in LOSS_TERMS)
        raise UserError(f"all loss weights are 0: nothing would be learned, set one of {names}")
    if loss["feature_share"] < 1 and not weights["task"] + weights["output"]:
        raise UserError("loss.task and loss.output are 0: nothing is left after loss.feature_share, set it to 1")


def _given(config: StudentConfig | LossConfig) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if value is not None}
