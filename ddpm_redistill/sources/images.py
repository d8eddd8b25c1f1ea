"""Images to learn from: a folder, an .npz file or a named data set, all opened by `open_images`."""

import os
import zipfile
from pathlib import Path

import numpy as np

from ..errors import UserError
from .image_files import FolderReader, find_images, one_line, scan_folder
from .image_sets import OPENERS
from .image_source import ImageSource, describe, from_array

__all__ = ["ImageSource", "open_images"]

FORMS = "a folder of images, an .npz file, torchvision:NAME, hub:NAME, builtin:digits"


def open_images(source: str | os.PathLike[str], *, image_size: int, channels: int) -> ImageSource:
    """Opens a source of images, `channels` 1 (luminance) or 3 (RGB), `image_size` pixels in each direction.

    source: a folder (searched recursively), an .npz file of uint8 (N, H, W, C) or (N, H, W) images,
    `torchvision:NAME`, `hub:NAME` or `builtin:digits`. Images of another size are resized by their shorter
    side (bicubic, antialiased) and cropped at the centre. A folder of up to 64 MiB once decoded is held in
    memory, a larger one is decoded on access; all other sources are held in memory, N * C * image_size ** 2
    bytes. Raises UserError, one line, for anything that cannot be opened.
    """
    source = os.fspath(source)
    if channels not in (1, 3):
        raise UserError(f"images with {channels} channels are not supported; use 1 (grey) or 3 (RGB)")
    if image_size < 1:
        raise UserError(f"image_size is {image_size}; give the side of the images in pixels, 1 or more")
    prefix, colon, name = source.partition(":")
    if colon and prefix in OPENERS:
        return OPENERS[prefix](name, image_size, channels)
    path = os.path.expanduser(source)
    if os.path.isdir(path):
        return _open_folder(Path(path), image_size, channels)
    if not os.path.isfile(path):
        what = f"unknown source prefix '{prefix}:' in {source}" if colon else f"no such path: {source!r}"
        raise UserError(f"{what}; a source of images is {FORMS}")
    if not path.lower().endswith(".npz"):
        raise UserError(f"{source} is a file, but not an .npz of images; a source of images is {FORMS}")
    return from_array(read_npz(path), path, image_size, channels)


def _open_folder(path: Path, image_size: int, channels: int) -> ImageSource:
    reader = FolderReader(path.absolute(), find_images(path), image_size, channels)
    scan = scan_folder(reader)
    n = len(reader.names)
    text = describe(n, str(path), scan.sizes, image_size, channels)
    return ImageSource(n, reader if scan.kept is None else scan.kept, text, scan.fingerprint)


def read_npz(path: str) -> np.ndarray:
    """The images of an .npz file: uint8 (N, H, W) or (N, H, W, 1 or 3), N > 0. Raises UserError for any other."""
    try:
        if not zipfile.is_zipfile(path):  # np.load would take a .npy or a pickle under this name
            raise ValueError("it is not an archive as numpy.savez writes")
        with np.load(path, allow_pickle=False) as file:
            if not file.files:
                raise ValueError("it holds no arrays")
            key = next(key for key in ("images", "arr_0", *file.files) if key in file.files)
            array = file[key]
    except Exception as error:  # zip, zlib, numpy and memory errors alike: the file is the cause
        reason = one_line(error)
        if "allow_pickle" in reason:
            reason = f"'{key}' holds Python objects, which are never loaded"
        raise UserError(
            f"{path} cannot be read as an .npz of images: {reason}; "
            "write it with numpy.savez(path, images=array_of_uint8)"
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        kind = array.dtype if isinstance(array, np.ndarray) else "no array"
        raise UserError(f"'{key}' in {path} holds {kind}, not uint8 pixels of 0..255; save it as those")
    shape = array.shape
    if array.ndim not in (3, 4) or (array.ndim == 4 and shape[3] not in (1, 3)) or 0 in shape:
        hint = "move the channels last" if array.ndim == 4 and shape[1] in (1, 3) else "save it in that shape"
        raise UserError(f"'{key}' in {path} has shape {shape}, not (N, H, W[, 1 or 3]) with N > 0; {hint}")
    return array
