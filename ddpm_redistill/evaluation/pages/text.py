"""Values of a report as text. What is missing, or is no number where one is expected, becomes a dash: a report that
was damaged by hand still gives a page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...units import MIB

DASH, TIMES = "\u2013", "\u00d7"
METRICS = {
    "fid": "FID",
    "kid": "KID",
    "isc": "Inception Score",
    "fd_efficientnet_lite0": "Frechet distance",
    "kid_efficientnet_lite0": "KID",
    "precision": "Precision",
    "recall": "Recall",
    "f_score": "F-score",
}
EXTRACTORS = {"inception-v3-compat": "Inception", "efficientnet-lite0-64px": "EfficientNet-lite0"}
LARGEST = 1e18
"""Beyond this a figure is taken for damage; a float, so that an int of any size can be compared with it."""


def part(values: Any, *keys: str) -> dict[str, Any]:
    """The mapping at this path; empty where there is none."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return dict(values) if isinstance(values, Mapping) else {}


def figure(value: Any) -> int | float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < LARGEST else None  # not for nan


def listed(values: Any) -> list[Any]:
    """The items of a list; none for anything else."""
    return list(values) if isinstance(values, list | tuple) else []


def figures(values: Any) -> list[int | float | None]:
    """``figure`` of each item of a list."""
    return [figure(value) for value in listed(values)]


def interval(values: Any, name: str) -> tuple[float, float] | None:
    """``name``'s interval among ``values``, if there is a whole one."""
    ends = figures(part(values).get(f"{name}_interval"))
    return (ends[0], ends[1]) if len(ends) == 2 and ends[0] is not None and ends[1] is not None else None


def number(value: Any) -> str:
    """Integers with thousands separators, large counts in giga, other numbers with four digits."""
    value = figure(value)
    if value is None:
        return DASH
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**9 else f"{value / 10**9:,.3g} G"
    return f"{value:,.1f}" if 1000 <= abs(value) < 10**9 else f"{value:.4g}"


def brackets(ends: tuple[float, float] | None) -> str:
    """``[241, 259]``; empty without an interval."""
    return "" if ends is None else f"[{', '.join(f'{x:,.0f}' if abs(x) >= 100 else f'{x:.3g}' for x in ends)}]"


def mib(count: Any) -> str:
    count = figure(count)
    return DASH if count is None else f"{count / MIB:,.2f} MiB"


def ratio(a: Any, b: Any) -> str | None:
    a, b = figure(a), figure(b)
    return f"{a / b:.2f}{TIMES}" if a and b else None


def plain(value: Any) -> str:
    """A list as its items; anything else as it is."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def metric_name(name: str) -> str:
    return METRICS.get(name, name)


def extractor_name(extractor: Mapping[str, Any]) -> str:
    name = str(extractor.get("name") or "an unnamed extractor")
    return EXTRACTORS.get(name, name)


def frechet_of(distances: Mapping[str, Any]) -> str:
    """The name of the Frechet distance in every pair of ``distances``: the extractor's, or the first known one."""
    named = part(distances, "extractor").get("fid_name")
    if named:
        return str(named)
    pairs = [part(distances, pair) for pair in distances]
    return next((name for name in ("fid", "fd_efficientnet_lite0") if any(name in pair for pair in pairs)), "fid")


def worst_first(classes: Mapping[str, Any], kid: str) -> list[dict[str, Any]]:
    """The rows of a report's "classes", those of the largest KID first (the student's, where it has one, else the
    teacher's) and those without one last."""

    def order(row: dict[str, Any]) -> float:
        found = [figure(part(row, pair).get(kid)) for pair in ("student_to_data", "teacher_to_data")]
        return -next((value for value in found if value is not None), -math.inf)

    return sorted(filter(None, map(part, listed(classes.get("by_class")))), key=order)


def kid_of(distances: Mapping[str, Any]) -> str:
    """The name of KID, as ``frechet_of``."""
    named = part(distances, "extractor").get("kid_name")
    return str(named) if named else frechet_of(distances).replace("fid", "kid").replace("fd_", "kid_")
