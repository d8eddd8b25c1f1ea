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
PLACES = ("red", "levels")
"""Where feature maps are compared, of a student with smaller maps than its teacher's, and with maps as large."""
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

MOONSHINE_STUDENT = {"reduction": 1, "start": "random"}
MOONSHINE_LOSS = {**NO_TERM, "task": 1.0, "attention_mean_square": 1000.0, "feature_places": "levels"}
"""Of a student with cheap convolutions (Crowley et al. 2018, arXiv 1711.02613): attention transfer in the form of its
authors' code, and no distillation of logits."""
OF_CLASSIFIERS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {"student": {}, "loss": CLASSIFIER_LOSS},
    "moonshine": {"student": MOONSHINE_STUDENT, "loss": {**CLASSIFIER_LOSS, **MOONSHINE_LOSS}},
}

# What each recipe says for the settings that a config leaves open; docs/recipe.md says why.
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "natural": {"student": OUR_STUDENT, "loss": {**OUR_LOSS, "task": 0.5, "output": 0.5, "feature_share": 1.0}},
    "saturated": {"student": OUR_STUDENT, "loss": {**OUR_LOSS, "task": 1.0, "feature_share": 0.25}},
    "redistill": {"student": PAPER_STUDENT, "loss": {**PAPER_LOSS, "red_distance": "mse"}},
    "redistill_cosine": {"student": PAPER_STUDENT, "loss": {**PAPER_LOSS, "red_distance": "cosine"}},
    "moonshine": {
        "student": {**PAPER_STUDENT, **MOONSHINE_STUDENT},
        "loss": {**PAPER_LOSS, "red_distance": "mse", **MOONSHINE_LOSS},
    },
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
    student = _student(config.student, chosen, recipe["student"])
    guidance = config.loss.guidance
    loss = {**recipe["loss"], **({} if guidance is None else GUIDED_LOSS), **_given(config.loss)}
    loss.setdefault("feature_places", PLACES[student["reduction"] == 1])
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


def resolve_classifier(config: DistillConfig) -> DistillConfig:
    """``resolve`` of a classifier. Its student has what the recipe says of it; the rest is left to the plan.

    Raises:
        UserError: a recipe or a setting that only a DDPM has, a negative weight, or no loss at all.
    """
    if config.recipe not in OF_CLASSIFIERS:
        raise UserError(f"recipe {config.recipe} is of DDPMs, and {config.teacher} is a classifier: leave it out")
    recipe = OF_CLASSIFIERS[config.recipe]
    student = StudentConfig(**_student(config.student, config.recipe, recipe["student"]))
    return replace(config, student=student, loss=classifier_loss(config.loss, student, recipe["loss"]))


def _student(given: StudentConfig, recipe: str, says: dict[str, Any]) -> dict[str, Any]:
    """What is given of a student, and what its recipe says of the rest. RED blocks of a student of reduction 1 are its
    teacher's, and left to the plan. Raises UserError of moonshine without cheap convolutions."""
    if recipe == "moonshine" and given.cheap is None:
        raise UserError(
            "recipe moonshine is of cheap convolutions: set student.cheap, as G8B2 (S leaves each as it is)"
        )
    student = {"reduction": 2, **says, **_given(given)}
    if student["reduction"] == 1:
        student = {name: value for name, value in student.items() if name[:4] != "red_" or getattr(given, name)}
    return student


def classifier_loss(
    given: LossConfig, student: StudentConfig | None = None, says: dict[str, Any] = CLASSIFIER_LOSS
) -> LossConfig:
    """The loss of a classifier's student, with every setting that was left open filled in.

    Args:
        says: the recipe.

    Raises:
        UserError: a setting that only a DDPM has, a negative weight, or no loss at all.
    """
    for name in OF_DDPMS:
        if getattr(given, name) is not None:
            raise UserError(f"loss.{name} is set, which is of a DDPM's noise, and this is a classifier: leave it out")
    places = PLACES[student is not None and student.reduction == 1]
    loss = {"feature_places": places, **says, **_given(given)}
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
