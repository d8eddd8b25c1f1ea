"""``evaluate``: a model, or images made elsewhere, against data and against its teacher; one report."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from ..errors import UserError
from ..pipelines.image_noise import NOISE
from ..provenance import environment
from ..sources.images import check_data_range
from ..students.decoder_memory import decoder_memory
from ..students.footprint import MOST_SAVING, memory_profiles, profiles_report
from .batch_size import choose_batch_size
from .classes import figures_by_class
from .extractors import choose_extractor
from .feature_cache import cached_features
from .features import Features, Statistics
from .measure import Measured, measure_together
from .metrics import compare, distance_warnings, inception_score
from .nearest import nearest_images, nearest_picture, nearest_summary
from .pages.pictures import GRID_COLUMNS, side_by_side
from .reference import reference_images
from .report import write_report
from .set_grids import images_shown, set_grids
from .shared_classes import shared_classes
from .statistics import holds_statistics, load_statistics
from .subjects import Subject, common_shape, open_subject, run_of
from .timestep_error import error_by_timestep

log = logging.getLogger("ddpm_redistill")

NEAREST_SHOWN = 16
PAIRS = (("student", "data"), ("teacher", "data"), ("student", "teacher"))


def evaluate(
    model: str,
    *,
    teacher: str | None = None,
    data: str | None = None,
    data_range: float | None = None,
    num_images: int = 2000,
    steps: int | Sequence[int] = 50,
    scheduler: str = "ddim",
    spacing: str | None = None,
    eta: float = 0.0,
    batch_size: int | None = None,
    dtype: str = "float32",
    compile: bool | str = "auto",
    guidance: float | None = None,
    seed: int = 0,
    inception_weights: str | None = None,
    extractor: str | None = None,
    output_dir: str | Path,
) -> dict[str, Any]:
    """Sample the model (and its teacher from the same noise), measure, and write report.json and report.html.

    No set is ever held as images: of each image its features are kept, and its errors against its pair.

    Args:
        model: a model; or images made elsewhere, a folder of them or an .npz, taken as they are.
        teacher: a model that is sampled beside it.
        data: a data source, or an .npz of statistics.
        data_range: of the data source, as ``open_images``.
        num_images: of each set; of images made elsewhere, the first ones.
        steps: network evaluations an image (NFE), one or several; the report's main part is of the last.
        scheduler, spacing, eta: as ``RedDDPMPipeline.set_scheduler``.
        batch_size: images sampled at once; None: as ``choose_batch_size``.
        dtype: of the networks' weights and activations: "float32", "bfloat16" or "float16".
        compile: as ``RedDDPMPipeline``.
        guidance: of models with classes, as ``RedDDPMPipeline.batch_sampler``; None: each as it is.
        inception_weights, extractor: as ``choose_extractor``.

    Returns:
        The report; report.schema.json says what is in it.

    Raises:
        UserError: a mistake in any argument, before anything is sampled.
    """
    # 1. everything that can be wrong, first
    if teacher is None and data is None:
        raise UserError("nothing to compare with: give --teacher, --data or both")
    if num_images < 2:
        raise UserError(f"num_images must be at least 2 for a distance, not {num_images}")
    statistics = data is not None and holds_statistics(Path(data).expanduser())
    check_data_range(data_range, images=data is not None and not statistics)
    chosen = choose_extractor(inception_weights, extractor)
    counts = [steps] if isinstance(steps, int) else list(steps)
    options: dict[str, Any] = {"spacing": spacing, "eta": eta, "dtype": dtype, "compile": compile}
    subjects = {"student": open_subject(model, scheduler, **options)}
    if teacher is not None:
        subjects["teacher"] = open_subject(teacher, scheduler, **options)
    channels, image_size = common_shape(subjects)
    pipelines = {name: subject.pipeline for name, subject in subjects.items() if subject.pipeline is not None}
    for subject in subjects.values():
        subject.check(num_images, counts, 1 if batch_size is None else batch_size)
    images = reference = None
    if data is not None and statistics:
        reference = load_statistics(Path(data).expanduser(), chosen)
    elif data is not None:
        size: dict[str, Any] = {"image_size": image_size, "channels": channels}
        images = reference_images(data, **size, num_images=num_images, seed=seed, data_range=data_range)
    classes = shared_classes(subjects, images, data, num_images)
    passes = _passes(subjects, guidance)
    why = None
    if batch_size is None:
        batch_size, why = choose_batch_size([*pipelines.values()], num_images, passes)
    Path(output_dir).mkdir(parents=True, exist_ok=True)  # an OSError now, not after hours
    log.info("distances by %s: %s", chosen.name, chosen.reason)
    if why is not None:
        log.info("batch size %d: %s", batch_size, why)

    # 2. sampled and measured, a batch at a time, student and teacher from the same noise
    if images is not None:
        reference = cached_features(images, chosen, progress="features of the data")
    guided = {name: subject.guided(guidance) for name, subject in subjects.items()}
    sweep = []
    for count in counts if pipelines else counts[-1:]:
        sets = {name: each.batches(num_images, count, batch_size, seed, guidance) for name, each in subjects.items()}
        label = f"{' and '.join(sets)}, {count} steps" if pipelines else "features of the images"
        measured, paired = measure_together(
            sets, chosen, num_images=num_images, shown=images_shown(classes), label=label
        )
        features: dict[str, Features | Statistics] = {name: found.features for name, found in measured.items()}
        if reference is not None:
            features["data"] = reference
        distances = {f"{a}_to_{b}": _compare(features[a], features[b]) for a, b in PAIRS if {a, b} <= features.keys()}
        speed = {name: _speed(sets[name], num_images, count, batch_size) | guided[name] for name in pipelines}
        sweep.append({"num_inference_steps": count, **distances, "speed": speed})

    # 3. what is looked at once, with the images of the last number of steps
    scores = {name: inception_score(found.features) for name, found in measured.items()}
    report: dict[str, Any] = {
        "distances": {
            "extractor": chosen.to_dict(),
            "num_images": num_images,
            **({"num_inference_steps": counts[-1]} if pipelines else {}),
            **distances,
            **({"inception_score": scores} if all(scores.values()) else {}),
            "warnings": [*distance_warnings(*features.values()), *_guidance_warnings(guided)],
        },
        "speed": speed,
    }
    if classes is not None and classes.have_pairs:
        assert isinstance(reference, Features)
        sets_measured = {name: found.features for name, found in measured.items()} | {"data": reference}
        report["classes"] = figures_by_class(classes, sets_measured)
    if paired is not None and len(pipelines) == 2:  # image k of both from the same noise
        report["paired"] = paired
    if len(sweep) > 1:
        report["steps"] = sweep
    if images is not None and pipelines:
        labels = None if classes is None else classes.for_networks
        try:
            report["timestep_error"] = error_by_timestep(
                pipelines, images, batch_size=batch_size, seed=seed, labels=labels, guidance=guidance
            )
        except UserError as error:  # different noise schedules, or data without labels: all else compares
            log.warning("the error by timestep is left out: %s", error)
    pictures: dict[str, Image.Image] = {}
    if images is not None:
        assert isinstance(reference, Features)
        values = {name: found.features.values for name, found in measured.items()}
        report["nearest"] = nearest_summary(values, reference.values)
        pictures["nearest"] = _nearest_of_some(measured["student"], images, reference)
    profiles = {name: memory_profiles(p.unet, settings=(MOST_SAVING,)) for name, p in pipelines.items()}
    report["memory"] = {name: profiles_report(found) for name, found in profiles.items()}
    for name, pipeline in pipelines.items():
        if pipeline.vqvae is not None:
            report["memory"][name] |= decoder_memory(pipeline.vqvae.config, pipeline.sample_shape[-1])
    student = pipelines.get("student")
    report["plan"] = dict(student.unet.config).get("student_plan") if student else None
    sampler = {"num_inference_steps": counts, "scheduler": scheduler, "spacing": spacing, "eta": eta, "dtype": dtype}
    sampler |= {"noise": NOISE, **({"guidance": guidance} if any(guided.values()) else {})}
    run = run_of(model) if student else {}
    names = {"student": "model", "teacher": "teacher"}
    report["provenance"] = {
        **{
            key: value
            for name, subject in subjects.items()
            for key, value in subject.origin(names[name], measured[name].features.images_sha256).items()
        },
        **({"data": data} if data is not None else {}),
        **({"data_range": data_range} if data_range is not None else {}),
        **({"num_data_images": reference.num_images, "data_sha256": reference.images_sha256} if reference else {}),
        **(sampler if pipelines else {}),
        "seed": seed,
        **environment(),
        **({"config": run["config"]} if run else {}),
    }

    # 4. the page
    shown = {name: found.first for name, found in measured.items()}
    grids, by_class = set_grids(shown, images, classes)
    page = write_report(
        report,
        Path(output_dir),
        grids=grids,
        metrics_rows=run.get("metrics"),
        pictures=pictures,
        timelines={name: found[None].timeline for name, found in profiles.items()},
        by_class=by_class,
    )
    side_by_side(grids).save(page.with_name("comparison.png"))
    log.info("report written to %s", page)
    return report


def _passes(subjects: Mapping[str, Subject], guidance: float | None) -> int:
    """The most of a model in a step. Raises UserError for guidance that one cannot have."""
    if guidance is not None and all(subject.pipeline is None for subject in subjects.values()):
        raise UserError("guidance is of models, and images made elsewhere are as they are: leave it out")
    return max(subject.passes(guidance) for subject in subjects.values())


def _guidance_warnings(guided: Mapping[str, Mapping[str, Any]]) -> list[str]:
    scales = {name: each["guidance"] for name, each in guided.items() if each}
    if len(set(scales.values())) < 2:
        return []
    said = " and ".join(f"{name} {scale:g}" for name, scale in scales.items())
    return [f"the models are sampled with different guidance ({said}): give --guidance to sample both with one"]


def _compare(a: Features | Statistics, b: Features | Statistics) -> dict[str, Any]:
    assert isinstance(a, Features)  # only the data may be statistics, and it comes second
    return compare(a, b)


def _nearest_of_some(measured: Measured, images: Subset[Tensor], reference: Features) -> Image.Image:
    """Of the first samples those that are nearest to the data: copies would be among them."""
    indices, distances = nearest_images(measured.features.values[: len(measured.first)], reference.values)
    order = distances.argsort()[:NEAREST_SHOWN]
    neighbours = torch.stack([images[int(index)] for index in indices[order]])
    return nearest_picture(measured.first[order], neighbours, distances[order], GRID_COLUMNS)


def _speed(images: Any, num_images: int, num_inference_steps: int, batch_size: int) -> dict[str, Any]:
    """``images``: the ``SampledBatches`` that were taken."""
    return {
        "images_per_second": num_images / images.seconds,
        "seconds": images.seconds,
        "num_images": num_images,
        "num_inference_steps": num_inference_steps,
        "batch_size": batch_size,
    }
