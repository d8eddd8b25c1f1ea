"""``evaluate`` of a classifier: its accuracy on labelled images, beside its teacher's; one report."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..families.classifier_config import ClassifierConfig
from ..families.classifier_files import load_classifier, state_sha256
from ..processes import on_cpu
from ..provenance import environment
from ..sources.class_labels import labels_of_classifier
from ..sources.predictions import logits_of
from ..students.footprint import MOST_SAVING, memory_profiles, profiles_report
from .accuracy import accuracy_figures
from .classifier_data import Measurable, learned_before, measured_on
from .classifier_speed import images_per_second
from .report import write_report
from .subjects import records_of, run_of

log = logging.getLogger("ddpm_redistill")

BATCH_SIZE = 64
"""Images at once where speed is measured."""


@dataclass(frozen=True, eq=False)
class Network:
    """A classifier as it is measured; ``ref`` as a person gave it."""

    ref: str
    network: nn.Module
    config: ClassifierConfig

    @property
    def sha256(self) -> str:
        return state_sha256(self.network)


def evaluate_classifier(
    model: str,
    *,
    teacher: str | None = None,
    data: str | None = None,
    data_range: float | None = None,
    batch_size: int | None = None,
    output_dir: str | Path,
) -> dict[str, Any]:
    """Classify labelled images with the model and its teacher, measure, and write report.json and report.html.

    Args:
        teacher: a classifier beside it; None: that which its run has recorded, if it is there.
        data: a data source with labels, all of which is taken; None: the images that the model's run has held out.
        data_range: of ``data``, as ``open_images``.
        batch_size: images at once where speed is measured; None: 64.

    Returns:
        The report; report.schema.json says what is in it.

    Raises:
        UserError: a mistake in any argument, before anything is classified.
    """
    # 1. everything that can be wrong, first
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")
    if data_range is not None and data is None:
        raise UserError("--data_range is of the images that --data gives, and there are none: leave it out")
    run = run_of(model)
    networks = {"student": _opened(model)}
    config = networks["student"].config
    found, left_out = (_opened(teacher), ()) if teacher is not None else _recorded_teacher(model)
    if found is not None:
        _check_alike(found, networks["student"])
        networks["teacher"] = found
    measured = measured_on(model, config, run.get("config"), data, data_range)
    images = measured.images
    labels, names = labels_of_classifier(images, config.num_classes, _names(networks), model)
    warnings = [
        *left_out,
        *measured.warnings,
        *learned_before(measured, {each.ref for each in networks.values()} - {model}),
    ]
    Path(output_dir).mkdir(parents=True, exist_ok=True)  # an OSError now, not after the work
    if teacher is None and found is not None:
        log.info("teacher: %s, as its run has recorded", found.ref)
    log.info("images: %s", images.description)
    for warning in warnings:
        log.warning("%s", warning)

    # 2. classified, and timed
    device = torch.device("cpu" if on_cpu() else "cuda")
    for each in networks.values():
        each.network.requires_grad_(False).to(device)
    logits = {
        name: logits_of(each.network, images, each.config.mean, each.config.std, device)
        for name, each in networks.items()
    }
    count = BATCH_SIZE if batch_size is None else batch_size
    speed = images_per_second({name: each.network for name, each in networks.items()}, images, count, device)

    # 3. memory, and the page
    at = {"image_size": config.image_size}
    profiles = {
        name: memory_profiles(each.network.cpu(), settings=(MOST_SAVING,), **at) for name, each in networks.items()
    }
    report: dict[str, Any] = {
        "accuracy": {**accuracy_figures(logits, labels, names), "held_out": measured.held_out, "warnings": warnings},
        "speed": speed,
        "memory": {name: profiles_report(profile) for name, profile in profiles.items()},
        "plan": config.student_plan,
        "provenance": _provenance(networks, measured, data_range, run),
    }
    page = write_report(
        report,
        Path(output_dir),
        grids={},
        metrics_rows=run.get("metrics"),
        timelines={name: found[None].timeline for name, found in profiles.items()},
    )
    log.info("report written to %s", page)
    return report


def _opened(ref: str) -> Network:
    return Network(ref, *load_classifier(ref))


def _recorded_teacher(model: str) -> tuple[Network | None, tuple[str, ...]]:
    """The teacher that the run of a student has recorded; None, and why, where it is not there any more."""
    records = records_of(model)
    ref, sha256 = records.get("teacher"), records.get("teacher_sha256")
    if not isinstance(ref, str):
        return None, ()
    try:
        found = _opened(ref)
    except UserError as error:
        return None, (f"its teacher is left out: {error}",)
    if found.sha256 != sha256:
        return None, (f"its teacher is left out: {ref} has other weights than its run has recorded; give --teacher",)
    return found, ()


def _check_alike(teacher: Network, student: Network) -> None:
    """Raises UserError for a teacher that does not name the classes of the student's images."""
    one, other = student.config, teacher.config
    for what, key in (("channels", "in_channels"), ("classes", "num_classes")):
        if getattr(one, key) != getattr(other, key):
            raise UserError(
                f"{student.ref} has {getattr(one, key)} {what} and {teacher.ref} has {getattr(other, key)}: they cannot"
                " be compared"
            )
    if one.classes and other.classes and one.classes != other.classes:
        here, there = next(pair for pair in zip(one.classes, other.classes, strict=True) if len(set(pair)) > 1)
        raise UserError(
            f"{student.ref} and {teacher.ref} have other classes, as {here!r} and {there!r}: they cannot be compared"
        )


def _names(networks: dict[str, Network]) -> Sequence[str] | None:
    return next((each.config.classes for each in networks.values() if each.config.classes), None)


def _provenance(
    networks: dict[str, Network], measured: Measurable, data_range: float | None, run: dict[str, Any]
) -> dict[str, Any]:
    refs = {"student": "model", "teacher": "teacher"}
    of_networks = {
        key: value
        for name, each in networks.items()
        for key, value in ((refs[name], each.ref), (f"{refs[name]}_sha256", each.sha256))
    }
    return {
        **of_networks,
        "data": measured.source,
        **({} if data_range is None else {"data_range": data_range}),
        "num_data_images": len(measured.images),
        "data_sha256": measured.images.fingerprint,
        **environment(),
        **({"config": run["config"]} if run else {}),
    }
