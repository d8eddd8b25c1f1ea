"""The section of report.html on each class by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import template as h
from .text import (
    brackets,
    figure,
    frechet_of,
    interval,
    kid_of,
    listed,
    metric_name,
    number,
    part,
    worst_first,
)

MOST_ROWS = 100
"""Of the page's table; the others are in report.json."""


def classes_section(classes: dict[str, Any], distances: dict[str, Any], compared: bool) -> str:
    """A row a class, worst first. ``distances``: the report's, which name the extractor's figures."""
    rows = worst_first(classes, kid_of(distances))
    if not rows:
        return ""
    names = [frechet_of(distances), kid_of(distances), "precision", "recall"]
    columns = [(name, pair) for name in names for pair in ("student_to_data", "teacher_to_data")]
    columns = [(name, pair) for name, pair in columns if any(name in part(row, pair) for row in rows)]
    sets = [name for name in ("student", "teacher", "data") if any(name in part(row, "num_images") for row in rows)]
    titles = {"student": "student" if compared else "model"}
    model = {pair: titles.get(pair.split("_")[0], "teacher") for _, pair in columns}
    cells = []
    for row in rows[:MOST_ROWS]:
        counts = " / ".join(number(part(row, "num_images").get(name)) for name in sets)
        cells.append([h.cell(row.get("name", "")), h.cell(counts), *(_figure(part(row, p), n) for n, p in columns)])
    heads = ["Class", f"Images: {' / '.join(titles.get(name, name) for name in sets)}"]
    heads += [f"{metric_name(name)}, {model[pair]}" for name, pair in columns]
    lead = (
        f"Images of each class against the data's images of that class, by {metric_name(kid_of(distances))}, the worst"
        " first. In brackets: 95% intervals; of so few images they are wide. Precision and recall depend on the number"
        " of images: compare models with each other in them, not classes."
    )
    more = len(rows) - MOST_ROWS
    return h.section(
        "Classes",
        h.paragraph(lead),
        *(h.paragraph(f"{note}.", "note") for note in listed(classes.get("notes"))),
        h.table(heads, cells, label="Classes", css_class="compare classes"),
        h.paragraph(f"{more:,} more classes are in report.json.", "note") if more > 0 else "",
    )


def _figure(values: Mapping[str, Any], name: str) -> str:
    return h.cell(number(figure(values.get(name))), brackets(interval(values, name)))
