"""Charts of the report and of comparisons, as PNG, in one style. No global state of matplotlib is touched."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from ...errors import UserError
from ...units import MIB
from .text import figure

TEACHER_COLOUR, STUDENT_COLOUR, INK, FAINT = "#9aa7b4", "#0f6b66", "#27323d", "#e3e8ec"
LINE_COLOURS = ("#0f6b66", "#c2703d", "#4a6fa5", "#8a5a83", "#7d8b3c", "#6b7680")
MARKERS = "osD^vP"
NOT_LOSSES = {"step", "epoch", "learning_rate", "grad_norm", "images_per_second", "seconds", "images"}
PEAKS = {
    "tensor_peak": "exact tensor peak",
    "tensor_peak_lean": "exact, lean execution",
    "paper_peak": "paper's peak",
    "paper_peak_with_skips": "paper's, with skips",
    "red_paper_peak": "paper's, RED blocks",
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One value of a chart at ``x``, with the ends of its interval where they are known."""

    x: float
    y: float
    ends: tuple[float, float] | None = None
    name: str = ""


def loss_curves(metrics_rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The total loss and its parts (before weights) by training step, log scale, as a PNG.

    ``metrics_rows``: rows of ``metrics.jsonl``, each with ``step`` and numbers by name; rates and norms are
    left out, as are values that a log scale cannot show. Raises: :class:`UserError` when no loss is left.
    """
    rows = [row for row in metrics_rows if figure(row.get("step")) is not None]
    found = {name for row in rows for name in row if not name.startswith("held_out_")} - NOT_LOSSES
    names = sorted(found, key=lambda name: (name != "loss", name))
    series = {}
    for name in names:
        points = [(row["step"], row[name]) for row in rows if _positive(row.get(name))]
        if points:
            series[name] = list(zip(*points, strict=True))
    if not series:
        raise UserError("there are no losses to draw: no row has a step and a positive loss")
    drawing, axes = new_chart(6.0, 3.2)
    for index, (name, (steps, values)) in enumerate(series.items()):
        width, order = (2.0, 3) if name == "loss" else (1.2, 2)
        marker = "o" if len(steps) < 3 else None
        colour = LINE_COLOURS[index % len(LINE_COLOURS)]
        axes.plot(steps, values, color=colour, label=_label(name), marker=marker, linewidth=width, zorder=order)
    axes.set_yscale("log")
    axes.set_xlabel("training step", color=INK)
    _lines(axes)
    _legend(axes, ncols=2 if len(series) > 3 else 1)
    return chart_png(drawing)


def memory_bars(memory: Mapping[str, Any]) -> bytes:
    """Named peaks of activations of student and teacher as bars in MiB, as a PNG.

    ``memory``: ``teacher`` (may be absent or None) and ``student``, dicts with the peaks in bytes (None: not
    known). Raises: :class:`UserError` when no peak is known.
    """
    models = [(name, memory[name]) for name in ("teacher", "student") if memory.get(name)]
    peaks = [key for key in PEAKS if any(_positive(values.get(key)) for _, values in models)]
    if not peaks:
        raise UserError("there are no peaks to draw: memory has no known value")
    step = len(models) + 0.7
    drawing, axes = new_chart(6.0, 0.7 + 0.3 * step * len(peaks))
    widest = max(values[key] for _, values in models for key in peaks if _positive(values.get(key))) / MIB
    for offset, (name, values) in enumerate(models):
        colour = TEACHER_COLOUR if name == "teacher" else STUDENT_COLOUR
        sizes = [(row * step + offset, values.get(key)) for row, key in enumerate(peaks)]
        known = [(y, size / MIB) for y, size in sizes if _positive(size)]
        label = name if len(models) > 1 else "model"
        axes.barh([y for y, _ in known], [mib for _, mib in known], 0.86, color=colour, label=label)
        for y, mib in known:
            axes.text(mib + widest * 0.01, y, f"{mib:.2f}", va="center", fontsize=10, color=INK)
    axes.set_yticks([row * step + (len(models) - 1) / 2 for row in range(len(peaks))])
    axes.set_yticklabels([PEAKS[key] for key in peaks])
    axes.invert_yaxis()
    axes.set_xlim(0, widest * 1.12)
    axes.set_xlabel("MiB of activations, one image", color=INK)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    if len(models) > 1:
        _legend(axes, loc="lower right")
    return chart_png(drawing)


def step_curves(series: Mapping[str, Sequence[Point]], label: str) -> bytes:
    """A distance (named ``label``) by sampling steps, log2 scale, one line for each of ``series``, as a PNG.

    ``series``: ``teacher``, ``student`` or ``model`` -> at least one point in all; x from 1.
    """
    drawing, axes = new_chart(6.0, 3.2)
    for name, points in series.items():
        ordered = sorted(points, key=lambda point: point.x)
        colour = _colour(name)
        axes.plot([p.x for p in ordered], [p.y for p in ordered], "o-", color=colour, label=name, linewidth=1.8)
        for point in ordered:
            _whisker(axes, point.x, point, colour)
    axes.set_xscale("log", base=2)
    ticks = sorted({point.x for points in series.values() for point in points})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("sampling steps", color=INK)
    axes.set_ylabel(_label(label), color=INK, parse_math=False)
    axes.set_ylim(bottom=0) if min(p.y for points in series.values() for p in points) >= 0 else None
    _lines(axes)
    if len(series) > 1:
        _legend(axes)
    return chart_png(drawing)


def timestep_curves(series: Mapping[str, Sequence[Point]]) -> bytes:
    """The error of noise prediction by timestep, log scale, one line for each of ``series``, as a PNG; y above 0."""
    drawing, axes = new_chart(6.0, 3.0)
    for name, points in series.items():
        x, y = [point.x for point in points], [point.y for point in points]
        axes.plot(x, y, "o-", color=_colour(name), label=name, linewidth=1.8, markersize=4)
    axes.set_yscale("log")
    axes.set_xlabel("timestep (0 is the clean image)", color=INK)
    axes.set_ylabel("MSE of the predicted noise", color=INK)
    _lines(axes)
    if len(series) > 1:
        _legend(axes)
    return chart_png(drawing)


def histograms(panels: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> bytes:
    """Small histograms beside each other, title -> (edges (k + 1,), counts (k,)), as a PNG."""
    drawing = Figure(figsize=(2.6 * len(panels), 1.9), dpi=200, layout="constrained", facecolor="white")
    FigureCanvasAgg(drawing)
    for axes, (title, (edges, counts)) in zip(
        drawing.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        _style(axes)
        axes.stairs(counts, edges, fill=True, color=STUDENT_COLOUR, alpha=0.85)
        axes.set_title(title, fontsize=10, color=INK, loc="left")
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    return chart_png(drawing)


def distance_against_memory(runs: Sequence[Point], teachers: Sequence[Point], label: str) -> bytes:
    """A distance (named ``label``) over the exact tensor peak of each run, as a PNG; x in bytes, at least one run.

    Runs of one peak stand side by side around it, or their intervals would cover each other.
    """
    drawing, axes = new_chart(6.0, 3.2 + 0.12 * (len(runs) + len(teachers)))
    width = max(point.x for point in [*runs, *teachers]) / MIB
    peaks = [point.x for point in [*runs, *teachers]]
    for index, point in enumerate([*runs, *teachers]):
        teacher = index >= len(runs)
        colour = TEACHER_COLOUR if teacher else LINE_COLOURS[index % len(LINE_COLOURS)]
        marker = "*" if teacher else MARKERS[index // len(LINE_COLOURS) % len(MARKERS)]
        place = point.x / MIB + 0.012 * width * (peaks[:index].count(point.x) - (peaks.count(point.x) - 1) / 2)
        axes.plot([place], [point.y], marker, color=colour, markersize=11 if teacher else 7, label=_label(point.name))
        _whisker(axes, place, point, colour)
    axes.set_xlim(0, width * 1.08)
    axes.set_xlabel("exact tensor peak, MiB of activations, one image", color=INK)
    axes.set_ylabel(_label(label), color=INK, parse_math=False)
    _lines(axes)
    _plain_texts(drawing.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=INK, fontsize=9))
    return chart_png(drawing)


def new_chart(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this many inches with one set of axes in the style of the report."""
    drawing = Figure(figsize=(width, height), dpi=200, layout="constrained", facecolor="white")
    FigureCanvasAgg(drawing)
    axes = drawing.add_subplot()
    _style(axes)
    return drawing, axes


def chart_png(drawing: Figure) -> bytes:
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#aab4bd")
    axes.tick_params(colors=INK, labelsize=10)


def _lines(axes: Axes) -> None:
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)


def _legend(axes: Axes, **options: Any) -> None:
    _plain_texts(axes.legend(**{"frameon": False, "labelcolor": INK, "loc": "upper right", **options}))


def _plain_texts(legend: Legend) -> None:
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name with a dollar sign is no formula


def _label(name: str) -> str:
    """A name that a legend shows and that fits: one that starts with _ would be hidden."""
    shown = "".join(c if c.isprintable() else " " for c in str(name))
    shown = shown if len(shown) <= 40 else f"{shown[:18]}\u2026{shown[-18:]}"
    return f" {shown}" if shown.startswith("_") else shown


def _whisker(axes: Axes, x: float, point: Point, colour: str) -> None:
    if point.ends is not None:
        axes.plot([x, x], point.ends, "_-", color=colour, linewidth=1.4, markersize=8)


def _colour(name: str) -> str:
    return TEACHER_COLOUR if name == "teacher" else STUDENT_COLOUR


def _positive(value: Any) -> bool:
    return (figure(value) or 0) > 0
