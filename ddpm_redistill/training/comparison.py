"""Student and teacher compared by their feature maps, whatever network and task these are of."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from ..config import FEATURE_TERMS, LossConfig
from ..core.feature_losses import (
    FeatureLoss,
    Pair,
    Regressors,
    attention_mean_square,
    attention_norm,
    feature_mse,
    mean_over_pairs,
    red_distance,
    similarity,
)
from ..core.resampling import LevelEnd
from ..core.taps import Maps, Reader, Tap, reading
from ..errors import UserError
from ..families.registry import family_named, family_of
from ..pipelines.edits import Red, Tokens
from ..pipelines.seeds import seeded_generator
from ..students.derive import student_on_meta
from ..students.plan import StudentPlan, plan_student
from .gradient import Objective
from .loop import ObjectiveAt


class Place(NamedTuple):
    """Where a map of the student is compared with one of the teacher of the same resolution, and their channels."""

    student: Tap
    teacher: Tap
    channels: int
    teacher_channels: int


def alignment(teacher_config: dict[str, Any], plan: StudentPlan, where: str = "red") -> tuple[Place, ...]:
    """Where student and teacher are compared.

    Args:
        where: ``loss.feature_places``: red, at the RED blocks of the full placement, those that it has or not; levels.
    """
    config = family_of(teacher_config)[1].sized(teacher_config, plan.sample_size)
    if where == "levels":
        return _ends_of_levels(config, plan)
    has = {block.name for block in plan.blocks}
    has |= {
        f"{edit.path}.red_out" for edit in plan.edits if isinstance(edit, Tokens)
    }  # a map, with a block on it or not
    return tuple(
        Place(
            student=_student_tap(block, block.name in has),
            teacher=Tap(block.teacher_layer, block.teacher_side),
            channels=block.channels,
            teacher_channels=block.teacher_channels,
        )
        for block in _full_placement(config, plan)
    )


def _full_placement(config: dict[str, Any], plan: StudentPlan) -> tuple[Red, ...]:
    if plan.step == 1:  # its RED blocks are its teacher's
        return plan.blocks
    return plan_student(config, replace(plan.options, red_placement="full")).blocks


def _ends_of_levels(config: dict[str, Any], plan: StudentPlan) -> tuple[Place, ...]:
    """Each level of the student whose last map is as large as that of a level of its teacher: of the same level, or
    where strides were moved, of the one whose maps have that size then."""
    student = cast(Any, student_on_meta(config, plan))
    own_ends = family_named(plan.family).level_ends(dict(student.config))
    its_ends = family_of(config)[1].level_ends(config)
    same = {end.path for end in own_ends if any(_alike(end, its) and end.path == its.path for its in its_ends)}
    places = []
    for end in own_ends:
        alike = [its for its in its_ends if _alike(end, its)]
        its = next((its for its in alike if its.path == end.path), next(iter(alike), None))
        if its is not None and (its.path == end.path or its.path not in same):
            taps = Tap(end.path, "output"), Tap(its.path, "output")
            places.append(Place(*taps, end.channels, its.channels))
    return tuple(places)


def _alike(end: LevelEnd, other: LevelEnd) -> bool:
    return (end.part, end.resolution) == (other.part, other.resolution)


def _student_tap(block: Red, exists: bool) -> Tap:
    """What leaves the RED block there, or where the student has none, what the layer takes in or puts out."""
    return Tap(block.name, "output") if exists else Tap(block.path, "input" if block.side == "red_in" else "output")


class Compared(NamedTuple):
    """What reads the maps of student and teacher, and the tap of each at every place that is compared."""

    student: Reader
    teacher: Reader
    taps: list[tuple[Tap, Tap]]


def feature_terms(loss: LossConfig) -> dict[str, FeatureLoss]:
    """The terms on feature maps that have a weight, by name."""
    terms: dict[str, FeatureLoss] = {
        "red": partial(red_distance, distance=str(loss.red_distance)),
        "feature": feature_mse,
        "fitnet": feature_mse,  # of the regressors' maps
        "attention_norm": attention_norm,
        "attention_mean_square": attention_mean_square,
        "similarity": similarity,
    }
    return {name: terms[name] for name in FEATURE_TERMS if getattr(loss, name)}


def check_terms(loss: LossConfig, places: Sequence[Place], micro_batch: int) -> None:
    """Refuse a term that would have nothing to compare, with ``micro_batch`` images at a time in each process.

    Raises:
        UserError: naming the term.
    """
    terms = feature_terms(loss)
    if terms and not places:
        raise UserError(
            f"loss.{next(iter(terms))} compares feature maps, and no map of the student has the resolution of one of"
            " its teacher: leave it out"
        )
    if loss.feature and not any(place.channels == place.teacher_channels for place in places):
        raise UserError(
            "loss.feature is not 0 but no map of the student has as many channels as its teacher's: use loss.fitnet"
        )
    if loss.similarity and micro_batch < 2:
        raise UserError(
            "loss.similarity compares the images of a micro-batch, which has only one: raise training.batch_size"
        )


def make_regressors(loss: LossConfig, places: Sequence[Place], seed: int) -> Regressors | None:
    """FitNet's regressors with values drawn from ``seed``, or None without that term."""
    if not loss.fitnet:
        return None
    with torch.random.fork_rng():
        torch.manual_seed(seeded_generator(seed, "fitnet").initial_seed())
        return Regressors([(place.channels, place.teacher_channels) for place in places])


@contextmanager
def comparing(teacher: nn.Module, student: nn.Module, places: Sequence[Place]) -> Iterator[Compared]:
    """Within the block the maps at ``places`` can be read; on leaving no hook is left."""
    taps = [(place.student, place.teacher) for place in places]
    with reading(student, [own for own, _ in taps]) as own, reading(teacher, [its for _, its in taps]) as its:
        yield Compared(own, its, taps)


def feature_parts(
    terms: dict[str, FeatureLoss],
    compared: Compared,
    student_maps: Maps,
    teacher_maps: Maps,
    regressors: nn.Module | None = None,
    where: str = "red",
) -> dict[str, torch.Tensor]:
    """Each of ``terms`` over the places where it can be taken, a scalar; by name. ``where``: ``loss.feature_places``,
    of red the mean, of levels the sum."""
    pairs: list[Pair] = [(student_maps[own], teacher_maps[its]) for own, its in compared.taps]
    of_term = {"feature": [pair for pair in pairs if pair[0].shape[1] == pair[1].shape[1]]}
    if regressors is not None and "fitnet" in terms:
        regressed = regressors([own for own, _ in pairs])
        of_term["fitnet"] = list(zip(regressed, (its for _, its in pairs), strict=True))
    means = {name: mean_over_pairs(term, of_term.get(name, pairs)) for name, term in terms.items()}
    return {name: mean * len(of_term.get(name, pairs)) if where == "levels" else mean for name, mean in means.items()}


def objectives_by_step(make: Callable[[LossConfig], Objective], loss: LossConfig, steps: int) -> ObjectiveAt:
    """The objective of each of ``steps``: all terms, and past ``loss.feature_share`` of them none on feature maps."""
    without = replace(loss, **dict.fromkeys(FEATURE_TERMS, 0.0))  # type: ignore[arg-type]
    first, then = make(loss), make(without)
    share = max(1, round(float(loss.feature_share or 0) * steps))
    return lambda step: first if step < share else then
