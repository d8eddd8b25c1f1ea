"""Values of a report as Markdown: what is missing, or no number where one belongs, is a dash; texts are quoted."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..units import MIB

DASH = "\u2013"
SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#!|~$&])")


def figure(value: Any) -> int | float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < 1e18 else None  # not for nan


def number(value: Any) -> str:
    """Whole numbers as they are, others with four digits."""
    value = figure(value)
    if value is None:
        return DASH
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"


def mib(count: Any) -> str:
    """Bytes as MiB."""
    count = figure(count)
    return DASH if count is None else f"{count / MIB:,.3f} MiB"


def ratio(a: Any, b: Any) -> str:
    """How many times as large ``a`` is."""
    a, b = figure(a), figure(b)
    return f"{a / b:.2f}x" if a and b else DASH


def with_interval(values: Mapping[str, Any], name: str) -> str:
    """A figure with its 95% interval, where there is one."""
    ends = values.get(f"{name}_interval")
    ends = [figure(end) for end in ends] if isinstance(ends, Sequence) and not isinstance(ends, str) else []
    return number(values.get(name)) + (f" [{number(ends[0])}, {number(ends[1])}]" if len(ends) == 2 else "")


def text(value: Any) -> str:
    """Of any origin, on one line, shown as it is and never as markup."""
    return SPECIAL.sub(r"\\\1", " ".join(str(value).split()))


def code(value: Any) -> str:
    """The same in the type of code."""
    return f"`{' '.join(str(value).split()).replace('`', chr(39)).replace('|', '/')}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def listed(values: Any) -> str:
    """A list as its items."""
    return ", ".join(map(str, values)) if isinstance(values, list | tuple) else str(values)
