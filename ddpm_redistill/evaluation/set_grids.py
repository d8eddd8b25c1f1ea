"""The first images of each set of an evaluation as pictures; where there are few classes, a column for each."""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from .pages.pictures import class_titles, grid_shape, image_grid
from .shared_classes import SharedClasses


def images_shown(classes: SharedClasses | None) -> int:
    """Of each set, by ``set_grids``."""
    return _shape(classes)[1]


def set_grids(
    first: Mapping[str, Tensor], images: Subset[Tensor] | None, classes: SharedClasses | None
) -> tuple[dict[str, Image.Image], bool]:
    """A grid of each set in ``first``, uint8 (N, C, H, W), and of the data's ``images``; data, student, teacher. All
    have as many columns: the same place in those of student and teacher is the same image of both.

    And whether the columns are classes.
    """
    columns, count = _shape(classes)
    titles = class_titles(classes.turns, classes.names) if classes is not None else []
    titled = {*classes.sampled} if classes is not None and titles else set()
    shown = {name: found[:count] for name, found in first.items()}
    if images is not None:
        order = (
            by_turns(classes.labels["data"], columns, count) if titles and classes and "data" in classes.labels else []
        )
        titled |= {"data"} if order else set()
        shown["data"] = torch.stack([images[i] for i in order or range(min(count, len(images)))])
    grids = {name: image_grid(shown[name], columns, titles if name in titled else ()) for name in sorted(shown)}
    return grids, bool(titles)


def by_turns(labels: Tensor, num_classes: int, count: int) -> list[int]:
    """Indices of up to ``count`` images whose labels are 0, 1, ..., num_classes - 1, 0, 1, ... in turn, the first of
    each class first; as many turns as the smallest class has images. ``labels``: int64 (N,)."""
    of_class: Sequence[list[int]] = [(labels == label).nonzero().flatten().tolist() for label in range(num_classes)]
    turns = min(count // num_classes, *map(len, of_class))
    return [found[turn] for turn in range(turns) for found in of_class]


def _shape(classes: SharedClasses | None) -> tuple[int, int]:
    return grid_shape(None if classes is None else classes.turns)
