"""The memory of an optimizer step before any is run: the step itself, on tensors without data.

What is counted is tensors: both networks, all that training holds, the micro-batch and the activations. A
convolution's workspace, an allocator's rounding, images that are kept in memory and the process itself are not; nor
does it know what a compiled step keeps, which is less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import repeat
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..config import LOSS_TERMS, LossConfig, TrainingConfig
from ..core.peak import PeakTracker
from ..families.registry import family_of
from ..sources.teacher import Teacher
from ..students.derive import build_student
from ..students.footprint import network_of
from ..students.plan import StudentPlan
from . import classify
from .classify import teaching_objective
from .comparison import Place, alignment, comparing, feature_terms, make_regressors
from .gradient import Batch, Objective
from .objective import distillation_objective
from .step import OptimizerStep

DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU = torch.device("cpu")


class StepMemory(NamedTuple):
    """Bytes of tensors: ``held`` from one step to the next, ``peak`` the most alive at once, with these."""

    held: int
    peak: int


class Alone:
    """What a step asks of Accelerate, for one process: a real ``Accelerator`` settles the precision of all that this
    process will ever train."""

    num_processes = 1

    def __init__(self, mixed_precision: str, device: torch.device):
        self.device, self.dtype = device, DTYPES[mixed_precision]
        self.scaler = torch.amp.GradScaler(device.type) if mixed_precision == "fp16" else None

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def prepare(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        optimizer.step_was_skipped = False  # type: ignore[attr-defined]
        return optimizer

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def unscale_gradients(self) -> None:
        """In place, by a scalar."""


def distillation_memory(
    teacher_config: dict[str, Any],
    scheduler: DDPMScheduler,
    plan: StudentPlan,
    loss: LossConfig,
    training: TrainingConfig,
    *,
    null: int | None = None,
    processes: int = 1,
    device: torch.device = CPU,
    fake: bool = True,
) -> StepMemory:
    """Of a step of ``distill`` in each of ``processes``, run eagerly, while the loss has all of its terms.

    Args:
        scheduler: the teacher's.
        null: the label of the null class, which ``loss.guidance`` needs.
        device: where it would be trained; that need only be there for a GPU.
        fake: False runs it for real, from random weights, and measures.
    """
    config = family_of(teacher_config)[1].sized(teacher_config, plan.sample_size)
    aligned = alignment(teacher_config, plan, str(loss.feature_places))
    weights = {name: float(getattr(loss, name)) for name in LOSS_TERMS}
    with _without_data(fake), device:
        unet, student = _with_weights(network_of(config)), build_student(config, plan)
        regressors = make_regressors(loss, aligned, seed=0)
        teacher = Teacher(unet.requires_grad_(False), scheduler, "", "")
        with comparing(unet, student, aligned if feature_terms(loss) else ()) as compared:
            objective = distillation_objective(teacher, plan, loss, compared, device, null)
            batches = _noise_batches(student, training, processes, device)
            return _measured(student, regressors, objective, weights, training, batches, device, unet.parameters())


def teaching_memory(
    unet: UNet2DModel,
    objective: Objective,
    training: TrainingConfig,
    *,
    processes: int = 1,
    device: torch.device = CPU,
    fake: bool = True,
) -> StepMemory:
    """Of a step of ``teach``: arguments as ``distillation_memory``; ``unet`` is not changed."""
    with _without_data(fake), device:
        network = _with_weights(unet)
        batches = _noise_batches(network, training, processes, device)
        return _measured(network, None, objective, {"task": 1.0}, training, batches, device)


def classification_memory(
    student: Callable[[], nn.Module],
    training: TrainingConfig,
    shape: tuple[int, int, int],
    *,
    teacher: Callable[[], nn.Module] | None = None,
    places: Sequence[Place] = (),
    loss: LossConfig | None = None,
    processes: int = 1,
    device: torch.device = CPU,
    fake: bool = True,
) -> StepMemory:
    """Of a step of a classifier that learns labels, or of a student of ``teacher`` with ``loss``; as above.

    Args:
        student, teacher: each makes its network, where tensors are made when it is called.
        shape: (C, H, W) of an image.
        places: where the two are compared.
    """
    with _without_data(fake), device:
        network, batches = student(), _image_batches(shape, training, processes, device)
        if teacher is None or loss is None:
            return _measured(network, None, teaching_objective, {"task": 1.0}, training, batches, device)
        frozen = teacher().requires_grad_(False).eval()
        weights = {name: float(getattr(loss, name)) for name in LOSS_TERMS}
        regressors = make_regressors(loss, places, seed=0)
        with comparing(frozen, network, places if feature_terms(loss) else ()) as compared:
            objective = classify.distillation_objective(frozen, loss, compared)
            kept = [*frozen.parameters(), *frozen.buffers()]
            return _measured(network, regressors, objective, weights, training, batches, device, kept)


def _measured(
    network: nn.Module,
    loss_modules: nn.Module | None,
    objective: Objective,
    weights: dict[str, float],
    training: TrainingConfig,
    batches: Iterator[Batch],
    device: torch.device,
    frozen: Iterable[Tensor] = (),
) -> StepMemory:
    """An optimizer makes its state in its first step, so that every later one has the peak of a step that finds it
    there: it is given a first step without a gradient."""
    kept = [*frozen, *network.buffers()]
    before = sum(t.nbytes for t in kept)
    accelerator = cast(Accelerator, Alone(training.mixed_precision, device))
    # Past the second micro-batch nothing new is alive.
    training = replace(training, compile="off", gradient_accumulation=min(2, training.gradient_accumulation))
    with PeakTracker(kept) as tracker:
        step = OptimizerStep(network, loss_modules, weights, training, accelerator)
        step.prepared_optimizer.step()
        held = tracker.live_bytes
        step(objective, batches, training.learning_rate)
        return StepMemory(before + held, before + tracker.peak_bytes)


def _noise_batches(
    network: UNet2DModel, training: TrainingConfig, processes: int, device: torch.device
) -> Iterator[Batch]:
    """What ``draws.micro_batches`` gives and holds, without anything drawn."""
    size = network.config.sample_size
    shape = (network.config.in_channels, *((size, size) if isinstance(size, int) else size))
    count = training.global_batch // (processes * training.gradient_accumulation)
    noise = torch.zeros(training.global_batch, *shape, device=device)
    labels = torch.zeros(training.global_batch, dtype=torch.long, device=device)
    for _ in repeat(None):
        pixels = torch.zeros(count, *shape, dtype=torch.uint8, device=device)
        batch = {"images": pixels.float(), "noise": noise[:count], "timesteps": labels[:count]}
        yield batch if network.class_embedding is None else {**batch, "class_labels": labels[:count]}


def _image_batches(
    shape: tuple[int, int, int], training: TrainingConfig, processes: int, device: torch.device
) -> Iterator[Batch]:
    """The same of a classifier."""
    count = training.global_batch // (processes * training.gradient_accumulation)
    labels = torch.zeros(training.global_batch, dtype=torch.long, device=device)
    for _ in repeat(None):
        pixels = torch.zeros(count, *shape, dtype=torch.uint8, device=device)
        yield {"images": pixels.float(), "class_labels": labels[:count]}


def _without_data(fake: bool) -> AbstractContextManager[Any]:
    return FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext()


def _with_weights(unet: UNet2DModel) -> UNet2DModel:
    """The same network with new random weights, where tensors are made now."""
    return cast(UNet2DModel, type(unet).from_config(unet.config)).eval()
