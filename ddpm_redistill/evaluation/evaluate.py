"""``evaluate``: a model against data and against its teacher: distances, memory, speed, one report."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

from ..errors import UserError
from ..files import read_metrics
from ..pipelines.pipeline_red_ddpm import SCHEDULERS, RedDDPMPipeline, seeded_generator
from ..provenance import environment
from ..sources.images import open_images
from ..sources.teacher import find_model, load_pipeline, sha256_of
from ..students.footprint import memory_report
from .extractors import choose_extractor
from .metrics import extract_features, frechet_and_kid, inception_score
from .pictures import image_grid, side_by_side
from .report import write_report
from .sampling import Samples, check_counts, sample_images

log = logging.getLogger("ddpm_redistill")

GRID_IMAGES = 40
GRID_COLUMNS = 8


def evaluate(
    model: str,
    *,
    teacher: str | None = None,
    data: str | None = None,
    num_images: int = 2000,
    num_inference_steps: int = 50,
    scheduler: str = "ddim",
    batch_size: int = 64,
    seed: int = 0,
    inception_weights: str | None = None,
    output_dir: str | Path,
) -> dict[str, Any]:
    """Sample the model (and its teacher from the same noise), measure, and write report.json and report.html.

    Returns:
        The report: ``distances``, ``memory`` (bytes at batch 1), ``speed``, ``plan``, ``provenance``.

    Raises:
        UserError: a mistake in any argument, before anything is sampled.
    """
    # 1. everything that can be wrong, first
    if teacher is None and data is None:
        raise UserError("nothing to compare with: give --teacher, --data or both")
    if num_images < 2:
        raise UserError(f"num_images must be at least 2 for a distance, not {num_images}")
    extractor = choose_extractor(inception_weights).to("cuda" if torch.cuda.is_available() else "cpu")
    pipelines = {"student": open_for_sampling(model, scheduler)}
    if teacher is not None:
        pipelines["teacher"] = open_for_sampling(teacher, scheduler)
        shapes = {(p.unet.config.in_channels, str(p.unet.config.sample_size)) for p in pipelines.values()}
        if len(shapes) > 1:
            raise UserError(f"{model} and {teacher} make images of different shape (channels, pixels): {shapes}")
    for pipeline in pipelines.values():
        check_counts(pipeline, num_images, num_inference_steps, batch_size)
    real = data_sample(pipelines["student"], data, num_images, seed) if data is not None else None
    log.info("distances by %s: %s", extractor.name, extractor.reason)

    # 2. samples of both from the same noise
    samples = {
        name: sample_images(
            pipeline,
            num_images=num_images,
            num_inference_steps=num_inference_steps,
            batch_size=batch_size,
            seed=seed,
            label=f"sampling {name}",
        )
        for name, pipeline in pipelines.items()
    }

    # 3. distances: each set's features once
    sets: dict[str, Any] = {name: result.images for name, result in samples.items()}
    if real is not None:
        sets["data"] = real
    features = {
        name: extract_features(images, extractor, progress=f"features of {name}") for name, images in sets.items()
    }
    distances: dict[str, Any] = {"extractor": extractor.to_dict(), "num_images": num_images}
    for first, second in (("student", "data"), ("teacher", "data"), ("student", "teacher")):
        if first in features and second in features:
            distances[f"{first}_to_{second}"] = frechet_and_kid(features[first], features[second])
    scores = {name: inception_score(features[name]) for name in samples}
    if all(scores.values()):  # none without Inception
        distances["inception_score"] = scores

    # 4. the report
    report = {
        "distances": distances,
        "memory": {name: memory_report(pipeline.unet) for name, pipeline in pipelines.items()},
        "speed": {name: speed_of(result, num_inference_steps, batch_size) for name, result in samples.items()},
        "plan": dict(pipelines["student"].unet.config).get("student_plan"),
        "provenance": {
            "model": model,
            "model_sha256": sha256_of(find_model(model).weights),
            **({"teacher": teacher, "teacher_sha256": sha256_of(find_model(teacher).weights)} if teacher else {}),
            **({"data": data} if data else {}),
            "scheduler": scheduler,
            "num_inference_steps": num_inference_steps,
            "seed": seed,
            **environment(),
        },
    }
    shown = {name: result.images[:GRID_IMAGES] for name, result in samples.items()}
    if real is not None:
        shown["data"] = torch.stack([real[i] for i in range(min(GRID_IMAGES, len(real)))])
    order = sorted(shown)  # data, student, teacher
    grids = {name: image_grid(shown[name], GRID_COLUMNS) for name in order}
    curves = Path(model).parent / "metrics.jsonl"
    rows = read_metrics(curves) if curves.is_file() else None
    page = write_report(report, Path(output_dir), grids=grids, metrics_rows=rows)
    side_by_side(grids).save(page.with_name("comparison.png"))
    log.info("report written to %s", page)
    return report


def open_for_sampling(ref: str, scheduler: str, lean: str | None = None, dtype: str = "float32") -> RedDDPMPipeline:
    """A pipeline with the named sampler, on the GPU where there is one; ``lean``: a setting of lean execution.

    Raises:
        UserError: as ``load_pipeline``, or an unknown scheduler.
    """
    if scheduler not in SCHEDULERS:
        raise UserError(f"unknown scheduler {scheduler!r}: expected one of {', '.join(SCHEDULERS)}")
    pipeline = load_pipeline(ref, lean=lean or False).set_scheduler(scheduler)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu", getattr(torch, dtype))


def data_sample(pipeline: RedDDPMPipeline, source: str, num_images: int, seed: int) -> Subset[torch.Tensor]:
    """``num_images`` images of a source, chosen by ``seed``, at the model's size. Raises UserError if it has fewer."""
    config = pipeline.unet.config
    images = open_images(source, image_size=config.sample_size, channels=config.in_channels)
    if len(images) < num_images:
        raise UserError(f"{source} has {len(images)} images, {num_images} are needed: lower --num_images")
    log.info("data: %s", images.description)
    order = torch.randperm(len(images), generator=seeded_generator(seed, "evaluate"))
    return Subset(images, order[:num_images].tolist())


def speed_of(samples: Samples, num_inference_steps: int, batch_size: int) -> dict[str, Any]:
    return {
        "images_per_second": samples.images_per_second,
        "seconds": samples.seconds,
        "num_images": len(samples.images),
        "num_inference_steps": num_inference_steps,
        "batch_size": batch_size,
    }
