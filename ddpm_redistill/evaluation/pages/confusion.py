"""The confusion of a classifier as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from .charts import FAINT, INK, STUDENT_COLOUR, chart_png, new_chart

MOST_NUMBERED = 20
"""Classes whose counts fit into their cells, and whose names beside them."""


def confusion_picture(counts: Sequence[Sequence[int]], names: Sequence[str]) -> bytes:
    """A PNG of ``counts`` (K, K), a row for each true class and a column for each predicted one: the darker, the larger
    the share of its row. Up to ``MOST_NUMBERED`` classes have their names and counts."""
    table = np.asarray(counts, dtype=float)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    size = len(table)
    drawing, axes = new_chart(*(2 * [min(8.0, 2.2 + 0.42 * size)]))
    colours = LinearSegmentedColormap.from_list("shares", ["white", STUDENT_COLOUR])
    axes.imshow(shares, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("predicted class", color=INK)
    axes.set_ylabel("true class", color=INK)
    axes.spines[:].set_visible(False)
    if size > MOST_NUMBERED:
        return chart_png(drawing)
    shown = [name if len(name) <= 16 else f"{name[:15]}\u2026" for name in map(str, names)]
    axes.set_xticks(range(size), shown, rotation=90 if max(map(len, shown)) > 2 else 0, parse_math=False)
    axes.set_yticks(range(size), shown, parse_math=False)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=FAINT, linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    for row, column in np.argwhere(table > 0):
        colour = "white" if shares[row, column] > 0.5 else INK
        axes.text(column, row, f"{int(table[row, column])}", ha="center", va="center", fontsize=8, color=colour)
    return chart_png(drawing)
