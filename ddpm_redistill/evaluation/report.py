"""report.json and report.html of one evaluation: every number of the page is in the JSON beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..core.timeline import TimelinePoint
from ..files import write_aside
from ..plan_facts import plan_facts
from .pages import quality as q
from .pages import sections as s
from .pages import template as h
from .pages.accuracy import accuracy_headline, accuracy_section
from .pages.classes import classes_section
from .pages.text import (
    TIMES,
    brackets,
    extractor_name,
    figure,
    frechet_of,
    interval,
    metric_name,
    mib,
    number,
    part,
    ratio,
)

Figure = tuple[str, str | None, str]
"""A large number: label, value (None: not measured), note."""


def write_report(
    report: Mapping[str, Any],
    output_dir: Path,
    *,
    grids: Mapping[str, Image.Image],
    metrics_rows: Sequence[Mapping[str, Any]] | None,
    pictures: Mapping[str, Image.Image] | None = None,
    timelines: Mapping[str, Sequence[TimelinePoint]] | None = None,
    by_class: bool = False,
) -> Path:
    """Write ``report.json`` and the self-contained ``report.html``; returns the path of the page.

    ``report``: the parts that ``report.schema.json`` describes (bytes, images per second); a part that is absent
    or None is left out, and without a ``teacher`` in ``memory`` and ``speed`` only the model is shown.
    ``grids``: pictures by name (``teacher``, ``student``, ``data`` or any other caption), shown side by side.
    ``metrics_rows``: rows of ``metrics.jsonl`` for the loss curves. ``pictures``: ``nearest``, samples beside the
    data images nearest to them. ``timelines``: by network, one point an operation (``core/timeline.py``).
    ``by_class``: the columns of the grids are classes.
    Numbers that are not finite become null in the JSON.

    Each file is written aside and renamed, so a reader sees the old one or the new one. Raises: ``OSError``
    when the folder cannot be written, ``TypeError`` for a value JSON does not know.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    clean = _json_value(report)
    page = _page(clean, grids, metrics_rows or [], pictures or {}, timelines or {}, by_class)
    write_aside(output_dir / "report.json", json.dumps(clean, indent=2, allow_nan=False) + "\n")
    write_aside(output_dir / "report.html", page)
    return output_dir / "report.html"


def _page(
    report: dict[str, Any],
    grids: Mapping[str, Image.Image],
    rows: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, Image.Image],
    timelines: Mapping[str, Sequence[TimelinePoint]],
    by_class: bool,
) -> str:
    distances, memory, speed, plan = (part(report, key) for key in ("distances", "memory", "speed", "plan"))
    accuracy = part(report, "accuracy")
    plan = plan_facts(plan)
    searched = part(report, "provenance").get("num_data_images")
    compared = any(part(values, "teacher") for values in (memory, speed)) or "teacher_to_data" in distances
    return h.page(
        "Distillation report" if compared else "Model report",
        _subtitle(plan, accuracy or distances),
        [
            h.headline(
                [
                    _memory_headline(memory),
                    accuracy_headline(accuracy) if accuracy else _distance_headline(distances),
                    _speed_headline(speed, "Speed" if accuracy else "Sampling speed"),
                ]
            ),
            accuracy_section(accuracy),
            s.samples_section(grids, compared, same_noise=bool(part(memory, "student")), by_class=by_class),
            q.distances_section(distances, compared),
            classes_section(part(report, "classes"), distances, compared),
            q.steps_section(report.get("steps"), distances, compared),
            q.paired_section(part(report, "paired")),
            q.timestep_section(part(report, "timestep_error"), compared),
            q.nearest_section(part(report, "nearest"), pictures.get("nearest"), searched, compared),
            s.memory_section(memory, timelines),
            s.speed_section(speed, memory),
            s.losses_section(rows),
            s.plan_section(plan),
            s.provenance_section(part(report, "provenance")),
        ],
    )


def _subtitle(plan: dict[str, Any], measured: dict[str, Any]) -> str:
    parts = []
    if plan.get("reduction") and plan["reduction"] != 1:
        parts.append(f"Feature maps {plan['reduction']}{TIMES} smaller in height and width")
    if plan.get("cheap"):
        parts.append("Cheap convolutions" if not parts else "cheap convolutions")
    if plan.get("prediction_type"):
        parts.append(f"predicts {plan['prediction_type']}")
    if figure(measured.get("num_images")):
        parts.append(f"measured on {number(measured['num_images'])} images")
    if figure(measured.get("num_inference_steps")):
        parts.append(f"{number(measured['num_inference_steps'])} sampling steps")
    return " · ".join(parts)


def _memory_headline(memory: dict[str, Any]) -> Figure:
    teacher, student = part(memory, "teacher"), part(memory, "student")
    key = "tensor_peak" if figure(student.get("tensor_peak")) else "paper_peak"
    name = s.MEMORY[key][0].lower()
    smaller = ratio(teacher.get(key), student.get(key))
    if smaller or teacher:
        note = f"{name}: {mib(teacher.get(key))} to {mib(student.get(key))}" if smaller else ""
        return "Peak memory, smaller by", smaller, note
    return "Peak memory", mib(student[key]) if figure(student.get(key)) else None, f"{name}, one image"


def _distance_headline(distances: dict[str, Any]) -> Figure:
    pair = "student_to_teacher" if part(distances, "student_to_teacher") else "student_to_data"
    values, frechet = part(distances, pair), frechet_of(distances)
    label = "Distance, student to teacher" if pair == "student_to_teacher" else "Distance to the data"
    value = figure(values.get(frechet))
    unit = f"{metric_name(frechet)}, {extractor_name(part(distances, 'extractor'))}"
    ends = brackets(interval(values, frechet))
    note = f"{ends and f'95% interval {ends}; '}{unit}, {number(distances.get('num_images'))} images; lower is nearer"
    return label, None if value is None else f"{value:,.1f}", "" if value is None else note


def _speed_headline(speed: dict[str, Any], label: str) -> Figure:
    rates = [figure(part(speed, who).get("images_per_second")) for who in ("teacher", "student")]
    if rates[0] or not rates[1]:
        both = f"{number(rates[1])} against {number(rates[0])} images/s"
        return label, ratio(rates[1], rates[0]), both if all(rates) else ""
    return label, number(rates[1]), "images per second"


def _json_value(value: Any) -> Any:
    """The same as JSON knows it: mappings, lists, strings, finite numbers, None."""
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a report holds {type(value).__name__}, which JSON does not know: {value!r}")
