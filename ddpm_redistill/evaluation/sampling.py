"""Sample a model: image k is a function of (seed, k), in batches, and how fast they came.

The batch size enters by float rounding alone: between 1, 7 and 64, at most 2 of 131,072 pixels of builtin:digits
(128 images, 25 steps of any sampler) differed, by one level of 255. So "the same bytes" needs the same batch size.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from ..errors import UserError
from ..pipelines.batch_sampler import BatchSampler
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline, choose_scheduler
from ..sources.model_config import check_own_size
from ..sources.teacher import load_pipeline

Item = TypeVar("Item")


@dataclass(frozen=True)
class Samples:
    """``images``: uint8 (N, C, H, W); ``seconds``: time spent sampling them."""

    images: torch.Tensor
    seconds: float

    @property
    def images_per_second(self) -> float:
        return len(self.images) / self.seconds


def open_for_sampling(
    ref: str,
    scheduler: str,
    *,
    spacing: str | None = None,
    eta: float = 0.0,
    lean: str | None = None,
    dtype: str = "float32",
    compile: bool | str = "auto",
    device: torch.device | str | None = None,
) -> RedDDPMPipeline:
    """A pipeline with the named sampler (``RedDDPMPipeline.set_scheduler``); ``lean``: a setting of lean execution;
    ``compile``: as ``RedDDPMPipeline``; ``device``: the GPU where there is one, unless named.

    Raises:
        UserError: as ``load_pipeline`` and ``check_own_size``; an unknown scheduler, or a spacing or eta that it cannot
            use; lean and ``compile=True``.
    """
    check_sampler(scheduler, spacing, eta)
    if lean is not None and compile is True:
        raise UserError("lean execution is not compiled: leave out --lean, or give --compile auto or off")
    pipeline = load_pipeline(ref, lean=lean or False).set_scheduler(scheduler, spacing=spacing, eta=eta)
    pipeline.compile = compile
    check_own_size(ref, pipeline.unet.config)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return pipeline.to(device, getattr(torch, dtype))


def check_sampler(scheduler: str, spacing: str | None, eta: float) -> None:
    """Raises UserError for an unknown scheduler, or a spacing or eta that it cannot use."""
    try:
        choose_scheduler(scheduler, spacing, eta)
    except ValueError as error:
        raise UserError(str(error)) from error


def batches_of(num_images: int, batch_size: int) -> list[range]:
    """Image indices 0 ... num_images - 1 in order, batch_size at a time; the last batch may be smaller."""
    return [range(first, min(first + batch_size, num_images)) for first in range(0, num_images, batch_size)]


def sample_batches(
    pipeline: RedDDPMPipeline,
    *,
    num_images: int,
    num_inference_steps: int = 50,
    batch_size: int = 64,
    seed: int = 0,
    label: str = "sampling",
    batches: Sequence[range] | None = None,
    show_progress: bool = True,
    labels: Sequence[int] | None = None,
    guidance: float | None = None,
) -> "SampledBatches":
    """Images 0 ... num_images - 1 of ``seed``, uint8 (<= batch_size, C, H, W) at a time, under one progress bar.

    ``batches``: make these of ``batches_of(num_images, batch_size)`` only. ``labels``, ``guidance``: of a network with
    classes, as ``RedDDPMPipeline.batch_sampler``.

    Raises:
        UserError: as ``check_counts`` and ``check_classes``.
    """
    check_counts(pipeline, num_images, num_inference_steps, batch_size)
    check_classes(pipeline, labels, guidance)
    everything = batches_of(num_images, batch_size)
    # by the whole run, not by what is left of it: a resumed run compiles if the first did
    sampler = pipeline.batch_sampler(
        min(batch_size, num_images),
        num_inference_steps,
        len(everything),
        class_labels=labels,
        guidance_scale=guidance,
    )
    chosen = everything if batches is None else batches
    return SampledBatches(sampler, chosen, seed, label=label, show_progress=show_progress)


class SampledBatches(Iterator[torch.Tensor]):
    """Batches on the CPU, as ``sample_batches`` says. ``seconds``: what it took to sample those that were given so far,
    without what compiling and capturing took before the first.

    A GPU has begun with the next batch when it gives this one, so that it works while the caller does; its seconds are
    by CUDA's events.
    """

    def __init__(
        self, sampler: BatchSampler, batches: Sequence[range], seed: int, *, label: str, show_progress: bool
    ) -> None:
        self.seconds = 0.0
        self._images = self._sample(sampler, batches, seed, label, show_progress)

    def __next__(self) -> torch.Tensor:
        return next(self._images)

    def _sample(
        self, sampler: BatchSampler, batches: Sequence[range], seed: int, label: str, show_progress: bool
    ) -> Iterator[torch.Tensor]:
        if batches:
            sampler.prepare()
        begun: Iterator[Begun] = (begin(sampler, batch, seed) for batch in batches)
        with tqdm(total=sum(map(len, batches)), desc=label, unit="image", disable=not show_progress) as bar:
            for each in one_ahead(begun) if sampler.device.type == "cuda" else begun:
                images, seconds = each.finish()
                self.seconds += seconds
                bar.update(len(images))
                yield images


@dataclass(frozen=True)
class Begun:
    """A batch that a CPU has made, or that a GPU has been told to make: ``images`` uint8 (B, C, H, W) on the CPU, where
    a GPU's arrive by the event ``ended``; ``started`` and ``ended`` of a CPU are seconds."""

    images: torch.Tensor
    started: Any
    ended: Any

    def finish(self) -> tuple[torch.Tensor, float]:
        """The images, and the seconds that they took; waits for a GPU."""
        if isinstance(self.ended, float):
            return self.images, self.ended - self.started
        self.ended.synchronize()
        return self.images, self.started.elapsed_time(self.ended) / 1000


def begin(sampler: BatchSampler, batch: range, seed: int) -> Begun:
    if sampler.device.type == "cuda":
        return begin_on_gpu(sampler, batch, seed)
    started = time.perf_counter()
    images = to_pixels(sampler(batch, seed)).cpu()
    return Begun(images, started, time.perf_counter())


def begin_on_gpu(sampler: BatchSampler, batch: range, seed: int) -> Begun:
    """Returns at once: the images are 8-bit before they cross, into memory that a copy need not be waited for."""
    with torch.cuda.device(sampler.device):
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started.record()
        images = to_pixels(sampler(batch, seed))
        host = torch.empty(images.shape, dtype=images.dtype, pin_memory=True)
        host.copy_(images, non_blocking=True)
        ended.record()
    return Begun(host, started, ended)


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Values in [0, 1] -> uint8, of the same shape and on the same device."""
    return (images * 255).round().to(torch.uint8)


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, each given when the one after it has been taken."""
    waiting: list[Item] = []
    for item in items:
        yield from waiting
        waiting = [item]
    yield from waiting


def check_counts(pipeline: RedDDPMPipeline, num_images: int, num_inference_steps: int, batch_size: int) -> None:
    """Raises UserError for a count that is not positive, more steps than the model's schedule has, or a scheduler that
    cannot be sampled by in so many."""
    for name, value in (
        ("num_images", num_images),
        ("batch_size", batch_size),
        ("steps", num_inference_steps),
    ):
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    limit = pipeline.scheduler.config.num_train_timesteps
    if num_inference_steps > limit:
        raise UserError(f"{num_inference_steps} steps are more than the {limit} timesteps of this model's schedule")
    try:
        pipeline.step_table(num_inference_steps)
    except ValueError as error:
        raise UserError(str(error)) from error


def check_classes(
    pipeline: RedDDPMPipeline, labels: Sequence[int] | None, guidance: float | None
) -> tuple[tuple[int, ...] | None, int]:
    """The labels that images take in turn (None without classes), and the passes of a step: 2 with guidance, else 1.

    Raises:
        UserError: labels or guidance that this model cannot have.
    """
    try:
        turns, doubled = pipeline.check_classes(labels, guidance)
    except ValueError as error:
        raise UserError(str(error)) from error
    return turns, 1 + doubled


def sample_images(pipeline: RedDDPMPipeline, *, num_images: int, **options: Any) -> Samples:
    """All images of ``sample_batches``, with its ``options``, at once, and the seconds they took."""
    batches = sample_batches(pipeline, num_images=num_images, **options)
    images = torch.cat(list(batches))
    return Samples(images, batches.seconds)
