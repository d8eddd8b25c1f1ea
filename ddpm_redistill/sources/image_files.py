"""From image bytes, or a folder of image files, to uint8 tensors of one size."""

import io
import os
import stat
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, features
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from ..errors import UserError
from .image_values import EIGHT, FLOAT, SIXTEEN, WIDE, Values, kind_of, stretched, to_levels

EXTENSIONS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
# Pillow picks its decoder by content, not by name; the list keeps out those that start other programs (EPS).
HAS_AVIF = "avif" in features.get_supported()  # of Pillow 11.3 on, as it was built
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", *(("AVIF",) if HAS_AVIF else ()))
# What is larger is refused by its header: 64 million pixels are 192 MiB as RGB. No file of so many has more bytes.
LARGEST_IMAGE = 2**26
LARGEST_FILE = 8 * LARGEST_IMAGE


class Decoded(NamedTuple):
    """An image, and what it was in its file."""

    pixels: torch.Tensor  # uint8 (C, image_size, image_size)
    size: tuple[int, int]  # (width, height) as displayed before resizing
    values: Values
    animated: bool = False  # it has more than one frame, of which this is the first


def one_line(error: BaseException, limit: int = 200) -> str:
    """The message of an error on one line of at most `limit` characters; its type where it has none."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(reason.split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def to_mode(
    image: Image.Image, channels: int, data_range: float | None = None, kind: str = EIGHT
) -> tuple[Image.Image, Values]:
    """`image` in any Pillow mode as 8-bit L (channels=1, luminance) or RGB (channels=3), and the values that it had.

    Transparency is composited on white. The value that becomes 255 is `data_range`; None: the end of the range of its
    `kind` of values. Raises ValueError where they are outside.
    """
    if kind in (SIXTEEN, WIDE, FLOAT):  # Pillow clips these at 255
        values = np.asarray(image)
        transparent = image.info.get("transparency")
        hidden = values == transparent if isinstance(transparent, int) else None
        levels, found = to_levels(values, kind, data_range, hidden)
        image = Image.fromarray(levels)
    else:
        if image.has_transparency_data:
            image = image.convert("RGBA")
        elif image.mode == "1":
            image = image.convert("L")
        elif image.mode not in ("L", "RGB"):
            image = image.convert("RGB")  # P, CMYK, YCbCr, HSV: by way of colour, also to luminance
        image, found = stretched(image, kind, data_range)
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("L" if channels == 1 else "RGB"), found


def fit(image: Image.Image, image_size: int, channels: int, data_range: float | None = None) -> Decoded:
    """The image oriented by EXIF, converted, the shorter side resized (bicubic, antialiased), the centre
    cropped. Raises ValueError as `to_mode` and `kind_of`."""
    kind = kind_of(image)
    image, values = to_mode(ImageOps.exif_transpose(image), channels, data_range, kind)
    resized = transforms.resize(image, [image_size], InterpolationMode.BICUBIC)
    pixels = transforms.pil_to_tensor(transforms.center_crop(resized, [image_size, image_size]))
    return Decoded(pixels, image.size, values)


def open_header(file: io.BytesIO | Path) -> Image.Image:
    """An image of FORMATS of which the header has been read and no pixel decoded.

    Raises ValueError where the header announces more than LARGEST_IMAGE pixels; and as Pillow does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower, and no warning
        warnings.simplefilter("ignore", UserWarning)  # of tags in TIFF that nobody needs
        try:
            image = Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError:
            raise ValueError(TOO_LARGE) from None
    if image.width * image.height > LARGEST_IMAGE:
        raise ValueError(TOO_LARGE)
    return image


TOO_LARGE = f"its header announces more pixels than the safety limit of {LARGEST_IMAGE:,}"


def decode(data: bytes, image_size: int, channels: int, data_range: float | None = None) -> Decoded:
    """`fit` of the first frame of an image file. Raises ValueError with the reason, whatever is wrong with it."""
    try:
        with open_header(io.BytesIO(data)) as image:
            # The resized form counts as well: a line of 1 x 1,000,000 pixels grows with its shorter side.
            if image_size**2 * max(image.size) // min(image.size) > LARGEST_IMAGE:
                raise ValueError(TOO_LARGE)
            decoded = fit(image, image_size, channels, data_range)
            return decoded._replace(animated=getattr(image, "is_animated", False))
    except UnidentifiedImageError:
        if not HAS_AVIF and data[4:8] == b"ftyp":
            raise ValueError("an AVIF image, which the installed Pillow cannot read; version 11.3 can") from None
        raise ValueError(
            "not a PNG, JPEG, WebP, BMP, TIFF, GIF or AVIF image" if data else "the file is empty"
        ) from None
    except Exception as error:  # broken bytes surface from Pillow as almost any type
        raise ValueError(one_line(error)) from error


def check_file(path: Path) -> Path:
    """Raises ValueError for what is no file (a pipe would be waited for, a device never ends) or has more than
    LARGEST_FILE bytes; OSError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no regular file")
    if status.st_size > LARGEST_FILE:
        raise ValueError(f"it has more bytes than the safety limit of {LARGEST_FILE:,}")
    return path


def find_images(root: Path) -> tuple[str, ...]:
    """The relative paths (with /) of the images below `root`, sorted.

    Hidden files and folders are passed over; links to folders are followed, each real folder read once.
    Raises UserError if there is none, or a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot list {error.filename}: {error.strerror}; check its permissions") from error

    names, others, seen = [], 0, set()
    for folder, subfolders, files in os.walk(root, onerror=refuse, followlinks=True):
        if os.path.realpath(folder) in seen:  # a link in a circle
            subfolders.clear()
            continue
        seen.add(os.path.realpath(folder))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        visible = [name for name in files if not name.startswith(".")]
        images = [name for name in visible if name.lower().endswith(EXTENSIONS)]
        others += len(visible) - len(images)
        names += [(Path(folder) / name).relative_to(root).as_posix() for name in images]
    if not names:
        raise UserError(
            f"no images in {root}: looked for {' '.join(EXTENSIONS)} in it and its subfolders and found "
            f"{others:,} other file{'' if others == 1 else 's'}; give a folder that holds images"
        )
    return tuple(sorted(names))
