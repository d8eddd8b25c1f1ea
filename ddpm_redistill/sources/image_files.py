"""From image bytes, or a folder of image files, to uint8 tensors of one size."""

import io
import os
import stat
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

from ..errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# Pillow picks its decoder by content, not by name; the list keeps out those that start other programs (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# What is larger is refused by its header: 64 million pixels are 192 MiB as RGB. No file of so many has more bytes.
LARGEST_IMAGE = 2**26
LARGEST_FILE = 8 * LARGEST_IMAGE

# An image as uint8 (C, image_size, image_size), and its (width, height) as displayed before resizing.
Decoded = tuple[torch.Tensor, tuple[int, int]]


def one_line(error: BaseException, limit: int = 200) -> str:
    """The message of an error on one line of at most `limit` characters; its type where it has none."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(reason.split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """`image` in any Pillow mode as 8-bit L (channels=1, luminance) or RGB (channels=3).

    Transparency is composited on white; 16-bit grey is scaled to 8 bits, not clipped.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):  # Pillow clips these at 255
        values = np.asarray(image).astype(np.int64)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            values[values == transparent] = 65535
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit pixels outside 0..65535")
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels, which have no fixed range")
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    elif image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")  # P, CMYK, YCbCr, HSV: by way of colour, also to luminance
    return image.convert("L" if channels == 1 else "RGB")


def fit(image: Image.Image, image_size: int, channels: int) -> Decoded:
    """The image oriented by EXIF, converted, the shorter side resized (bicubic, antialiased), the centre
    cropped."""
    image = to_mode(ImageOps.exif_transpose(image), channels)
    resized = transforms.resize(image, [image_size], InterpolationMode.BICUBIC)
    return transforms.pil_to_tensor(transforms.center_crop(resized, [image_size, image_size])), image.size


def open_header(file: io.BytesIO | Path) -> Image.Image:
    """An image of FORMATS of which the header has been read and no pixel decoded.

    Raises ValueError where the header announces more than LARGEST_IMAGE pixels; and as Pillow does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower, and no warning
        try:
            image = Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError:
            raise ValueError(TOO_LARGE) from None
    if image.width * image.height > LARGEST_IMAGE:
        raise ValueError(TOO_LARGE)
    return image


TOO_LARGE = f"its header announces more pixels than the safety limit of {LARGEST_IMAGE:,}"


def decode(data: bytes, image_size: int, channels: int) -> Decoded:
    """`fit` of the bytes of an image file. Raises ValueError with the reason, whatever is wrong with them."""
    try:
        with open_header(io.BytesIO(data)) as image:
            # The resized form counts as well: a line of 1 x 1,000,000 pixels grows with its shorter side.
            if image_size**2 * max(image.size) // min(image.size) > LARGEST_IMAGE:
                raise ValueError(TOO_LARGE)
            return fit(image, image_size, channels)
    except UnidentifiedImageError:
        raise ValueError("not a PNG, JPEG, WebP or BMP image" if data else "the file is empty") from None
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
