"""``evaluate``: a model, or images made elsewhere, against data and against its teacher; one report."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ..errors import UserError
from ..files import read_metrics
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline
from ..provenance import environment
from ..sources.teacher import find_model, sha256_of
from ..students.footprint import MOST_SAVING, memory_profiles, profiles_report
from .extractors import choose_extractor
from .feature_cache import cached_features
from .features import Features, Statistics
from .measure import Measured, batches_of_images, measure_together
from .metrics import compare, distance_warnings, inception_score
from .nearest import nearest_images, nearest_picture, nearest_summary
from .pictures import image_grid, side_by_side
from .reference import open_image_set, reference_images
from .report import write_report
from .sampling import check_counts, open_for_sampling, sample_batches
from .statistics import holds_statistics, load_statistics
from .timestep_error import error_by_timestep

log = logging.getLogger("ddpm_redistill")

GRID_IMAGES = 40
GRID_COLUMNS = 8
NEAREST_SHOWN = 16
PAIRS = (("student", "data"), ("teacher", "data"), ("student", "teacher"))

Source: TypeAlias = RedDDPMPipeline | Dataset[Tensor]


def evaluate(
    model: str,
    *,
    teacher: str | None = None,
    data: str | None = None,
    num_images: int = 2000,
    steps: int | Sequence[int] = 50,
    scheduler: str = "ddim",
    spacing: str | None = None,
    eta: float = 0.0,
    batch_size: int = 64,
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
        num_images: of each set; of images made elsewhere, the first ones.
        steps: network evaluations an image (NFE), one or several; the report's main part is of the last.
        scheduler, spacing, eta: as ``RedDDPMPipeline.set_scheduler``.
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
    chosen = choose_extractor(inception_weights, extractor).to("cuda" if torch.cuda.is_available() else "cpu")
    counts = [steps] if isinstance(steps, int) else list(steps)
    made_elsewhere = holds_images(model)
    sources: dict[str, Source] = {
        "student": open_image_set(model)
        if made_elsewhere
        else open_for_sampling(model, scheduler, spacing=spacing, eta=eta)
    }
    if teacher is not None:
        sources["teacher"] = open_for_sampling(teacher, scheduler, spacing=spacing, eta=eta)
    pipelines = {name: source for name, source in sources.items() if isinstance(source, RedDDPMPipeline)}
    shape = check_sources(sources, {"student": model, "teacher": teacher or ""}, num_images)
    for pipeline in pipelines.values():
        for count in counts:
            check_counts(pipeline, num_images, count, batch_size)
    images = reference = None
    if data is not None and holds_statistics(Path(data).expanduser()):
        reference = load_statistics(Path(data).expanduser(), chosen)
    elif data is not None:
        images = reference_images(data, image_size=shape[1], channels=shape[0], num_images=num_images, seed=seed)
    log.info("distances by %s: %s", chosen.name, chosen.reason)

    # 2. sampled and measured, a batch at a time, student and teacher from the same noise
    if images is not None:
        reference = cached_features(images, chosen, progress="features of the data")
    sweep = []
    for count in counts if pipelines else counts[-1:]:
        sets = {name: _batches(source, num_images, count, batch_size, seed) for name, source in sources.items()}
        label = f"{' and '.join(sets)}, {count} steps" if pipelines else "features of the images"
        measured, paired = measure_together(sets, chosen, num_images=num_images, shown=GRID_IMAGES, label=label)
        features: dict[str, Features | Statistics] = {name: found.features for name, found in measured.items()}
        if reference is not None:
            features["data"] = reference
        distances = {f"{a}_to_{b}": _compare(features[a], features[b]) for a, b in PAIRS if {a, b} <= features.keys()}
        speed = {name: _speed(measured[name], count, batch_size) for name in pipelines}
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
            "warnings": distance_warnings(*features.values()),
        },
        "speed": speed,
    }
    if paired is not None and not made_elsewhere:  # image k of both from the same noise
        report["paired"] = paired
    if len(sweep) > 1:
        report["steps"] = sweep
    if images is not None and pipelines:
        report["timestep_error"] = error_by_timestep(pipelines, images, batch_size=batch_size, seed=seed)
    pictures: dict[str, Image.Image] = {}
    if images is not None:
        assert isinstance(reference, Features)
        values = {name: found.features.values for name, found in measured.items()}
        report["nearest"] = nearest_summary(values, reference.values)
        pictures["nearest"] = _nearest_of_some(measured["student"], images, reference)
    profiles = {name: memory_profiles(p.unet, settings=(MOST_SAVING,)) for name, p in pipelines.items()}
    report["memory"] = {name: profiles_report(found) for name, found in profiles.items()}
    report["plan"] = dict(pipelines["student"].unet.config).get("student_plan") if not made_elsewhere else None
    sampler = {"num_inference_steps": counts, "scheduler": scheduler, "spacing": spacing, "eta": eta}
    report["provenance"] = {
        **_origin(sources, {"student": model, "teacher": teacher}, measured),
        **({"data": data} if data is not None else {}),
        **({"num_data_images": reference.num_images, "data_sha256": reference.images_sha256} if reference else {}),
        **(sampler if pipelines else {}),
        "seed": seed,
        **environment(),
    }

    # 4. the page
    shown = {name: found.first for name, found in measured.items()}
    if images is not None:
        shown["data"] = torch.stack([images[i] for i in range(min(GRID_IMAGES, len(images)))])
    grids = {name: image_grid(shown[name], GRID_COLUMNS) for name in sorted(shown)}  # data, student, teacher
    curves = Path(model).parent / "metrics.jsonl"
    page = write_report(
        report,
        Path(output_dir),
        grids=grids,
        metrics_rows=read_metrics(curves) if curves.is_file() and not made_elsewhere else None,
        pictures=pictures,
        timelines={name: found[None].timeline for name, found in profiles.items()},
    )
    side_by_side(grids).save(page.with_name("comparison.png"))
    log.info("report written to %s", page)
    return report


def holds_images(ref: str) -> bool:
    """Whether ``evaluate`` takes this for images made elsewhere: an .npz, or a folder that has no network in it."""
    path = Path(ref).expanduser()
    if path.is_dir():
        return not any((path / name).is_file() for name in ("model_index.json", "config.json", "unet/config.json"))
    return path.suffix.lower() == ".npz" and path.is_file()


def check_sources(sources: Mapping[str, Source], refs: Mapping[str, str], num_images: int) -> tuple[int, int]:
    """(channels, pixels a side), which all must have. Raises UserError; also for too few images made elsewhere."""
    shapes = {}
    for name, source in sources.items():
        if isinstance(source, RedDDPMPipeline):
            config = source.unet.config
            size = config.sample_size
            shapes[name] = (config.in_channels, size if isinstance(size, int) else size[0])
        else:
            shapes[name] = tuple(source[0].shape[:2])
            if len(source) < num_images:  # type: ignore[arg-type]
                count = len(source)  # type: ignore[arg-type]
                raise UserError(f"{refs[name]} has {count} images, {num_images} are needed: lower --num_images")
    if len(set(shapes.values())) > 1:
        said = ", ".join(f"{refs[name]} {size} px, channels {channels}" for name, (channels, size) in shapes.items())
        raise UserError(f"images of different shape cannot be compared: {said}")
    return shapes["student"]


def _batches(source: Source, num_images: int, steps: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    if not isinstance(source, RedDDPMPipeline):
        return batches_of_images(source, num_images, batch_size)
    return sample_batches(
        source,
        num_images=num_images,
        num_inference_steps=steps,
        batch_size=batch_size,
        seed=seed,
        show_progress=False,
    )


def _compare(a: Features | Statistics, b: Features | Statistics) -> dict[str, Any]:
    assert isinstance(a, Features)  # only the data may be statistics, and it comes second
    return compare(a, b)


def _nearest_of_some(measured: Measured, images: Subset[Tensor], reference: Features) -> Image.Image:
    """Of the first samples those that are nearest to the data: copies would be among them."""
    indices, distances = nearest_images(measured.features.values[: len(measured.first)], reference.values)
    order = distances.argsort()[:NEAREST_SHOWN]
    neighbours = torch.stack([images[int(index)] for index in indices[order]])
    return nearest_picture(measured.first[order], neighbours, distances[order], GRID_COLUMNS)


def _origin(
    sources: Mapping[str, Source], refs: Mapping[str, str | None], measured: Mapping[str, Measured]
) -> dict[str, Any]:
    """What each set was made from, with the hash of its weights, or of the images when they were made elsewhere."""
    origin: dict[str, Any] = {}
    for name, source in sources.items():
        key, ref = ("model" if name == "student" else name), refs[name] or ""
        if isinstance(source, RedDDPMPipeline):
            origin |= {key: ref, f"{key}_sha256": sha256_of(find_model(ref).weights)}
        else:
            origin |= {"images": ref, "images_sha256": measured[name].features.images_sha256}
    return origin


def _speed(measured: Measured, num_inference_steps: int, batch_size: int) -> dict[str, Any]:
    return {
        "images_per_second": measured.images_per_second,
        "seconds": measured.seconds,
        "num_images": len(measured.features),
        "num_inference_steps": num_inference_steps,
        "batch_size": batch_size,
    }
