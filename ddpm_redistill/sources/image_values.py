"""Pixel values of any kind as 8-bit ones: which value becomes 255, and which values an image has."""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image

EIGHT, SIXTEEN, COLOUR, WIDE, FLOAT = "8-bit", "16-bit", "16-bit colour", "32-bit", "floating-point"
# What becomes 255 where nothing else is said. Values of 32 bits have no range of their own: they are taken for those of
# 16, as Pillow's mode I may be.
FULL_RANGE = {EIGHT: 255.0, SIXTEEN: 65535.0, COLOUR: 65535.0, WIDE: 65535.0, FLOAT: 1.0}
WHITE_IS_ZERO = (262, 0)  # a tag of TIFF and its value


class Values(NamedTuple):
    """The kind of an image's values, the least and the largest of them, and the one that becomes 255."""

    kind: str
    least: float
    most: float
    full: float


def kind_of(image: Image.Image) -> str:
    """One of FULL_RANGE, of an image whose pixels are not decoded yet.

    Raises ValueError for values that count down from white, which Pillow gives as they are where they have more than
    8 bits.
    """
    kind = {"F": FLOAT, "I": WIDE}.get(image.mode, SIXTEEN if image.mode.startswith("I;16") else EIGHT)
    tag, value = WHITE_IS_ZERO
    if kind != EIGHT and getattr(image, "tag_v2", {}).get(tag) == value:
        raise ValueError(f"{kind} values of which 0 is white; save it with 0 as black")
    if kind == EIGHT and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ())):
        return COLOUR  # Pillow gives the upper byte of each value
    return kind


def full_range(kind: str, data_range: float | None) -> float:
    """The value that becomes 255. Raises ValueError for a data_range that is not of this kind of values."""
    full = FULL_RANGE[kind]
    if data_range is None or data_range == full:
        return full
    if kind == COLOUR:
        raise ValueError(
            f"16-bit colour, of which the upper byte is read, so that data_range {data_range:g} is not of it; save it"
            " as 8 bit"
        )
    if kind in (EIGHT, SIXTEEN) and data_range > full:
        raise ValueError(f"{kind} values, which end at {full:.0f}, so that data_range {data_range:g} is not of it")
    return data_range


def to_levels(
    values: np.ndarray, kind: str, data_range: float | None, hidden: np.ndarray | None = None
) -> tuple[np.ndarray, Values]:
    """uint8 of the same shape, rounded: 0 stays 0, and what `full_range` says becomes 255, as does what is `hidden`.

    Raises ValueError for a value below 0 or above that.
    """
    shown = values if hidden is None else values[~hidden]
    full = full_range(kind, data_range)
    found = Values(kind, shown.min().item(), shown.max().item(), full) if shown.size else Values(kind, 0, 0, full)
    check_inside(found)
    scaled = np.floor(values.astype(np.float64) * 255 / full + 0.5)
    if hidden is not None:
        scaled[hidden] = 255
    return scaled.astype(np.uint8), found


def stretched(image: Image.Image, kind: str, data_range: float | None) -> tuple[Image.Image, Values]:
    """An image of mode L, RGB or RGBA with the values of all its channels but the alpha as `to_levels`."""
    extrema: Any = image.getextrema() if image.mode != "L" else (image.getextrema(),)  # (least, most) of each channel
    unit = 257 if kind == COLOUR else 1
    least, most = min(band[0] for band in extrema[:3]), max(band[1] for band in extrema[:3])
    found = Values(kind, least * unit, most * unit, full_range(kind, data_range))
    check_inside(found)
    if found.full != FULL_RANGE[kind]:
        table = [min(255, int(value * 255 / found.full + 0.5)) for value in range(256)]
        image = image.point(table * len(extrema[:3]) + list(range(256)) * len(extrema[3:]))
    return image, found


def check_inside(found: Values) -> None:
    if not (found.least >= 0 and found.most <= found.full):  # NaN is not
        raise ValueError(
            f"{found.kind} values of {found.least:.9g} to {found.most:.9g}, outside of 0 to {found.full:.9g};"
            " data_range is the value that becomes white"
        )
