"""The memory of a training step of a planned student with the default recipe, before there is a run."""

from collections.abc import Callable
from typing import Any

from ..config import DistillConfig, LossConfig, TrainingConfig
from ..families.classifier_config import config_from_dict
from ..families.classifier_files import build
from ..families.registry import family_named, family_of
from ..recipes import classifier_loss, resolve
from ..sources.noise_schedule import noise_schedule
from ..students.derive import build_student
from ..students.plan import StudentPlan
from .comparison import alignment
from .step_memory import StepMemory, classification_memory, distillation_memory


def planned_step(model: Any, plan: StudentPlan, batch_size: int) -> dict[str, int]:
    """Bytes of an eager step with ``batch_size`` images at once, as JSON has them.

    Args:
        model: the teacher, as ``find_network`` has found it.
    """
    task = family_named(plan.family).TASK
    steps = OF_TASK[task](model, plan)
    eager = steps(TrainingConfig(batch_size=batch_size))
    found = {"batch_size": batch_size, "held": eager.held, "tensor_peak": eager.peak}
    if task in CHECKPOINTED:
        checkpointed = steps(TrainingConfig(batch_size=batch_size, gradient_checkpointing=True))
        found["tensor_peak_checkpointed"] = checkpointed.peak
    return found


def _of_ddpm(model: Any, plan: StudentPlan) -> Callable[[TrainingConfig], StepMemory]:
    scheduler, loss = noise_schedule(model.ref, model.scheduler), resolve(DistillConfig(student=plan.options)).loss
    return lambda training: distillation_memory(model.config, scheduler, plan, loss, training)


def _of_classifier(model: Any, plan: StudentPlan) -> Callable[[TrainingConfig], StepMemory]:
    config = family_of(model.config)[1].sized(model.config, plan.sample_size)
    told, loss = config_from_dict(config, model.ref), classifier_loss(LossConfig(), plan.options)
    return lambda training: classification_memory(
        lambda: build_student(config, plan),
        training,
        (told.in_channels, plan.sample_size, plan.sample_size),
        teacher=lambda: build(told),
        places=alignment(config, plan, str(loss.feature_places)),
        loss=loss,
    )


OF_TASK = {"denoise": _of_ddpm, "classify": _of_classifier}
CHECKPOINTED = ("denoise",)
"""Tasks whose networks can compute their activations again in the backward pass."""
