"""The labelled images that a classifier is measured on: given ones, or those that its run has held out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..families.classifier_config import ClassifierConfig
from ..sources.held_out import split
from ..sources.image_source import ImageSource
from ..sources.images import open_images
from .subjects import records_of


@dataclass(frozen=True, kw_only=True)
class Measurable:
    """``source``: the images' as a person gave it, or as the run's config has it; ``held_out``: are they those that
    the model's run has held out?"""

    images: ImageSource
    source: str
    held_out: bool
    warnings: tuple[str, ...] = ()


def measured_on(
    model: str, network: ClassifierConfig, run: Mapping[str, Any] | None, data: str | None, data_range: float | None
) -> Measurable:
    """All of ``data``; without it what the run of ``model`` has held out, by its config.yaml ``run``.

    Raises:
        UserError: there are neither; the source cannot be opened; or its images are not those of the run any more.
    """
    run = run or {}
    size: dict[str, Any] = {"image_size": network.image_size, "channels": network.in_channels}
    if data is not None:
        images = open_images(data, data_range=data_range, **size)
        return Measurable(images=images, source=data, held_out=False, warnings=_learned(model, run, data))
    source, told = run.get("data"), run.get("classification")
    held_out = told.get("held_out") if isinstance(told, dict) else None
    if not isinstance(source, str) or not isinstance(held_out, int | float | str):
        raise UserError(f"nothing to measure {model} on: give --data, a source of labelled images")
    size |= {"on_bad_image": run.get("on_bad_image", "error"), "data_range": run.get("data_range")}

    def open_source(name: str) -> ImageSource:
        return open_images(name, **size)

    if isinstance(held_out, str):
        held: ImageSource | None = open_source(held_out)
    else:
        held = split(open_source(source), held_out, run.get("seed", 0), open_source)[1]
    if held is None:
        raise UserError(f"the run of {model} has held no images out: give --data, images that it has not learned from")
    if held.fingerprint != records_of(model).get("held_out_sha256"):
        raise UserError(
            f"the images that the run of {model} has held out of {source} are not there any more, since it has changed:"
            " give --data, images that it has not learned from"
        )
    return Measurable(images=held, source=held_out if isinstance(held_out, str) else source, held_out=True)


def learned_before(measured: Measurable, others: Iterable[str]) -> list[str]:
    """A warning for each other network whose run has learned from some of the model's held-out images, as far as the
    records tell."""
    warnings = []
    for ref in sorted(others):
        records = records_of(ref)
        if measured.held_out and "data_sha256" in records:
            own = records.get("held_out_sha256")
            if own != measured.images.fingerprint:
                warnings.append(f"the run of {ref} has held out other images: it may have learned from some of these")
    return warnings


def _learned(model: str, run: Mapping[str, Any], data: str) -> tuple[str, ...]:
    source = run.get("data")
    if isinstance(source, str) and (source == data or Path(source).resolve() == Path(data).resolve()):
        return (f"{model} has learned from images of {data}: without --data those that its run has held out are taken",)
    return ()
