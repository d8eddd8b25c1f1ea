"""What ``evaluate`` measures: a model that makes its images, or images made elsewhere; opened and checked."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ..errors import UserError
from ..files import read_metrics
from ..pipelines.conditioning import Conditioning
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline
from ..sources.folder_files import read_json
from ..sources.image_files import one_line
from ..sources.image_source import ImageSource
from ..sources.teacher import find_model, sha256_of
from .reference import check_measurable, open_image_set
from .sampling import check_classes, check_counts, open_for_sampling, sample_batches

log = logging.getLogger("ddpm_redistill")

NO_IMAGES = ("model_index.json", "config.json", "unet/config.json", "provenance.json")
"""Files of a model's folder, or of a run's: what else is in it are no images to measure."""


@dataclass(frozen=True, eq=False)
class Subject:
    """``ref`` as a person gave it, and one of: the pipeline of a model, images made elsewhere."""

    ref: str
    pipeline: RedDDPMPipeline | None
    images: ImageSource | None

    @property
    def shape(self) -> tuple[int, int]:
        """(channels, pixels a side) of its images. Raises UserError for a network of rectangles."""
        if self.images is not None:
            channels, size, _ = self.images[0].shape
            return channels, size
        assert self.pipeline is not None
        channels, height, width = self.pipeline.image_shape
        if height != width:
            raise UserError(f"{self.ref} makes images of {height} x {width} pixels: squares alone are measured")
        return channels, height

    @property
    def conditioning(self) -> Conditioning | None:
        """Of a network with classes."""
        return self.pipeline.conditioning if self.pipeline is not None else None

    def passes(self, guidance: float | None) -> int:
        """Of the network in a step. Raises UserError for guidance that the model cannot have."""
        if self.pipeline is None:
            return 1
        try:
            return check_classes(self.pipeline, None, guidance)[1]
        except UserError as error:
            raise UserError(f"{self.ref}: {error}") from None

    def guided(self, guidance: float | None) -> dict[str, Any]:
        """For a report: ``guidance``, its scale, 1 where there is none, and ``passes_per_step``, where given
        ``guidance``; empty without classes."""
        if self.conditioning is None:
            return {}
        scale = self.conditioning.learned_guidance if guidance is None else guidance
        return {"guidance": 1.0 if scale is None else scale, "passes_per_step": self.passes(guidance)}

    def check(self, num_images: int, steps: Sequence[int], batch_size: int) -> None:
        """Raises UserError when it cannot give so many images, or be sampled in so many steps."""
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}")
        if self.images is not None and len(self.images) < num_images:
            raise UserError(f"{self.ref} has {len(self.images)} images, {num_images} are needed: lower --num_images")
        if self.pipeline is not None:
            for count in steps:
                check_counts(self.pipeline, num_images, count, batch_size)

    def batches(
        self, num_images: int, steps: int, batch_size: int, seed: int, guidance: float | None
    ) -> Iterator[Tensor]:
        """Its first images, uint8 (<= batch_size, C, H, W) at a time; of a model with classes all classes in turn."""
        if self.pipeline is not None:
            return sample_batches(
                self.pipeline,
                num_images=num_images,
                num_inference_steps=steps,
                batch_size=batch_size,
                seed=seed,
                show_progress=False,
                guidance=guidance,
            )
        images = self.images
        assert images is not None
        starts = range(0, num_images, batch_size)
        return (torch.stack([images[i] for i in range(a, min(a + batch_size, num_images))]) for a in starts)

    def origin(self, name: str, images_sha256: str | None) -> dict[str, Any]:
        """For provenance: the model and the hash of its weights, or of the images that were made elsewhere."""
        if self.pipeline is None:
            return {"images": self.ref, "images_sha256": images_sha256}
        return {name: self.ref, f"{name}_sha256": sha256_of(*find_model(self.ref).weights)}


def open_subject(ref: str, scheduler: str, **options: Any) -> Subject:
    """A model with its sampler and ``options``, as ``open_for_sampling``; or images, if this is an .npz or a folder
    that has no network in it.

    Raises:
        UserError: as ``open_for_sampling`` and ``open_image_set``.
    """
    path = Path(ref).expanduser()
    if path.is_dir():
        of_images = not any((path / name).is_file() for name in NO_IMAGES)
    else:
        of_images = path.is_file() and path.suffix.lower() == ".npz"
    if of_images:
        return Subject(ref, None, open_image_set(ref))
    return Subject(ref, open_for_sampling(ref, scheduler, **options), None)


def common_shape(subjects: Mapping[str, Subject]) -> tuple[int, int]:
    """(channels, pixels a side). Raises UserError when they differ, or cannot be measured."""
    shapes = {subject.ref: subject.shape for subject in subjects.values()}
    if len(set(shapes.values())) > 1:
        said = ", ".join(f"{ref} {size} px, channels {channels}" for ref, (channels, size) in shapes.items())
        raise UserError(f"images of different shape cannot be compared: {said}")
    ref, (channels, size) = next(iter(shapes.items()))
    check_measurable(channels, ref)
    return channels, size


def run_of(model: str) -> dict[str, Any]:
    """``config`` and ``metrics`` (rows) of the run folder that a model lies in; empty for any other model."""
    folder = Path(model).expanduser().parent
    config, curves = folder / "config.yaml", folder / "metrics.jsonl"
    if not config.is_file() or not curves.is_file():
        return {}
    try:
        return {"config": yaml.safe_load(config.read_text()), "metrics": read_metrics(curves)}
    except (OSError, ValueError, yaml.YAMLError) as error:
        log.warning("the run of %s is left out of the report: %s", model, one_line(error))
        return {}


def records_of(model: str) -> dict[str, Any]:
    """provenance.json of the run folder that a model lies in; empty for any other model."""
    path = Path(model).expanduser().parent / "provenance.json"
    if not path.is_file():
        return {}
    try:
        return read_json(path)
    except UserError as error:
        log.warning("the records of the run of %s are left out: %s", model, error)
        return {}
