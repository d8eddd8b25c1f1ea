"""The objective of a distillation: what is run on a batch, as far as its weights need it, and the loss parts."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DModel
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
from ..core.losses import (
    epsilon_of,
    forgive_clipped,
    noisy_of,
    output_loss,
    sample_predicted,
    task_loss,
    timestep_weight,
)
from ..core.taps import Maps, Reader, Tap, reading
from ..errors import UserError
from ..families.registry import family_of
from ..pipelines.conditioning import guided, with_null
from ..pipelines.edits import Red
from ..pipelines.modeling_red_unet import RedUNet2DModel
from ..pipelines.seeds import seeded_generator
from ..sources.teacher import Teacher
from ..students.plan import StudentPlan, plan_student
from .gradient import Batch, Objective
from .loop import ObjectiveAt

KEYS = ("images", "timesteps", "noise")


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


def alignment(teacher_config: dict[str, Any], plan: StudentPlan) -> tuple[Red, ...]:
    """Where student and teacher are compared: at the RED blocks of the full placement, those that it has or not."""
    config = family_of(teacher_config)[1].sized(teacher_config, plan.sample_size)
    return plan_student(config, replace(plan.options, red_placement="full")).blocks


def check_terms(loss: LossConfig, aligned: Sequence[Red], micro_batch: int) -> None:
    """Refuse a term that would have nothing to compare, with ``micro_batch`` images at a time in each process.

    Raises:
        UserError: naming the term.
    """
    if loss.feature and not any(block.channels == block.teacher_channels for block in aligned):
        raise UserError(
            "loss.feature is not 0 but no map of the student has as many channels as its teacher's: use loss.fitnet"
        )
    if loss.similarity and micro_batch < 2:
        raise UserError(
            "loss.similarity compares the images of a micro-batch, which has only one: raise training.batch_size"
        )


def make_regressors(loss: LossConfig, aligned: Sequence[Red], seed: int) -> Regressors | None:
    """FitNet's regressors with values drawn from ``seed``, or None without that term."""
    if not loss.fitnet:
        return None
    with torch.random.fork_rng():
        torch.manual_seed(seeded_generator(seed, "fitnet").initial_seed())
        return Regressors([(block.channels, block.teacher_channels) for block in aligned])


class Compared(NamedTuple):
    """What reads the maps of student and teacher, and the tap of each at every place that is compared."""

    student: Reader
    teacher: Reader
    taps: list[tuple[Tap, Tap]]


@contextmanager
def comparing(
    teacher: UNet2DModel, student: RedUNet2DModel, plan: StudentPlan, aligned: Sequence[Red]
) -> Iterator[Compared]:
    """Within the block the maps at ``aligned`` (of ``alignment``) can be read; on leaving no hook is left."""
    taps = [(_student_tap(block, plan), Tap(block.teacher_layer, block.teacher_side)) for block in aligned]
    with reading(student, [own for own, _ in taps]) as own, reading(teacher, [its for _, its in taps]) as its:
        yield Compared(own, its, taps)


def objective_of_steps(
    teacher: Teacher,
    plan: StudentPlan,
    loss: LossConfig,
    compared: Compared,
    steps: int,
    device: torch.device,
    null: int | None = None,
) -> ObjectiveAt:
    """The objective of each of ``steps``: all terms, and past ``loss.feature_share`` of them none on feature maps."""
    without = replace(loss, **dict.fromkeys(FEATURE_TERMS, 0.0))  # type: ignore[arg-type]
    first, then = (distillation_objective(teacher, plan, terms, compared, device, null) for terms in (loss, without))
    share = max(1, round(float(loss.feature_share or 0) * steps))
    return lambda step: first if step < share else then


def distillation_objective(
    teacher: Teacher,
    plan: StudentPlan,
    loss: LossConfig,
    compared: Compared,
    device: torch.device,
    null: int | None = None,
) -> Objective:
    """The loss parts of a batch, by name, unweighted: task, and all others that have a weight.

    The objective takes the student and the batch, and with ``loss.fitnet`` the regressors. ``null``: the label of the
    null class, which ``loss.guidance`` needs.
    """
    teacher_type = teacher.scheduler.config.prediction_type
    alphas_cumprod = teacher.scheduler.alphas_cumprod.to(device)
    clips = loss.clip_sample and teacher.scheduler.config.clip_sample
    limit = float(teacher.scheduler.config.clip_sample_range) if clips else math.inf
    terms = feature_terms(loss)

    def run_teacher(
        noisy: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, Maps]:
        """Its prediction where ``loss.output`` needs it, and its maps at the taps."""
        if not terms and not loss.output:
            return None, {}
        if loss.guidance is not None:  # twice in one batch, with the labels and with the null class
            assert labels is not None
            assert null is not None
            noisy, timesteps, labels = noisy.repeat(2, 1, 1, 1), timesteps.repeat(2), with_null(labels, null)
        # Not inference_mode: the losses keep these maps for their backward, where inference tensors are refused.
        with torch.no_grad():
            output, maps = compared.teacher.run(teacher.unet, noisy, timesteps, labels, to_last_tap=not loss.output)
        prediction = None if output is None else output.sample.float()
        if loss.guidance is None or prediction is None:
            return prediction, maps
        return guided(prediction, loss.guidance), {tap: values[: len(values) // 2] for tap, values in maps.items()}

    def objective(network: nn.Module, batch: Batch, regressors: nn.Module | None = None) -> dict[str, torch.Tensor]:
        images, timesteps, noise, labels = *(batch[key] for key in KEYS), batch.get("class_labels")
        abar = alphas_cumprod[timesteps]
        noisy = noisy_of(images, noise, abar)
        # The teacher first: its working memory is free again before the student's activations are kept.
        teacher_prediction, teacher_maps = run_teacher(noisy, timesteps, labels)
        if terms:
            output, student_maps = compared.student.run(network, noisy, timesteps, labels)
        else:
            output, student_maps = network(noisy, timesteps, labels), {}
        epsilon = epsilon_of(output.sample.float(), noisy, abar, str(plan.options.prediction_type))
        weight = timestep_weight(abar, str(loss.weighting), float(loss.gamma or 0))
        forgiven = forgive_clipped(epsilon, noise, images, noisy, abar, limit) if clips else epsilon
        parts = {"task": task_loss(forgiven, noise, weight)}
        if teacher_prediction is not None:
            target = epsilon_of(teacher_prediction, noisy, abar, teacher_type)
            forgiven = epsilon
            if clips:
                target_sample = sample_predicted(teacher_prediction, noisy, abar, teacher_type).clamp(-limit, limit)
                target = epsilon_of(target_sample, noisy, abar, "sample")
                forgiven = forgive_clipped(epsilon, target, target_sample, noisy, abar, limit)
            parts["output"] = output_loss(forgiven, target, weight)
        if not terms:
            return parts
        pairs: list[Pair] = [(student_maps[own], teacher_maps[its]) for own, its in compared.taps]
        of_term = {"feature": [pair for pair in pairs if pair[0].shape[1] == pair[1].shape[1]]}
        if regressors is not None and "fitnet" in terms:
            regressed = regressors([own for own, _ in pairs])
            of_term["fitnet"] = list(zip(regressed, (its for _, its in pairs), strict=True))
        for name, term in terms.items():
            parts[name] = mean_over_pairs(term, of_term.get(name, pairs))
        return parts

    return objective


def _student_tap(place: Red, plan: StudentPlan) -> Tap:
    """What leaves the RED block there, or where the student has none, what the layer takes in or puts out."""
    if any(block.name == place.name for block in plan.blocks):
        return Tap(place.name, "output")
    return Tap(place.path, "input" if place.side == "red_in" else "output")
