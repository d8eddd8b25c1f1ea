"""Several runs beside each other, from their report.json alone: one row a run, the ablation table of a paper.

Distances say something only at the same features, the same number of images and the same data. Runs that differ in
one of these are never in one table: each kind has its own, and the page says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...plan_facts import plan_facts
from .text import (
    extractor_name,
    figure,
    frechet_of,
    interval,
    kid_of,
    part,
)

COLUMNS = {  # of a row: its heading, and which values are better (1 higher, -1 lower, 0 neither)
    "training_steps": ("Steps trained", 0),
    "num_images": ("Images", 0),
    "num_inference_steps": ("Sampling steps", 0),
    "guidance": ("Guidance", 0),
    "to_data": ("{frechet} to data", -1),
    "kid": ("KID to data", -1),
    "precision": ("Precision", 1),
    "recall": ("Recall", 1),
    "to_teacher": ("{frechet} to teacher", -1),
    "ssim": ("SSIM to teacher", 1),
    "psnr": ("PSNR to teacher, dB", 1),
    "tensor_peak": ("Tensor peak, MiB", -1),
    "tensor_peak_lean": ("Lean peak, MiB", -1),
    "weights": ("Weights, MiB", -1),
    "images_per_second": ("Images/s", 1),
}
SAMPLING = ("num_inference_steps", "scheduler", "spacing", "eta", "dtype", "guidance")
Row = dict[str, Any]


@dataclass
class Table:
    """Runs whose distances may be compared, and their teachers for reference; every row ready for JSON."""

    frechet: str
    extractor: str
    num_images: int | None
    data: str
    runs: list[Row] = field(default_factory=list)
    teachers: list[Row] = field(default_factory=list)

    def best(self, column: str) -> float | None:
        """The best value among the runs; None for a column without an order, or where all runs are equal."""
        values = [row[column] for row in self.runs if row.get(column) is not None]
        direction = COLUMNS[column][1]
        return max(values, key=lambda v: v * direction) if direction and len({*values}) > 1 else None


def compare_runs(runs: Sequence[str | Path]) -> list[Table]:
    """The reports of ``runs`` (run folders, or report.json files) in as many tables as can be compared.

    Raises: :class:`UserError` for no run, a run given twice, and a report.json that is absent, damaged or another
    program's.
    """
    paths = [_report_path(run) for run in runs]
    if not paths:
        raise UserError("give at least one run folder")
    twice = next((path for path in paths if sum(other.resolve() == path.resolve() for other in paths) > 1), None)
    if twice is not None:
        raise UserError(f"{twice} is given twice")
    tables: dict[tuple[Any, ...], Table] = {}
    for name, path in zip(_names(paths), paths, strict=True):
        report = load_report(path)
        distances = part(report, "distances")
        extractor = part(distances, "extractor")
        identity = tuple(str(extractor.get(key)) for key in ("name", "weights_sha256", "layer", "resize"))
        count = figure(distances.get("num_images"))
        unknown = path if count is None or not extractor.get("name") else None  # comparable with nothing
        key = (*identity, count, _data(report, "data_sha256"), unknown)
        made = Table(frechet_of(distances), extractor_name(extractor), count, _data(report, "data"))  # type: ignore[arg-type]
        table = tables.setdefault(key, made)
        table.runs.append(_run_row(name, path, report))
        teacher = _teacher_row(report)
        if teacher and not any(_same_teacher(teacher, other) for other in table.teachers):
            table.teachers.append(teacher)
    return list(tables.values())


def load_report(path: Path) -> dict[str, Any]:
    """A report.json as it is. Raises: :class:`UserError` when it is absent, damaged or another program's."""
    if not path.is_file():
        raise UserError(f"there is no report of `ddpm-redistill evaluate` at {path}")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if part(report, "accuracy"):
        raise UserError(f"{path} is of a classifier, and distances of DDPMs are compared: open its own report.html")
    if not part(report, "distances", "extractor"):
        raise UserError(f"{path} is no report of `ddpm-redistill evaluate`: it has no distances with their extractor")
    return part(report)


def _run_row(name: str, path: Path, report: dict[str, Any]) -> Row:
    plan, provenance = plan_facts(part(report, "plan")), part(report, "provenance")
    config = part(provenance, "config")
    row = {
        "name": name,
        "run": str(path),
        "teacher": _word(provenance.get("teacher_sha256") or provenance.get("teacher")),
        "reduction": figure(plan.get("reduction")),
        "cheap": plan.get("cheap") or None,
        "red_placement": _word(plan.get("red_placement")),
        "recipe": _word(config.get("recipe")),
        "prediction_type": _word(plan.get("prediction_type")),
        "training_steps": figure(part(config, "training").get("steps")),
        **_sampling(report, "student"),
        **_distances(part(report, "distances"), "student"),
        **{key: figure(part(report, "paired", key).get("mean")) for key in ("ssim", "psnr")},
        **_cost(report, "student"),
    }
    values, frechet = part(report, "distances", "student_to_teacher"), frechet_of(part(report, "distances"))
    return row | {"to_teacher": figure(values.get(frechet))} | _ends("to_teacher", values, frechet)


def _teacher_row(report: dict[str, Any]) -> Row | None:
    provenance = part(report, "provenance")
    if not part(report, "memory", "teacher"):
        return None
    return {
        "name": f"Teacher {_word(provenance.get('teacher')) or ''}".strip(),
        "sha256": _word(provenance.get("teacher_sha256")),
        **_sampling(report, "teacher"),
        **_distances(part(report, "distances"), "teacher"),
        **_cost(report, "teacher"),
    }


def _same_teacher(one: Row, other: Row) -> bool:
    """The same weights sampled in the same way; speed, which depends on the machine's other work, may differ."""
    keys = (*SAMPLING, "seed", "sha256" if one["sha256"] else "name")
    return all(one[key] == other[key] for key in keys)


def _sampling(report: dict[str, Any], who: str) -> Row:
    distances, provenance = part(report, "distances"), part(report, "provenance")
    steps = figure(distances.get("num_inference_steps"))
    return {
        "num_images": figure(distances.get("num_images")),
        "num_inference_steps": figure(provenance.get("num_inference_steps")) if steps is None else steps,
        "scheduler": _word(provenance.get("scheduler")),
        **{key: _word(provenance.get(key)) for key in ("spacing", "eta", "dtype")},
        "guidance": figure(part(report, "speed", who).get("guidance")),
        "seed": figure(provenance.get("seed")),
    }


def _distances(distances: dict[str, Any], who: str) -> Row:
    values = part(distances, f"{who}_to_data")
    names = {"to_data": frechet_of(distances), "kid": kid_of(distances), "precision": "precision", "recall": "recall"}
    row: Row = {}
    for key, name in names.items():
        row |= {key: figure(values.get(name))} | _ends(key, values, name)
    return row


def _ends(key: str, values: dict[str, Any], name: str) -> Row:
    ends = interval(values, name)
    return {} if ends is None else {f"{key}_interval": ends}


def _cost(report: dict[str, Any], who: str) -> Row:
    memory = part(report, "memory", who)
    costs = {key: figure(memory.get(key)) for key in ("tensor_peak", "tensor_peak_lean", "weights")}
    return costs | {"images_per_second": figure(part(report, "speed", who).get("images_per_second"))}


def _data(report: dict[str, Any], key: str) -> str:
    """The data's name, or (``data_sha256``) its content where the report knows it."""
    provenance = part(report, "provenance")
    return str(provenance.get(key) or provenance.get("data") or "no data")


def _word(value: Any) -> str | None:
    return None if value is None or isinstance(value, dict | list) else str(value)


def _report_path(run: str | Path) -> Path:
    path = Path(run)
    if not path.exists():
        raise UserError(f"there is no {path}: give a run folder, or its report.json")
    return path / "report.json" if path.is_dir() else path


def _names(paths: Sequence[Path]) -> list[str]:
    """Of each run, its folder below what all have in common."""
    folders = [path.resolve().parent for path in paths]
    shared = os.path.commonpath(folders) if len({*folders}) > 1 else folders[0].parent
    names = [os.path.relpath(folder, shared) for folder in folders]
    # one run inside another's folder, or several report files of one folder
    return [
        path.resolve().relative_to(shared).as_posix() if names.count(name) > 1 or name == "." else name
        for name, path in zip(names, paths, strict=True)
    ]
