"""A folder of image files as a source of images: all checked when it is opened, and what is done about a bad one."""

import hashlib
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from ..errors import UserError
from .image_files import Decoded, check_file, decode, find_images, one_line
from .image_source import ImageSource
from .image_survey import Survey

log = logging.getLogger("ddpm_redistill")

# A folder that fits in this many bytes once decoded is kept in memory.
KEEP_BYTES = 64 * 2**20
# With "skip", one image in so many may be bad, and one in any folder: more is no accident.
GOOD_TO_A_BAD = 100
NAMED = 10  # of bad images, in one line

KEPT = torch.empty(0)  # in place of the pixels of an image that is surveyed

OnBadImage = Literal["error", "skip"]


def open_folder(
    path: Path, image_size: int, channels: int, on_bad_image: OnBadImage, data_range: float | None
) -> ImageSource:
    """The images below a folder, as `open_images` says."""
    reader = FolderReader(path.absolute(), find_images(path), image_size, channels, on_bad_image, data_range)
    survey = Survey(str(path), image_size)
    scan = scan_folder(reader, survey)
    n = len(reader.names)
    survey.warn(n)
    text = survey.describe(n, channels)
    if scan.replaced:
        text += f", {len(scan.replaced):,} of them unreadable and skipped"
    source = ImageSource(n, reader if scan.kept is None else scan.kept, text, scan.fingerprint)
    classes = class_names(reader.names)
    if classes is None:
        return source
    number = {name: label for label, name in enumerate(classes)}
    folders = (reader.names[scan.replaced.get(i, i)].partition("/")[0] for i in range(n))
    return source.with_labels([number[folder] for folder in folders], classes)


def class_names(names: tuple[str, ...]) -> tuple[str, ...] | None:
    """The folders of the first level that hold the images, sorted; None where an image lies beside them.

    names: paths relative to the root, with /. As torchvision's ImageFolder, but folders without images are no classes.
    """
    folders = [name.partition("/")[0] for name in names if "/" in name]
    return tuple(sorted(set(folders))) if len(folders) == len(names) else None


def most_bad(n: int) -> int:
    """How many of `n` images may be skipped."""
    return max(1, n // GOOD_TO_A_BAD)


@dataclass(frozen=True)
class FolderReader:
    """Decodes the i-th image of a folder on access."""

    root: Path
    names: tuple[str, ...]
    image_size: int
    channels: int
    on_bad_image: OnBadImage = "error"
    data_range: float | None = None
    met: set[str] = field(default_factory=set)  # bad ones, by this process; only their number decides anything

    def __call__(self, i: int) -> torch.Tensor:
        """uint8 (channels, image_size, image_size): image i, or with "skip" the next one that can be read now.

        What is served is a function of i and the files alone, not of what this process met before: another process,
        or a resumed run, serves the same from the same files.

        Raises UserError naming the file that no longer decodes; with "skip" when too many do not.
        """
        n = len(self.names)
        for step in range(n):
            path = self.root / self.names[(i + step) % n]
            try:
                data = check_file(path).read_bytes()
                image = decode(data, self.image_size, self.channels, self.data_range).pixels
            except (OSError, ValueError) as error:
                self._bad(path, one_line(error))
            else:
                return image
        raise UserError(f"no image in {self.root} can be read any more; restore them")

    def _bad(self, path: Path, reason: str) -> None:
        if self.on_bad_image == "error":
            raise UserError(
                f"image {path} can no longer be read ({reason}), as it could when its folder was opened; restore it"
            )
        if str(path) in self.met:
            return
        self.met.add(str(path))
        most = most_bad(len(self.names))
        if len(self.met) > most:
            raise UserError(
                f"{len(self.met)} images in {self.root} cannot be read, more than the {most} that may be skipped, last"
                f" {path}: {reason}; restore them"
            )
        log.warning(
            "image %s cannot be read (%s): skipped, the next one takes its place; %d of at most %d",
            path, reason, len(self.met), most,
        )  # fmt: skip


@dataclass(frozen=True)
class FolderScan:
    """What one pass over all files of a folder gives."""

    fingerprint: str
    kept: torch.Tensor | None  # uint8 (N, C, H, W) if it fits in KEEP_BYTES
    replaced: dict[int, int]  # of each image that cannot be read, the one that is served in its place


def scan_folder(reader: FolderReader, survey: Survey) -> FolderScan:
    """Reads, hashes and decodes every image once, so that a corrupt one is found before any training, and adds each
    good one to `survey`.

    Raises UserError naming the first image that cannot be read and counting the others, where they may not be skipped.
    """
    n, size, channels = len(reader.names), reader.image_size, reader.channels
    fits = n * channels * size * size <= KEEP_BYTES
    kept = torch.empty(n, channels, size, size, dtype=torch.uint8) if fits else None

    def visit(i: int) -> tuple[bytes, Decoded | None, str]:
        try:
            data = check_file(reader.root / reader.names[i]).read_bytes()
            decoded = decode(data, size, channels, reader.data_range)
        except (OSError, ValueError) as error:
            return b"", None, one_line(error)
        if kept is not None:
            kept[i] = decoded.pixels
        return hashlib.sha256(data).digest(), decoded._replace(pixels=KEPT), ""

    ranged = "" if reader.data_range is None else f" to {float(reader.data_range)}"
    digest = hashlib.sha256(f"{channels}x{size}x{size}{ranged}".encode())
    bad: dict[int, str] = {}
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        results: Iterable[tuple[bytes, Decoded | None, str]] = pool.map(visit, range(n))
        progress = tqdm(results, total=n, desc="checking images", unit="image", delay=1)
        for i, (file_digest, decoded, reason) in enumerate(progress):
            digest.update(os.fsencode(reader.names[i]) + b"\0" + file_digest)
            if decoded is None:
                bad[i] = f"{reader.root / reader.names[i]}: {reason}"
            else:
                survey.add(decoded.size, decoded.values, decoded.animated)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for the rest of the folder
    if bad:
        _judge(reader, bad)
    replaced = {i: next(j % n for j in range(i + 1, i + n) if j % n not in bad) for i in bad}
    if kept is not None:
        for i, j in replaced.items():
            kept[i] = kept[j]
    return FolderScan(digest.hexdigest(), kept, replaced)


def _judge(reader: FolderReader, bad: dict[int, str]) -> None:
    """Says which images are skipped. Raises UserError when they may not be."""
    n, most = len(reader.names), most_bad(len(reader.names))
    lines = list(bad.values())
    count = f"{'1 image' if len(bad) == 1 else f'{len(bad):,} images'} of {n:,} cannot be read"
    if reader.on_bad_image == "error" or len(bad) > most or len(bad) == n:
        limit = "" if reader.on_bad_image == "error" else f", more than the {min(most, n - 1):,} that may be skipped"
        first = "" if len(bad) == 1 else "first "
        raise UserError(f"{count}{limit}, {first}{lines[0]}; remove or replace what is broken")
    more = f"; and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
    named = "; ".join(lines[:NAMED])
    log.warning("%s and skipped, the next one in place of each; at most %d may be: %s%s", count, most, named, more)
