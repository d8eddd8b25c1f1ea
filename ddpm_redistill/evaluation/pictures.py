"""Pictures of the report: grids of images and two charts, as PNG. No global state of matplotlib is
touched."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from ..errors import UserError
from ..units import MIB

TILE = 64
"""Images narrower than this many pixels are shown enlarged, by a whole factor."""
TEACHER_COLOUR, STUDENT_COLOUR, INK, FAINT = "#9aa7b4", "#0f6b66", "#27323d", "#e3e8ec"
LINE_COLOURS = ("#0f6b66", "#c2703d", "#4a6fa5", "#8a5a83", "#7d8b3c", "#6b7680")
NOT_LOSSES = {"step", "epoch", "learning_rate", "grad_norm", "images_per_second", "seconds", "images"}
PEAKS = {
    "tensor_peak": "exact tensor peak",
    "paper_peak": "paper's peak",
    "paper_peak_with_skips": "paper's, with skips",
    "red_paper_peak": "paper's, RED blocks",
}


def image_grid(images: Tensor, columns: int) -> Image.Image:
    """One RGB picture of all images, row by row, ``columns`` to a row, on white with thin gaps.

    ``images``: uint8 (N, C, H, W), 1 or 3 channels, values 0 to 255. Images under 64 pixels a side are
    enlarged by repeating pixels. Raises: :class:`UserError` for other tensors, no images, or ``columns``
    below 1.
    """
    shape = tuple(images.shape)
    if images.dtype != torch.uint8 or images.dim() != 4 or 0 in shape or shape[1] not in (1, 3):
        raise UserError(f"a grid needs uint8 (N, C, H, W) with 1 or 3 channels, got {images.dtype} {shape}")
    if columns < 1:
        raise UserError(f"a grid needs at least 1 column, got {columns}")
    factor = math.ceil(TILE / max(shape[2:]))
    tiles = images.cpu().repeat_interleave(factor, 2).repeat_interleave(factor, 3).expand(-1, 3, -1, -1)
    grid = make_grid(tiles, nrow=min(columns, shape[0]), padding=2, pad_value=255)
    return Image.fromarray(grid.permute(1, 2, 0).contiguous().numpy())


def side_by_side(grids: Mapping[str, Image.Image]) -> Image.Image:
    """One picture of named grids beside each other, each under its name."""
    gap, title = 24, 44
    width = sum(grid.width for grid in grids.values()) + gap * (len(grids) + 1)
    height = max(grid.height for grid in grids.values()) + title + gap
    picture = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=24)
    left = gap
    for name, grid in grids.items():
        draw.text((left, 8), name, fill=INK, font=font)
        picture.paste(grid, (left, title))
        left += grid.width + gap
    return picture


def grid_png_bytes(images: Tensor, columns: int) -> bytes:
    """:func:`image_grid` as the bytes of a PNG file."""
    return png_bytes(image_grid(images, columns))


def png_bytes(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def loss_curves(metrics_rows: Sequence[Mapping[str, Any]]) -> bytes:
    """The total loss and its parts (before weights) by training step, log scale, as a PNG.

    ``metrics_rows``: rows of ``metrics.jsonl``, each with ``step`` and numbers by name; rates and norms are
    left out, as are values that a log scale cannot show. Raises: :class:`UserError` when no loss is left.
    """
    rows = [row for row in metrics_rows if "step" in row]
    names = sorted({name for row in rows for name in row} - NOT_LOSSES, key=lambda name: (name != "loss", name))
    series = {}
    for name in names:
        points = [(row["step"], row[name]) for row in rows if _positive(row.get(name))]
        if points:
            series[name] = list(zip(*points, strict=True))
    if not series:
        raise UserError("there are no losses to draw: no row has a step and a positive loss")
    figure, axes = _chart(6.0, 3.2)
    for index, (name, (steps, values)) in enumerate(series.items()):
        width, order = (2.0, 3) if name == "loss" else (1.2, 2)
        marker = "o" if len(steps) < 3 else None
        colour = LINE_COLOURS[index % len(LINE_COLOURS)]
        axes.plot(steps, values, color=colour, label=name, marker=marker, linewidth=width, zorder=order)
    axes.set_yscale("log")
    axes.set_xlabel("training step", color=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.legend(frameon=False, labelcolor=INK, loc="upper right", ncols=2 if len(series) > 3 else 1)
    return _png(figure)


def memory_bars(memory: Mapping[str, Any]) -> bytes:
    """Named peaks of activations of student and teacher as bars in MiB, as a PNG.

    ``memory``: ``teacher`` (may be absent or None) and ``student``, dicts with the peaks in bytes (None: not
    known). Raises: :class:`UserError` when no peak is known.
    """
    models = [(name, memory[name]) for name in ("teacher", "student") if memory.get(name)]
    peaks = [key for key in PEAKS if any(values.get(key) for _, values in models)]
    if not peaks:
        raise UserError("there are no peaks to draw: memory has no known value")
    step = len(models) + 0.7
    figure, axes = _chart(6.0, 0.7 + 0.3 * step * len(peaks))
    widest = max(values.get(key) or 0 for _, values in models for key in peaks) / MIB
    for offset, (name, values) in enumerate(models):
        colour = TEACHER_COLOUR if name == "teacher" else STUDENT_COLOUR
        known = [(row * step + offset, values[key] / MIB) for row, key in enumerate(peaks) if values.get(key)]
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
        axes.legend(frameon=False, labelcolor=INK, loc="lower right")
    return _png(figure)


def _chart(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=200, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#aab4bd")
    axes.tick_params(colors=INK, labelsize=10)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0
