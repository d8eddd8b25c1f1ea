"""From image bytes, or a folder of image files, to uint8 tensors of one size."""

import hashlib
import io
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms
from tqdm import tqdm

from ..errors import UserError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# Pillow picks its decoder by content, not by name; the list keeps out those that start other programs (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# A folder that fits in this many bytes once decoded is kept in memory.
KEEP_BYTES = 64 * 2**20

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


def decode(data: bytes, image_size: int, channels: int) -> Decoded:
    """`fit` of the bytes of an image file. Raises ValueError with the reason, whatever is wrong with them."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # reads the header only
            width, height = image.size
            # The resized form counts as well: a line of 1 x 1,000,000 pixels grows with its shorter side.
            pixels = max(width * height, image_size**2 * max(width, height) // min(width, height))
            if Image.MAX_IMAGE_PIXELS and pixels > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            return fit(image, image_size, channels)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(
            f"its header announces more pixels than the safety limit of {Image.MAX_IMAGE_PIXELS:,}"
        ) from None
    except UnidentifiedImageError:
        raise ValueError("not a PNG, JPEG, WebP or BMP image" if data else "the file is empty") from None
    except Exception as error:  # broken bytes surface from Pillow as almost any type
        raise ValueError(one_line(error)) from error


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


@dataclass(frozen=True)
class FolderReader:
    """Decodes the i-th image of a folder on access."""

    root: Path
    names: tuple[str, ...]
    image_size: int
    channels: int

    def __call__(self, i: int) -> torch.Tensor:
        """uint8 (channels, image_size, image_size); UserError naming the file if it no longer decodes."""
        path = self.root / self.names[i]
        try:
            return decode(path.read_bytes(), self.image_size, self.channels)[0]
        except (OSError, ValueError) as error:
            raise UserError(
                f"image {path} can no longer be read ({one_line(error)}), as it could when its folder was "
                "opened; restore it"
            ) from error


@dataclass(frozen=True)
class FolderScan:
    """What one pass over all files of a folder gives."""

    sizes: set[tuple[int, int]]  # (width, height)
    fingerprint: str
    kept: torch.Tensor | None  # uint8 (N, C, H, W) if it fits in KEEP_BYTES


def scan_folder(reader: FolderReader) -> FolderScan:
    """Reads, hashes and decodes every image once, so that a corrupt one is found before any training.

    Raises UserError naming the first image that cannot be read and counting the others.
    """
    n, size, channels = len(reader.names), reader.image_size, reader.channels
    fits = n * channels * size * size <= KEEP_BYTES
    kept = torch.empty(n, channels, size, size, dtype=torch.uint8) if fits else None

    def visit(i: int) -> tuple[bytes, tuple[int, int], str]:
        try:
            data = (reader.root / reader.names[i]).read_bytes()
            tensor, original = decode(data, size, channels)
        except (OSError, ValueError) as error:
            return b"", (0, 0), one_line(error)
        if kept is not None:
            kept[i] = tensor
        return hashlib.sha256(data).digest(), original, ""

    digest = hashlib.sha256(f"{channels}x{size}x{size}".encode())
    sizes: set[tuple[int, int]] = set()
    bad: list[str] = []
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        results: Iterable[tuple[bytes, tuple[int, int], str]] = pool.map(visit, range(n))
        for name, (file_digest, original, reason) in zip(
            reader.names, tqdm(results, total=n, desc="checking images", unit="image", delay=1), strict=True
        ):
            if reason:
                bad.append(f"{reader.root / name}: {reason}")
            digest.update(os.fsencode(name) + b"\0" + file_digest)
            sizes.add(original)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for the rest of the folder
    if bad:
        count = "1 image" if len(bad) == 1 else f"{len(bad):,} images"
        first = "" if len(bad) == 1 else "first "
        raise UserError(f"{count} of {n:,} cannot be read, {first}{bad[0]}; remove or replace what is broken")
    return FolderScan(sizes, digest.hexdigest(), kept)
