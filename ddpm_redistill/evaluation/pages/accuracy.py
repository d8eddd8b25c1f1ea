"""The section of report.html on what a classifier says of labelled images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from . import template as h
from .confusion import confusion_picture
from .text import DASH, figure, interval, listed, number, part

MOST_ROWS = 100
"""Of the table by class; the others are in report.json."""
TOPS = {"top1": "Top 1", "top5": "Top 5"}


def percent(value: Any) -> str:
    value = figure(value)
    return DASH if value is None else f"{100 * value:.2f}%"


def with_ends(values: Mapping[str, Any], name: str) -> tuple[str, str]:
    """A share in percent, and its interval in percent; empty without one."""
    ends = interval(values, name)
    return percent(values.get(name)), "" if ends is None else f"[{', '.join(percent(end) for end in ends)}]"


def accuracy_headline(accuracy: dict[str, Any]) -> tuple[str, str | None, str]:
    student, teacher = (part(accuracy, "networks", name) for name in ("student", "teacher"))
    value, ends = with_ends(student, "top1")
    note = f"95% interval {ends}" if ends else ""
    note += f"; the teacher's {percent(teacher.get('top1'))}" if teacher else ""
    return "Top-1 accuracy", None if value == DASH else value, note


def accuracy_section(accuracy: dict[str, Any]) -> str:
    names = [name for name in ("teacher", "student") if part(accuracy, "networks", name)]
    if not names:
        return ""
    titles = {"teacher": "Teacher", "student": "Student" if "teacher" in names else "Model"}
    networks = {titles[name]: part(accuracy, "networks", name) for name in names}
    shown = {key: label for key, label in TOPS.items() if any(key in values for values in networks.values())}
    rows = [[h.cell(name), *(h.cell(*with_ends(values, key)) for key in shown)] for name, values in networks.items()]
    count = number(accuracy.get("num_images"))
    what = "images that the model's run has held out, so that it has not learned from them"
    lead = (
        f"Measured on {count} {what if accuracy.get('held_out') else 'images'}. Top 1: the share of them whose class is"
        " the one that the network names first; top 5: among its first five. In brackets: 95% intervals (Wilson)."
    )
    agreed = [
        f"Teacher and student name the same class first, right or wrong, of {' '.join(with_ends(pair, 'agreement'))}."
        for pair in map(part, listed(accuracy.get("agreements")))
        if pair
    ]
    return h.section(
        "Accuracy",
        *(h.paragraph(f"{warning}.", "caution") for warning in listed(accuracy.get("warnings"))),
        h.paragraph(lead),
        h.table(["", *shown.values()], rows, label="Accuracy"),
        *map(h.paragraph, agreed),
        _confusions(networks, [str(name) for name in listed(accuracy.get("classes"))]),
        _by_class(networks),
    )


def _confusions(networks: Mapping[str, dict[str, Any]], classes: list[str]) -> str:
    pictures = []
    for name, values in networks.items():
        counts = [[int(figure(count) or 0) for count in listed(row)] for row in listed(values.get("confusion"))]
        if classes and len(counts) == len(classes) and all(len(row) == len(classes) for row in counts):
            alt = f"Confusion of the {name.lower()}: the counts in report.json, a row a true class"
            pictures.append(h.picture(confusion_picture(counts, classes), alt, name, "chart"))
    return f'<div class="classed">{"".join(pictures)}</div>' if pictures else ""


def _by_class(networks: Mapping[str, dict[str, Any]]) -> str:
    """A row a class, in which the student is worst first."""
    tables = [[part(row) for row in listed(values.get("by_class"))] for values in networks.values()]
    count = min(map(len, tables))
    rows = [[each[i] for each in tables] for i in range(count)]
    rows.sort(key=_share_of_last)
    cells = [
        [h.cell(row[-1].get("name", "")), h.cell(number(row[-1].get("num_images")))]
        + [h.cell(*with_ends(values, "top1")) for values in row]
        for row in rows[:MOST_ROWS]
    ]
    more = count - MOST_ROWS
    table = h.table(["Class", "Images", *networks], cells, label="Top 1 by class", css_class="compare classes")
    return (h.paragraph("Top 1 by class, the worst first.") + table if cells else "") + (
        h.paragraph(f"{more:,} more classes are in report.json.", "note") if more > 0 else ""
    )


def _share_of_last(row: list[dict[str, Any]]) -> float:
    share = figure(row[-1].get("top1"))
    return math.inf if share is None else share
