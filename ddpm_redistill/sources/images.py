"""Images to learn from: a folder, an .npz file or a named data set, all opened by `open_images`."""

import os
from pathlib import Path

import numpy as np

from ..config import MOST_CHANNELS
from ..errors import UserError
from .image_folders import OnBadImage, open_folder
from .image_sets import OPENERS
from .image_source import ImageSource, from_array
from .npz_files import read_arrays

__all__ = ["ImageSource", "open_images"]

LARGEST_SIDE = 8192  # a square of LARGEST_IMAGE pixels
LABELS = "labels"  # of an .npz: the array of the classes
MOST_CLASSES = 100_000  # four times ImageNet-21k; each gets a name, so that a wrong label must not fill the memory
FORMS = "a folder of images, an .npz file, torchvision:NAME, hub:NAME, builtin:digits"


def open_images(
    source: str | os.PathLike[str],
    *,
    image_size: int,
    channels: int,
    on_bad_image: OnBadImage = "error",
    data_range: float | None = None,
) -> ImageSource:
    """Opens a source of images, `channels` 1 (luminance) or 3 (RGB), `image_size` pixels in each direction; of an .npz
    that has as many, any `channels` up to 8.

    source: a folder (searched recursively), an .npz file of uint8 (N, H, W, C) or (N, H, W) images,
    `torchvision:NAME`, `hub:NAME` or `builtin:digits`. Images of another size are resized by their shorter
    side (bicubic, antialiased) and cropped at the centre. A folder of up to 64 MiB once decoded is held in
    memory, a larger one is decoded on access; all other sources are held in memory, N * C * image_size ** 2
    bytes.

    Where every image has one class, the source has `labels`: a folder with images in subfolders alone, a class each;
    an .npz with integers `labels` (N,); a named data set that has them.

    on_bad_image: of a folder, what is done about an image that cannot be read, when it is opened or later: "error"
    stops; "skip" puts the next good image of the sorted names in its place, says so, and stops when more than one in
    a hundred are bad (one may always be). The other sources are always whole.

    data_range: the value that becomes 255, and above which there may be none; None: the end of the range of the file's
    kind of values, 255 of 8 bits, 65535 of 16, 1 of floating point. A source that uses less than a quarter of it, has
    images of several frames (the first is taken) or of less than half of image_size is warned of, a line each.

    Raises UserError, one line, for anything that cannot be opened.
    """
    source = os.fspath(source)
    if not 1 <= channels <= MOST_CHANNELS:
        raise UserError(
            f"images with {channels} channels are not supported; use 1 (grey), 3 (RGB), or of an .npz up to"
            f" {MOST_CHANNELS}"
        )
    if data_range is not None and not 0 < data_range < float("inf"):
        raise UserError(f"data_range is {data_range}; give the value that becomes white, a number above 0")
    if not 1 <= image_size <= LARGEST_SIDE:
        raise UserError(f"image_size is {image_size}; give the side of the images in pixels, 1 to {LARGEST_SIDE}")
    prefix, colon, name = source.partition(":")
    path = os.path.expanduser(source)
    named, is_folder = bool(colon) and prefix in OPENERS, os.path.isdir(path)
    if channels not in (1, 3) and (named or is_folder):
        raise UserError(
            f"the images of {source} are read as grey or RGB, and {channels} channels are needed: save them as an .npz"
            f" of uint8 (N, H, W, {channels})"
        )
    if named:
        return OPENERS[prefix](name, image_size, channels, data_range)
    if is_folder:
        return open_folder(Path(path), image_size, channels, on_bad_image, data_range)
    if not os.path.isfile(path):
        what = f"unknown source prefix '{prefix}:' in {source}" if colon else f"no such path: {source!r}"
        raise UserError(f"{what}; a source of images is {FORMS}")
    if not path.lower().endswith(".npz"):
        raise UserError(f"{source} is a file, but not an .npz of images; a source of images is {FORMS}")
    pixels = read_npz(path)
    labels = read_npz_labels(path, len(pixels))
    images = from_array(pixels, path, image_size, channels, data_range)
    return images if labels is None else images.with_labels(labels, map(str, range(int(labels.max()) + 1)))


def check_data_range(data_range: float | None, *, images: bool) -> None:
    """Raises UserError when a range is given and no ``images`` are, statistics of some or none at all."""
    if data_range is not None and not images:
        raise UserError("--data_range is of the images that --data gives, and there are none: leave it out")


def read_npz(path: str) -> np.ndarray:
    """The images of an .npz file: uint8 (N, H, W) or (N, H, W, 1 to 8), N > 0. Raises UserError for any other."""
    try:
        key, array = read_arrays(path, _choose_images).popitem()
    except ValueError as error:
        raise UserError(
            f"{path} cannot be read as an .npz of images: {error}; "
            "write it with numpy.savez(path, images=array_of_uint8)"
        ) from error
    if array.dtype != np.uint8:
        raise UserError(f"'{key}' in {path} holds {array.dtype}, not uint8 pixels of 0..255; save it as those")
    shape = array.shape
    # (N, 3, 8, 8) are squares with their channels first, not lines of 8 channels
    first = array.ndim == 4 and shape[1] <= MOST_CHANNELS and shape[2] == shape[3] != shape[1]
    if array.ndim not in (3, 4) or (array.ndim == 4 and shape[3] > MOST_CHANNELS) or 0 in shape or first:
        hint = "move the channels last" if first else "save it in that shape"
        raise UserError(
            f"'{key}' in {path} has shape {shape}, not (N, H, W[, 1 to {MOST_CHANNELS}]) with N > 0; {hint}"
        )
    return array


def _choose_images(names: list[str]) -> list[str]:
    """Of the arrays of an .npz, the one of the images: "images", "arr_0", else the first that is not the labels."""
    found = next((name for name in ("images", "arr_0", *names) if name in names and name != LABELS), None)
    if found is None:
        raise ValueError(f"it holds '{LABELS}' and no images")
    return [found]


def read_npz_labels(path: str, count: int) -> np.ndarray | None:
    """The classes of the `count` images of an .npz file, int64 (count,), numbered from 0; None where it has none.

    Raises UserError for anything else under that name.
    """
    try:
        labels = read_arrays(path, lambda names: [LABELS] if LABELS in names else []).get(LABELS)
    except ValueError as error:
        raise UserError(f"the labels in {path} cannot be read: {error}; save them as an array of integers") from error
    if labels is None:
        return None
    what = f"'{LABELS}' in {path}"
    if labels.dtype.kind not in "iu":
        raise UserError(f"{what} holds {labels.dtype}, not the class of each image as an integer; save it as those")
    if labels.shape != (count,):
        raise UserError(f"{what} has shape {labels.shape}, not ({count},): one class for each image; save it as that")
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= MOST_CLASSES:
        wrong = least if least < 0 else most
        raise UserError(f"{what} holds {wrong}, not classes of 0 to at most {MOST_CLASSES - 1:,}; number them from 0")
    return labels.astype(np.int64)
