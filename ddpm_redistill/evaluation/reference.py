"""The images that a model is measured against, and images made elsewhere that are measured in a model's place."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from torch.utils.data import Subset

from ..errors import UserError
from ..pipelines.seeds import seeded_generator
from ..sources.image_files import check_file, find_images, one_line, open_header
from ..sources.image_source import ImageSource
from ..sources.images import open_images, read_npz
from .extractors import Extractor
from .feature_cache import cached_features
from .features import Features
from .statistics import holds_statistics, save_statistics

log = logging.getLogger("ddpm_redistill")

CHANNELS = {"1": 1, "L": 1, "P": 3, "RGB": 3}
"""Of Pillow's modes that are taken as they are; others (transparency, 16 bits, CMYK) would have to be changed."""
OWN_SIZE = {"builtin:digits": 32}


def reference_images(
    source: str, *, image_size: int, channels: int, num_images: int, seed: int, data_range: float | None = None
) -> Subset[torch.Tensor]:
    """``num_images`` images of a source, chosen by ``seed``: uint8 (channels, image_size, image_size) each.

    Raises: :class:`UserError` as ``open_images``, or if it has fewer.
    """
    images = open_images(source, image_size=image_size, channels=channels, data_range=data_range)
    return choose_images(images, source, num_images, seed)


def choose_images(images: ImageSource, source: str, num_images: int | None, seed: int) -> Subset[torch.Tensor]:
    """``num_images`` of the images (None: all), in an order that only ``seed`` and how many there are decide.

    Raises: :class:`UserError` if there are fewer.
    """
    if num_images is not None and len(images) < num_images:
        raise UserError(f"{source} has {len(images)} images, {num_images} are needed: lower --num_images")
    log.info("data: %s", images.description)
    order = torch.randperm(len(images), generator=seeded_generator(seed, "evaluate"))
    return Subset(images, order[:num_images].tolist())


def write_statistics(
    source: str,
    output: Path,
    extractor: Extractor,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    num_images: int | None = None,
    seed: int = 0,
    data_range: float | None = None,
) -> Features:
    """Measure a data set and save it with ``save_statistics``: what is read back are the features of
    :func:`reference_images` with the same image size, channels, number and seed.

    Args:
        source: as ``open_images``.
        output: a new .npz file.
        image_size: pixels a side; None: the images' own, which must agree.
        channels: 1 or 3; None: the images' own, 3 with an ``image_size``.
        num_images: None: all.
        data_range: as ``open_images``; with an ``image_size`` or a named data set, since the images' own size is taken
            of 8-bit images alone.

    Raises:
        UserError: a mistake in any argument, before anything is measured.
    """
    if output.suffix.lower() != ".npz":
        raise UserError(f"{output} must end in .npz")
    if output.exists():
        raise UserError(f"{output} exists: give another --output")
    above = next(folder for folder in output.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"{above} is a file: give another --output")
    if channels is not None:
        check_measurable(channels, source)
    if num_images is not None and num_images < 2:
        raise UserError(f"num_images must be at least 2 for statistics, not {num_images}")
    if holds_statistics(os.path.expanduser(source)):
        raise UserError(f"{source} holds statistics already, not images")
    images = choose_images(_open(source, image_size, channels, data_range), source, num_images, seed)
    if len(images) < 2:
        raise UserError(f"statistics need at least 2 images, {source} has {len(images)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    features = cached_features(images, extractor, progress="features")
    save_statistics(output, features)
    return features


def check_measurable(channels: int, ref: str) -> None:
    """Raises UserError where no features are taken of images of so many channels."""
    if channels not in (1, 3):
        raise UserError(
            f"images of {channels} channels cannot be measured ({ref}): the features that distances are taken of are"
            " those of grey or RGB images"
        )


def open_image_set(path: str | os.PathLike[str]) -> ImageSource:
    """Images made elsewhere, as they are: a folder of image files or an .npz of uint8 images, all square, of one size
    and of 1 or 3 channels. Nothing is resized, and grey is not mixed with colour.

    Raises: :class:`UserError`, one line, naming two files that differ; and as ``open_images``.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        (width, height), channels = _agreed(place)
    elif place.is_file() and place.suffix.lower() == ".npz":
        _, height, width, *last = read_npz(str(place)).shape
        channels = last[0] if last else 1
    else:
        what = "is a file, but not an .npz of images" if place.exists() else "does not exist"
        raise UserError(f"{path} {what}: give a folder of images or an .npz of uint8 images")
    check_measurable(channels, str(path))
    if width != height:
        raise UserError(f"the images in {path} are {width}x{height}: only square ones can be measured")
    return open_images(place, image_size=height, channels=channels)


def _open(source: str, image_size: int | None, channels: int | None, data_range: float | None) -> ImageSource:
    """As ``write_statistics`` says of its arguments."""
    there = os.path.exists(os.path.expanduser(source))
    if image_size is None and there and data_range is not None:
        raise UserError("--data_range needs --image_size and --channels, those of the model to be evaluated")
    if image_size is None and there:
        own = open_image_set(source)
        own_channels, image_size, _ = own[0].shape
        if channels in (None, own_channels):
            return own
    elif image_size is None and source in OWN_SIZE:
        image_size, channels = OWN_SIZE[source], channels or 1
    elif image_size is None:
        if ":" not in source:
            raise UserError(f"no such path: {source!r}")
        raise UserError(f"give --image_size and --channels for {source}, those of the model to be evaluated")
    channels = 3 if channels is None else channels
    return open_images(source, image_size=image_size, channels=channels, data_range=data_range)


def _agreed(folder: Path) -> tuple[tuple[int, int], int]:
    """((width, height), channels) of all images of a folder, by their headers."""
    names = find_images(folder)
    first = _header(folder / names[0])
    for name in names:
        found = _header(folder / name)
        if found != first:
            raise UserError(
                f"the images in {folder} differ: {_say(names[0], *first)}, {_say(name, *found)}; they are measured as "
                "they are, so make them alike"
            )
    return first


def _say(name: str, size: tuple[int, int], channels: int) -> str:
    return f"{name} is {size[0]}x{size[1]} with {channels} channel{'' if channels == 1 else 's'}"


def _header(path: Path) -> tuple[tuple[int, int], int]:
    try:
        with open_header(check_file(path)) as image:
            size, mode, transparent = image.size, image.mode, image.has_transparency_data
    except Exception as error:  # broken files surface from Pillow as almost any type
        raise UserError(f"{path} cannot be read: {one_line(error)}; remove or replace it") from error
    if mode not in CHANNELS or transparent:
        what = "transparency" if transparent else f"mode {mode}"
        raise UserError(f"{path} has {what}: images to measure must be 8-bit grey or RGB")
    return size, CHANNELS[mode]
