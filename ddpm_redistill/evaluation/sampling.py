"""Sample a model: the same images for the same seed, whatever the batch size, and how fast they came."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm

from ..errors import UserError
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline


@dataclass(frozen=True)
class Samples:
    """``images``: uint8 (N, C, H, W); ``seconds``: time spent sampling them."""

    images: torch.Tensor
    seconds: float

    @property
    def images_per_second(self) -> float:
        return len(self.images) / self.seconds


def sample_batches(
    pipeline: RedDDPMPipeline,
    *,
    num_images: int,
    num_inference_steps: int = 50,
    batch_size: int = 64,
    seed: int = 0,
    label: str = "sampling",
) -> Iterator[torch.Tensor]:
    """Images 0 ... num_images - 1 of ``seed``, uint8 (<= batch_size, C, H, W) at a time, under one progress bar.

    Raises:
        UserError: a count that is not positive, or more steps than the schedule has.
    """
    check_counts(pipeline, num_images, num_inference_steps, batch_size)
    pipeline.set_progress_bar_config(disable=True)
    with tqdm(total=num_images, desc=label, unit="image") as bar:
        for first in range(0, num_images, batch_size):
            images = pipeline(
                min(batch_size, num_images - first),
                seed=seed,
                first_index=first,
                num_inference_steps=num_inference_steps,
                batch_size=batch_size,
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
