"""The nearest training image of each sample, in feature space: does a model repeat what it was trained on?"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..errors import UserError
from .pages.charts import FAINT, INK
from .pages.pictures import image_grid
from .paired import quantiles

CHUNK = 1024
"""Rows of each side compared at once: beside the features, memory stays below 8 x 1,024 x (4 D + 1,024) bytes, 75 MB
for D = 2,048, however many images there are (and data_to_data holds one more copy of the rows it looks up)."""


def nearest_images(features: Tensor, data_features: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest row of ``data_features`` (N, D) to each row of ``features`` (n, D), and its Euclidean
    distance: int64 (n,), float32 (n,). A copy is at exactly 0. Of equally near rows any may be named.

    Raises: :class:`UserError` for other shapes, or no rows.
    """
    return _nearest(features, data_features)


def nearest_summary(sample_features: Mapping[str, Tensor], data_features: Tensor) -> dict[str, Any]:
    """The "nearest" part of a report: ``num_samples``, and ``NAME_to_data`` for each set of samples and
    ``data_to_data``, each with ``mean`` and ``quantiles`` of the distance to the nearest data image.

    How to read it: ``data_to_data`` is the distance that images have which are new but of the same kind, since every
    image leaves itself out. Samples about as far from the data are new too; samples much nearer to it than it is to
    itself are copies, the model memorised; samples much further away are no images of this kind. Only small quantiles
    show a few copies among many.

    Args:
        sample_features: by name, (n, D) each, n the same for all.
        data_features: (N, D) of the training images, N at least 2. Up to n of them, evenly spread, are looked up.

    Raises:
        UserError: no set of samples, sets of different size, or as ``nearest_images``.
    """
    sizes = {len(features) for features in sample_features.values()}
    if len(sizes) != 1:
        raise UserError(f"nearest images need sets of samples of one size, got {sorted(sizes) or 'none'}")
    num_samples, num_data = sizes.pop(), len(data_features)
    if num_data < 2:
        raise UserError(f"nearest images need at least 2 images of data, got {num_data}")
    found = {f"{name}_to_data": _nearest(features, data_features)[1] for name, features in sample_features.items()}
    own = torch.linspace(0, num_data - 1, min(num_samples, num_data), dtype=torch.float64).round().long()
    found["data_to_data"] = _nearest(data_features[own], data_features, own)[1]
    return {"num_samples": num_samples, **{name: _spread(distances) for name, distances in found.items()}}


def nearest_picture(samples: Tensor, neighbours: Tensor, distances: Tensor, columns: int) -> Image.Image:
    """Each sample above its nearest training image, with their distance below, ``columns`` pairs to a row.

    ``samples``, ``neighbours``: uint8 (n, C, H, W), enlarged as in ``image_grid``; ``distances``: (n,).
    Raises: :class:`UserError` as ``image_grid``, or for counts that differ.
    """
    if not samples.shape == neighbours.shape or len(distances) != len(samples):
        raise UserError(
            f"a sample, its neighbour and its distance belong together, got {tuple(samples.shape)}, "
            f"{tuple(neighbours.shape)} and {len(distances)} distances"
        )
    rows = [slice(start, start + columns) for start in range(0, len(samples), max(columns, 1))]
    strips = [(image_grid(samples[row], columns), image_grid(neighbours[row], columns)) for row in rows]
    if not strips:
        raise UserError("there are no nearest images to show")
    return _lay_out(strips, [distances[row].tolist() for row in rows])


def _lay_out(strips: list[tuple[Image.Image, Image.Image]], distances: list[list[float]]) -> Image.Image:
    font = ImageFont.load_default(size=13)
    left, line, gap = 72, 20, 10
    strip = strips[0][0]
    pitch = strip.width // len(distances[0])
    row_height = 2 * strip.height + line + gap
    picture = Image.new("RGB", (left + strip.width + gap, gap + row_height * len(strips)), "white")
    draw = ImageDraw.Draw(picture)
    for row, (upper, lower) in enumerate(strips):
        top = gap + row * row_height
        if row:
            draw.line((gap, top - gap // 2, picture.width - gap, top - gap // 2), fill=FAINT)
        for y, label, image in ((top, "sample", upper), (top + strip.height, "nearest", lower)):
            draw.text((left - 8, y + strip.height // 2), label, fill=INK, font=font, anchor="rm")
            picture.paste(image, (left, y))
        y = top + 2 * strip.height + line // 2
        draw.text((left - 8, y), "distance", fill=INK, font=font, anchor="rm")
        for column, distance in enumerate(distances[row]):
            centre = left + column * pitch + pitch // 2
            draw.text((centre, y), f"{distance:#.3g}", fill=INK, font=font, anchor="mm")
    return picture


def _nearest(features: Tensor, data: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``own`` (n,): the row of ``data`` that each row of ``features`` is itself, and may not be its nearest."""
    if features.dim() != 2 or data.dim() != 2 or features.shape[1] != data.shape[1] or 0 in (len(features), len(data)):
        raise UserError(f"nearest images need features (n, D) and (N, D), got {features.shape} and {data.shape}")
    found = []
    for start in range(0, len(features), CHUNK):
        rows = features[start : start + CHUNK].double()
        best = torch.full((len(rows),), math.inf, dtype=torch.float64)
        index = torch.zeros(len(rows), dtype=torch.int64)
        for first in range(0, len(data), CHUNK):
            others = data[first : first + CHUNK].double()
            # |x - y|^2 less |x|^2, which is the same for all y; float64, since it is a difference of large terms
            squares = torch.addmm(others.square().sum(1), rows, others.T, alpha=-2)
            if own is not None:
                itself = own[start : start + CHUNK, None] == torch.arange(first, first + len(others))
                squares[itself] = math.inf
            value, place = squares.min(1)
            nearer = value < best
            best[nearer], index[nearer] = value[nearer], place[nearer] + first
        found.append(index)
    indices = torch.cat(found)
    # once more by the difference itself: exactly 0 for a copy
    pairs = zip(features.split(CHUNK), indices.split(CHUNK), strict=True)
    distances = torch.cat([(rows.double() - data[index].double()).norm(dim=1) for rows, index in pairs])
    return indices, distances.float()


def _spread(distances: Tensor) -> dict[str, Any]:
    return {"mean": float(distances.double().mean()), "quantiles": quantiles(distances.double().numpy())}
