"""The timeline of a forward pass for people: one picture of several networks, and a table of every operation."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ...core.timeline import TimelinePoint
from ...errors import UserError
from ...units import MIB
from .charts import FAINT, INK, LINE_COLOURS, STUDENT_COLOUR, TEACHER_COLOUR

SKIP_COLOUR, PEAK_COLOUR, RED_COLOUR = "#4a5b6c", INK, LINE_COLOURS[1]
LEGEND = ("live activations", "of these, long skips", "RED block", "peak")
PANEL_WIDTH, PANEL_HEIGHT = 8.0, 2.2
"""Inches."""


def timeline_picture(timelines: Mapping[str, Sequence[TimelinePoint]]) -> bytes:
    """Live MiB over the forward pass, one panel for each named network, all on one scale, as a PNG.

    Long skips are shaded apart at the bottom, RED blocks marked along it, and the first operation that reaches the
    peak is named. Raises: :class:`UserError` for no network, or one that ran no operation.
    """
    if not timelines or not all(timelines.values()):
        raise UserError("there is no timeline to draw: a network with at least one operation is needed")
    figure = Figure(figsize=(PANEL_WIDTH, PANEL_HEIGHT * len(timelines) + 0.7), dpi=150, layout="constrained")
    figure.set_facecolor("white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(timelines), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    highest = max(peak_of(points).live_bytes for points in timelines.values()) / MIB
    for axes, (name, points) in zip(panels, timelines.items(), strict=True):
        _draw(axes, name, points, highest)
    panels[0].set_ylim(-0.07 * highest, 1.22 * highest)  # below: the marks of RED blocks; above: the peak's value
    panels[0].set_xlim(0, 100)
    panels[-1].set_xlabel("operations of the forward pass, %", color=INK)
    figure.supylabel("live activations, MiB", color=INK, fontsize=10)
    found = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    labels = [label for label in LEGEND if label in found]
    handles = [found[label] for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, labelcolor=INK, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def write_timeline_csv(path: Path, timelines: Mapping[str, Sequence[TimelinePoint]]) -> None:
    """One row an operation: the network's name, then the fields of ``TimelinePoint``; bytes, ``red`` as 0 or 1."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["network", *(field.name for field in fields(TimelinePoint))])
        for name, points in timelines.items():
            for point in points:
                writer.writerow([name, *(int(v) if isinstance(v, bool) else v for v in astuple(point))])


def peak_of(points: Sequence[TimelinePoint]) -> TimelinePoint:
    """The first operation after which the most bytes are alive. Raises ValueError without one."""
    return max(points, key=lambda point: point.live_bytes)


def _draw(axes: Axes, name: str, points: Sequence[TimelinePoint], highest: float) -> None:
    colour = TEACHER_COLOUR if name.startswith("teacher") else STUDENT_COLOUR
    step = 100 / len(points)
    edges = [index * step for index in range(len(points) + 1)]
    live = [point.live_bytes / MIB for point in points]
    skips = [point.skip_bytes / MIB for point in points]
    axes.stairs(live, edges, fill=True, color=colour, alpha=0.35)
    axes.stairs(live, edges, color=colour, linewidth=1.2, label=LEGEND[0])
    if any(skips):
        axes.stairs(skips, edges, fill=True, color=SKIP_COLOUR, alpha=0.75, label=LEGEND[1])
    for first, last in _red_spans(points):
        span = [edges[first], edges[last]]
        axes.plot(span, [-0.035 * highest] * 2, color=RED_COLOUR, linewidth=4, solid_capstyle="butt", label=LEGEND[2])
    peak = peak_of(points)
    x, y = (peak.index + 0.5) * step, peak.live_bytes / MIB
    axes.plot([x], [y], "o", color=PEAK_COLOUR, markersize=5, label=LEGEND[3])
    side = "right" if x > 90 else "left" if x < 10 else "center"
    axes.annotate(
        f"{y:.2f} MiB", (x, y), (0, 6), textcoords="offset points", ha=side, va="bottom", color=INK, fontsize=9
    )
    where = peak.module or "the network itself"
    axes.set_title(f"{name}: peak {y:.4f} MiB at {peak.operation}\nin {where}", loc="left", fontsize=9, color=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#aab4bd")
    axes.tick_params(colors=INK, labelsize=9)


def _red_spans(points: Sequence[TimelinePoint]) -> Iterator[tuple[int, int]]:
    """(first, last excluded) of every run of operations inside RED blocks."""
    first = None
    for index, point in enumerate(points):
        if point.red and first is None:
            first = index
        if not point.red and first is not None:
            yield first, index
            first = None
    if first is not None:
        yield first, len(points)
