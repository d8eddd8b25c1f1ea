"""report.json and report.html of one evaluation: every number of the page is in the JSON beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..files import write_aside
from . import report_sections as s
from . import report_template as h
from .report_sections import MEMORY, METRICS, TIMES, extractor_name, mib, number, ratio


def write_report(
    report: Mapping[str, Any],
    output_dir: Path,
    *,
    grids: Mapping[str, Image.Image],
    metrics_rows: Sequence[Mapping[str, Any]] | None,
) -> Path:
    """Write ``report.json`` and the self-contained ``report.html``; returns the path of the page.

    ``report``: ``distances``, ``memory`` (bytes), ``speed``, ``plan``, ``provenance``; a part that is absent
    or None is left out, and without a ``teacher`` in ``memory`` and ``speed`` only the model is shown.
    ``grids``: pictures by name (``teacher``, ``student``, ``data`` or any other caption), shown side by side.
    ``metrics_rows``: rows of ``metrics.jsonl`` for the loss curves. Numbers that are not finite become null
    in the JSON.

    Each file is written aside and renamed, so a reader sees the old one or the new one. Raises: ``OSError``
    when the folder cannot be written, ``TypeError`` for a value JSON does not know.
    """
    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    clean = _json_value(report)
    page = _page(clean, grids, metrics_rows or [])
    write_aside(output_dir / "report.json", json.dumps(clean, indent=2, allow_nan=False) + "\n")
    write_aside(output_dir / "report.html", page)
    return output_dir / "report.html"


def _page(report: dict[str, Any], grids: Mapping[str, Image.Image], rows: Sequence[Mapping[str, Any]]) -> str:
    distances, memory, speed = (report.get(key) or {} for key in ("distances", "memory", "speed"))
    plan = report.get("plan") or {}
    compared = any(part.get("teacher") for part in (memory, speed)) or "teacher_to_data" in distances
    return h.page(
        "Distillation report" if compared else "Model report",
        _subtitle(plan, distances),
        [
            h.headline(_headline(distances, memory, speed)),
            s.samples_section(grids, compared),
            s.distances_section(distances, compared),
            s.memory_section(memory),
            s.speed_section(speed, memory),
            h.section("Training", s.losses_section(rows)),
            s.plan_section(plan),
            h.section("Provenance", h.facts(s.flat(report.get("provenance") or {}), "Provenance")),
        ],
    )


def _subtitle(plan: dict[str, Any], distances: dict[str, Any]) -> str:
    parts = []
    if plan.get("reduction"):
        parts.append(f"Feature maps {plan['reduction']}{TIMES} smaller in height and width")
    if plan.get("prediction_type"):
        parts.append(f"predicts {plan['prediction_type']}")
    if distances.get("num_images"):
        parts.append(f"measured on {distances['num_images']:,} images")
    return " · ".join(parts)


def _headline(
    distances: dict[str, Any], memory: dict[str, Any], speed: dict[str, Any]
) -> Iterator[tuple[str, str | None, str]]:
    teacher, student = memory.get("teacher") or {}, memory.get("student") or {}
    key = "tensor_peak" if student.get("tensor_peak") else "paper_peak"
    name = MEMORY[key][0].lower()
    smaller = ratio(teacher.get(key), student.get(key))
    if smaller or teacher:
        note = f"{name}: {mib(teacher.get(key))} to {mib(student.get(key))}" if smaller else ""
        yield "Peak memory, smaller by", smaller, note
    else:
        yield "Peak memory", mib(student[key]) if student.get(key) else None, f"{name}, one image"

    pair = "student_to_teacher" if distances.get("student_to_teacher") else "student_to_data"
    values = distances.get(pair) or {}
    frechet = next((k for k in values if k.startswith("f")), None)
    label = "Distance, student to teacher" if pair == "student_to_teacher" else "Distance to the data"
    value = values.get(frechet) if frechet else None
    unit = f"{METRICS.get(frechet or '', frechet)}, {extractor_name(distances)}"
    note = f"{unit}, {number(distances.get('num_images'))} images; lower is nearer"
    yield label, None if value is None else f"{value:,.1f}", "" if value is None else note

    rates = [(speed.get(who) or {}).get("images_per_second") for who in ("teacher", "student")]
    if rates[0] or not rates[1]:
        both = f"{number(rates[1])} against {number(rates[0])} images/s"
        yield "Sampling speed", ratio(rates[1], rates[0]), both if all(rates) else ""
    else:
        yield "Sampling speed", number(rates[1]), "images per second"


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
