"""The objective of a distillation: what is run on a batch, as far as its weights need it, and the loss parts."""

import math

import torch
from torch import nn

from ..config import LossConfig
from ..core.losses import (
    epsilon_of,
    forgive_clipped,
    noisy_of,
    output_loss,
    sample_predicted,
    task_loss,
    timestep_weight,
)
from ..core.taps import Maps
from ..pipelines.conditioning import guided, with_null
from ..sources.teacher import Teacher
from ..students.plan import StudentPlan
from .comparison import Compared, feature_parts, feature_terms, objectives_by_step
from .gradient import Batch, Objective
from .loop import ObjectiveAt

KEYS = ("images", "timesteps", "noise")


def objective_of_steps(
    teacher: Teacher,
    plan: StudentPlan,
    loss: LossConfig,
    compared: Compared,
    steps: int,
    device: torch.device,
    null: int | None = None,
) -> ObjectiveAt:
    """The objective of each of ``steps``: ``comparison.objectives_by_step``."""
    return objectives_by_step(
        lambda terms: distillation_objective(teacher, plan, terms, compared, device, null), loss, steps
    )


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
        if terms:
            parts |= feature_parts(terms, compared, student_maps, teacher_maps, regressors, str(loss.feature_places))
        return parts

    return objective
