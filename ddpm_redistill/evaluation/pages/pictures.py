"""Pictures of images: grids, side by side, as PNG. The charts are in ``charts.py``."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from ...errors import UserError
from .charts import INK

GRID_IMAGES, GRID_COLUMNS = 40, 8
"""Of the grids that a person is shown: the first images of a set."""
MOST_CLASSES, CLASS_ROWS = 16, 5
"""Of labels that are taken in turn, so many at most have a column each, with so many rows."""
TITLE = 18
"""Pixels above a grid that its columns' titles take."""
TILE = 64
"""Images narrower than this many pixels are shown enlarged, by a whole factor."""


def grid_shape(turns: Sequence[int] | None) -> tuple[int, int]:
    """(columns, images) of the grid of a set: where image k has label ``turns[k % len(turns)]``, a column for each."""
    if turns is None or not 2 <= len(turns) <= MOST_CLASSES:
        return GRID_COLUMNS, GRID_IMAGES
    return len(turns), CLASS_ROWS * len(turns)


def class_titles(turns: Sequence[int] | None, names: Sequence[str]) -> list[str]:
    """Of the columns of ``grid_shape``; none where they are not of one class each."""
    return [] if turns is None or not 2 <= len(turns) <= MOST_CLASSES else [names[label] for label in turns]


def image_grid(images: Tensor, columns: int, titles: Sequence[str] = ()) -> Image.Image:
    """One RGB picture of all images, row by row, ``columns`` to a row, on white with thin gaps; ``titles`` above the
    columns.

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
    picture = Image.fromarray(grid.permute(1, 2, 0).contiguous().numpy())
    return _titled(picture, titles, shape[3] * factor + 2) if titles else picture


def _titled(grid: Image.Image, titles: Sequence[str], width: int) -> Image.Image:
    """The grid with a title above each of its columns of ``width`` pixels, cut where it is wider."""
    picture = Image.new("RGB", (grid.width, grid.height + TITLE), "white")
    picture.paste(grid, (0, TITLE))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=12)
    for column, title in enumerate(titles):
        while draw.textlength(title, font) > width - 2:
            title = title[:-1]
        draw.text((2 + column * width, 2), title, fill=INK, font=font)
    return picture


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


def png_bytes(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
