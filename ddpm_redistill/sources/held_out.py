"""Images that are kept from training, for a classifier to be tried on."""

from collections.abc import Callable

import torch

from ..errors import UserError
from ..pipelines.seeds import seeded_generator
from .image_source import ImageSource


def split(
    images: ImageSource, held_out: float | str, seed: int, open_source: Callable[[str], ImageSource]
) -> tuple[ImageSource, ImageSource | None]:
    """The images to learn from, and those held out.

    Args:
        held_out: a share of ``images`` that is drawn by ``seed``, None for 0; or another source of images, as
            ``open_source`` takes it.

    Raises:
        UserError: a share that is not from 0 to below 1, or leaves none; or the source cannot be opened.
    """
    if isinstance(held_out, str):
        return images, open_source(held_out)
    if not 0 <= held_out < 1:
        raise UserError(f"held_out must be a share from 0 to below 1, or a source of images, not {held_out}")
    count = round(held_out * len(images))
    if not held_out:
        return images, None
    if not 0 < count < len(images):
        side = "none is held out" if count == 0 else "none is left to learn from"
        raise UserError(f"held_out is {held_out} of {len(images)} images, so that {side}: give more images")
    order = torch.randperm(len(images), generator=seeded_generator(seed, "held out"))
    learned, held = order[count:].sort().values, order[:count].sort().values
    return images.subset(learned), images.subset(held)
