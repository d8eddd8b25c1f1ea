"""The page of several runs: their tables as HTML, and a chart of distance over peak memory for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...files import write_aside
from . import template as h
from .charts import Point, distance_against_memory
from .compare import COLUMNS, SAMPLING, Row, Table, compare_runs
from .text import DASH, TIMES, brackets, metric_name, mib, number

TITLE = "Comparison of runs"
BYTES = {"tensor_peak", "tensor_peak_lean", "weights"}


def write_comparison(runs: Sequence[str | Path], output: str | Path) -> dict[str, Any]:
    """Write the page of ``compare_runs`` as one self-contained file.

    Returns:
        ``output`` and ``tables``: each with ``distance`` (its name), ``extractor``, ``num_images``, ``data``, ``runs``,
        ``teachers``, and ``best``, the best value of each column that has an order.

    Raises:
        UserError: as ``compare_runs``, or ``output`` is there already and is no comparison, as a run's own page.
        OSError: ``output`` cannot be written.
    """
    output = Path(output)
    if output.is_dir() or (output.exists() and not _is_comparison(output)):
        raise UserError(f"{output} is there already and is no comparison of runs: give another --output")
    tables = compare_runs([run for run in runs if Path(run).resolve() != output.resolve()])  # runs/* holds it as well
    output.parent.mkdir(parents=True, exist_ok=True)
    write_aside(output, comparison_page(tables))
    return {"output": str(output), "tables": [_to_dict(table) for table in tables]}


def comparison_page(tables: Sequence[Table]) -> str:
    """The whole page."""
    count = sum(len(table.runs) for table in tables)
    caution = (
        f"These runs are in {len(tables)} tables, because their distances were not taken alike: another extractor, "
        "number of images or data. Distances in different tables say nothing about each other."
    )
    return h.page(
        TITLE,
        f"{count} run{'s' * (count > 1)}, each as its own report.json has it",
        [h.paragraph(caution, "caution") if len(tables) > 1 else "", *map(_section, tables)],
        wide=True,
    )


def _section(table: Table) -> str:
    frechet = metric_name(table.frechet)
    columns = [name for name in COLUMNS if any(row.get(name) is not None for row in table.runs)]
    best = {name: table.best(name) for name in columns}
    rows = []
    for row in [*table.runs, *table.teachers]:
        is_run = "run" in row
        marked = {name for name in columns if is_run and best[name] is not None and row.get(name) == best[name]}
        cells = [_cell(row, name, name in marked) for name in columns]
        rows.append([h.cell(row["name"], _settings(row) if is_run else "reference"), *cells])
    titles = ["Run", *(COLUMNS[name][0].format(frechet=frechet) for name in columns)]
    how = {tuple(row[key] for key in SAMPLING) for row in table.runs}
    mixed = (
        "These runs were sampled differently (steps, sampler, precision or guidance): the distances show that"
        " difference too."
    )
    teachers = "These runs have different teachers: what is measured against the teacher is against different networks."
    lead = "Bold: the best run of its column. " if len(table.runs) > 1 else ""
    lead += (
        "In brackets: 95% intervals; where they overlap, the order may be chance."
        if any(f"{name}_interval" in row for row in table.runs for name in columns)
        else "One sampling each, without intervals: small differences may be chance."
    )
    note = "" if table.frechet == "fid" else " It is not FID and not comparable with published FID."
    return h.section(
        f"{frechet} by {table.extractor}, {number(table.num_images)} images, {table.data}",
        h.paragraph(mixed, "caution") if len(how) > 1 else "",
        h.paragraph(teachers, "caution") if len({row["teacher"] for row in table.runs} - {None}) > 1 else "",
        h.paragraph(lead + note),
        h.table(titles, rows, label=TITLE, css_class="compare", references=len(table.teachers)),
        _chart(table, frechet),
    )


def _chart(table: Table, frechet: str) -> str:
    """Distance to the data (to the teacher where no run has it) over peak memory."""
    by = "to_data" if any(row["to_data"] is not None for row in table.runs) else "to_teacher"

    def points(rows: Sequence[Row]) -> list[Point]:
        return [
            Point(x=row["tensor_peak"], y=row[by], ends=row.get(f"{by}_interval"), name=row["name"])
            for row in rows
            if row["tensor_peak"] is not None and row.get(by) is not None
        ]

    runs = points(table.runs)
    if not runs:
        return ""
    label = f"{frechet} {by.replace('_', ' ')}"
    listed = "; ".join(f"{point.name} {number(point.y)} at {mib(point.x)}" for point in runs)
    png = distance_against_memory(runs, points(table.teachers), label)
    beside = "; runs of one peak stand side by side" if len({point.x for point in runs}) < len(runs) else ""
    return h.picture(
        png, f"{label} over the exact tensor peak: {listed}", f"{label} against peak memory{beside}", "chart"
    )


def _cell(row: Row, name: str, best: bool) -> str:
    value = row.get(name)
    shown = mib(value).removesuffix(" MiB") if name in BYTES else number(value)
    note = str(row.get("scheduler") or "") if name == "num_inference_steps" else brackets(row.get(f"{name}_interval"))
    return h.cell(shown, note, best=best)


def _settings(row: Row) -> str:
    """What a run was made with, as far as its report says it."""
    parts = [
        f"{row['reduction']}{TIMES} smaller" if row["reduction"] not in (None, 1) else "",
        f"cheap convolutions {row['cheap']}" if row.get("cheap") else "",
        f"RED {row['red_placement']}" if row["red_placement"] else "",
        f"recipe {row['recipe']}" if row["recipe"] else "",
        f"predicts {row['prediction_type']}" if row["prediction_type"] else "",
    ]
    return ", ".join(filter(None, parts)) or DASH


def _to_dict(table: Table) -> dict[str, Any]:
    best = {name: table.best(name) for name in COLUMNS}
    return {
        "distance": table.frechet,
        "extractor": table.extractor,
        "num_images": table.num_images,
        "data": table.data,
        "runs": table.runs,
        "teachers": table.teachers,
        "best": {name: value for name, value in best.items() if value is not None},
    }


def _is_comparison(path: Path) -> bool:
    with path.open("rb") as file:
        return f"<title>{TITLE}</title>".encode() in file.read(2000)
