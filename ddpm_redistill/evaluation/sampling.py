"""Sample a model: image k is a function of (seed, k), in batches, and how fast they came.

The batch size enters by float rounding alone: between 1, 7 and 64, at most 2 of 131,072 pixels of builtin:digits
(128 images, 25 steps of any sampler) differed, by one level of 255. So "the same bytes" needs the same batch size.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from ..errors import UserError
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline, choose_scheduler
from ..sources.model_config import check_own_size
from ..sources.teacher import load_pipeline


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
    device: torch.device | str | None = None,
) -> RedDDPMPipeline:
    """A pipeline with the named sampler (``RedDDPMPipeline.set_scheduler``); ``lean``: a setting of lean execution;
    ``device``: the GPU where there is one, unless named.

    Raises:
        UserError: as ``load_pipeline`` and ``check_own_size``; an unknown scheduler, or a spacing or eta that it cannot
            use.
    """
    check_sampler(scheduler, spacing, eta)
    pipeline = load_pipeline(ref, lean=lean or False).set_scheduler(scheduler, spacing=spacing, eta=eta)
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
) -> Iterator[torch.Tensor]:
    """Images 0 ... num_images - 1 of ``seed``, uint8 (<= batch_size, C, H, W) at a time, under one progress bar.

    ``batches``: make these of ``batches_of(num_images, batch_size)`` only.

    Raises:
        UserError: a count that is not positive, or more steps than the schedule has.
    """
    check_counts(pipeline, num_images, num_inference_steps, batch_size)
    pipeline.set_progress_bar_config(disable=True)
    if batches is None:
        batches = batches_of(num_images, batch_size)
    with tqdm(total=sum(map(len, batches)), desc=label, unit="image", disable=not show_progress) as bar:
        for batch in batches:
            images = pipeline(
                len(batch),
                seed=seed,
                first_index=batch.start,
                num_inference_steps=num_inference_steps,
                batch_size=len(batch),
                output_type="pt",
            ).images
            bar.update(len(images))
            yield (images * 255).round().to(torch.uint8)


def check_counts(pipeline: RedDDPMPipeline, num_images: int, num_inference_steps: int, batch_size: int) -> None:
    """Raises UserError for a count that is not positive, or more steps than the model's schedule has."""
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


def sample_images(
    pipeline: RedDDPMPipeline,
    *,
    num_images: int,
    num_inference_steps: int = 50,
    batch_size: int = 64,
    seed: int = 0,
    label: str = "sampling",
) -> Samples:
    """All images of ``sample_batches`` at once, and the seconds they took."""
    batches = sample_batches(
        pipeline,
        num_images=num_images,
        num_inference_steps=num_inference_steps,
        batch_size=batch_size,
        seed=seed,
        label=label,
    )
    started = time.perf_counter()
    images = torch.cat(list(batches))
    return Samples(images, time.perf_counter() - started)
