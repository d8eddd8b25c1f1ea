"""Where a sampling run puts its images: a folder of PNG files, or one .npz. A run that was killed can go on.

Every file is written aside and renamed, so that what is there is whole. ``sampling.json`` says what made the images;
only a run of the same settings may add to them.
"""

import io
import json
import os
import re
import shutil
import zipfile
import zlib
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from ..errors import UserError
from ..files import write_aside, written_aside
from ..sources.image_files import check_file, one_line, open_header
from ..sources.npz_files import check_member

SETTINGS = "sampling.json"
MAY_DIFFER = {"model", "num_images"}  # the model's weights are compared, not its name; more images may be asked for
WRITERS = 8
"""Threads that write PNG files."""
NOT_FOLDERS = (".npy", ".png", ".zip")


class ImageStore(ABC):
    """Images by index in ``folder``, a batch (a range of indices) at a time; ``output`` is what a person asked for."""

    FILE: re.Pattern[str]

    def __init__(self, output: Path, folder: Path):
        self.output = output
        self.folder = folder

    @abstractmethod
    def names(self, batch: range) -> list[str]:
        """The files of a batch, in the order in which they are written."""

    @abstractmethod
    def write(self, batch: range, images: torch.Tensor) -> None:
        """``images``: uint8 (len(batch), C, H, W); of a folder of PNG files 1 or 3 channels."""

    @abstractmethod
    def read(self, batch: range) -> torch.Tensor:
        """uint8 (len(batch), C, H, W) of a batch that was written."""

    @abstractmethod
    def finish(self, batches: list[range], settings: dict[str, Any]) -> None:
        """Called once, when all batches are there."""

    def settings(self) -> dict[str, Any] | None:
        """What made the images that are there; None if nothing says."""
        path = self.folder / SETTINGS
        return _parse(path.read_text(), path) if path.is_file() else None

    def is_complete(self, batch: range) -> bool:
        paths = [self.folder / name for name in self.names(batch)]
        return all(path.is_file() and path.stat().st_size for path in paths)

    def check(self, settings: dict[str, Any], *, resume: bool) -> None:
        """Look, change nothing: may images of these settings go here?

        Raises:
            UserError: something else is here; or with ``resume``, nothing is, or a run of other settings.
        """
        before = self.settings()
        if not resume:
            if before is not None:
                raise UserError(f"{self.output} holds a sampling run: pass --resume to go on, or give another --output")
            self.check_empty()
            return
        if before is None:
            raise UserError(f"nothing to resume: {self.output} holds no sampling run (no {SETTINGS})")
        for key, (old, new) in _differences(before, settings).items():
            raise UserError(
                f"cannot resume {self.output}: {key} was {old} and is now {new}; use the same or another --output"
            )
        if before["num_images"] > settings["num_images"]:
            raise UserError(
                f"cannot resume {self.output}: it is a run of {before['num_images']} images, which may grow but not"
                f" shrink to {settings['num_images']}"
            )
        for path in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if not (path.name.startswith(".") or path.name == SETTINGS or self.is_own(path.name, before["num_images"])):
                raise UserError(f"cannot resume {self.output}: {path.name} in it is not of this run; move it away")

    def check_empty(self) -> None:
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UserError(f"{self.folder} is not an empty folder: give another --output")

    def is_own(self, name: str, num_images: int) -> bool:
        """Is this the name of a file of a run of so many images?"""
        return bool(self.FILE.fullmatch(name))

    def start(self, settings: dict[str, Any]) -> None:
        """Make the folder, say what will be in it, and clear what a kill left half written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _clear_aside(self.folder, self.FILE)
        write_aside(self.folder / SETTINGS, _text(settings))


class FolderStore(ImageStore):
    """``folder/000000.png`` ... and ``folder/sampling.json``."""

    FILE = re.compile(r"(\d{6,})\.png")

    def __init__(self, output: Path):
        super().__init__(output, output)

    def is_own(self, name: str, num_images: int) -> bool:
        match = self.FILE.fullmatch(name)
        return match is not None and int(match[1]) < num_images

    def names(self, batch: range) -> list[str]:
        return [f"{index:06d}.png" for index in batch]

    def write(self, batch: range, images: torch.Tensor) -> None:
        """By several threads, which wait for the disk side by side. The first error is raised; some images of the batch
        may then be there, each of them whole."""
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(self._write_image, self.names(batch), _channels_last(images)))

    def _write_image(self, name: str, image: np.ndarray) -> None:
        with written_aside(self.folder / name) as aside:
            Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(aside, format="PNG")

    def read(self, batch: range) -> torch.Tensor:
        images = []
        for name in self.names(batch):
            path = self.folder / name
            try:
                with open_header(check_file(path)) as image:
                    images.append(np.atleast_3d(np.asarray(image)))
            except Exception as error:  # broken files surface from Pillow as almost any type
                raise UserError(
                    f"{path} of this run cannot be read: {one_line(error)}; remove it, then --resume"
                ) from error
        if len({image.shape for image in images}) > 1:
            raise UserError(f"the images in {self.folder} differ in shape: sample again to another --output")
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

    def finish(self, batches: list[range], settings: dict[str, Any]) -> None:
        """Nothing is left to do: the files are the result."""


class NpzStore(ImageStore):
    """One .npz: array ``images``, uint8 (N, H, W, C), and the text ``sampling.json``; until all are made, a folder
    ``output.parts`` with one .npy a batch. It is put together without holding more than a batch in memory."""

    FILE = re.compile(r"\d{6,}-\d{6,}\.npy")

    def __init__(self, output: Path):
        super().__init__(output, output.with_name(output.name + ".parts"))

    def names(self, batch: range) -> list[str]:
        return [f"{batch.start:06d}-{batch.stop:06d}.npy"]

    def write(self, batch: range, images: torch.Tensor) -> None:
        self._write_part(batch, _channels_last(images))

    def read(self, batch: range) -> torch.Tensor:
        return torch.from_numpy(self._read_part(batch)).permute(0, 3, 1, 2)

    def settings(self) -> dict[str, Any] | None:
        if not self.output.is_file():
            return super().settings()
        try:
            with zipfile.ZipFile(self.output) as archive:
                return _parse(archive.read(SETTINGS).decode(), self.output)
        except (KeyError, ValueError, zipfile.BadZipFile):
            return None

    def check_empty(self) -> None:
        if self.output.exists():
            raise UserError(f"{self.output} exists already: give another --output")
        super().check_empty()

    def start(self, settings: dict[str, Any]) -> None:
        super().start(settings)
        _clear_aside(self.output.parent, re.compile(re.escape(self.output.name)))
        if self.output.is_file():  # a finished run is to grow, or was killed before its parts were removed
            self._take_apart(settings["batch_size"])

    def finish(self, batches: list[range], settings: dict[str, Any]) -> None:
        shape = (batches[-1].stop, *self._read_part(batches[0]).shape[1:])
        with written_aside(self.output) as aside, zipfile.ZipFile(aside, "w") as archive:
            # ZipInfo has a fixed date: the same images are the same bytes
            with archive.open(zipfile.ZipInfo("images.npy"), "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(cast(io.BytesIO, member), header)
                for batch in batches:
                    member.write(self._read_part(batch).tobytes())
            archive.writestr(zipfile.ZipInfo(SETTINGS), _text(settings))
        shutil.rmtree(self.folder)

    def _part(self, batch: range) -> Path:
        return self.folder / self.names(batch)[0]

    def _write_part(self, batch: range, pixels: np.ndarray) -> None:
        with written_aside(self._part(batch)) as aside, aside.open("wb") as file:
            np.save(file, pixels)

    def _read_part(self, batch: range) -> np.ndarray:
        """uint8 (len(batch), H, W, C)."""
        path = self._part(batch)
        try:
            pixels = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header alone takes no memory
            if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != len(batch):
                raise ValueError(f"it holds {pixels.dtype} {pixels.shape}")
            return np.array(pixels)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{path} of this run cannot be read: {one_line(error)}; remove it, then --resume"
            ) from error

    def _take_apart(self, batch_size: int) -> None:
        """Write the batches of a finished .npz as parts again. Raises UserError when it is not what a run wrote."""
        try:
            with zipfile.ZipFile(self.output) as archive:
                count, *shape = check_member(archive, "images.npy")
                if len(shape) != 3:
                    raise ValueError(f"it holds images of shape {shape}")
                self._copy_parts(archive, count, shape, batch_size)
        except (ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{self.output} is damaged: {one_line(error)}; give another --output") from error

    def _copy_parts(self, archive: zipfile.ZipFile, count: int, shape: list[int], batch_size: int) -> None:
        with archive.open("images.npy") as member:
            np.lib.format.read_magic(member)
            np.lib.format.read_array_header_1_0(member)
            for first in range(0, count, batch_size):
                batch = range(first, min(first + batch_size, count))
                data = member.read(len(batch) * int(np.prod(shape)))
                self._write_part(batch, np.frombuffer(data, np.uint8).reshape(len(batch), *shape))


def open_store(output: str | os.PathLike[str]) -> ImageStore:
    """A store for a folder, or for a name that ends in .npz.

    Raises:
        UserError: a file of another kind.
    """
    path = Path(output)
    if path.suffix.lower() == ".npz":
        if path.is_dir():
            raise UserError(f"{path} is a folder: give a name for the .npz that is free")
        return NpzStore(path)
    if path.is_file() or path.suffix.lower() in NOT_FOLDERS:
        raise UserError(f"{path} is not a folder, nor an .npz file: give --output one of these")
    return FolderStore(path)


def _channels_last(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def _clear_aside(folder: Path, names: re.Pattern[str]) -> None:
    """Remove what ``written_aside`` leaves of such files when its process is killed."""
    for path in folder.glob(".*"):
        name, _, process = path.name[1:].rpartition(".")
        if process.isdecimal() and names.fullmatch(name):
            path.unlink()


def _text(settings: dict[str, Any]) -> str:
    return json.dumps(settings, indent=2) + "\n"


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(text)
        found["num_images"] = int(found["num_images"])
        return cast(dict[str, Any], found)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} does not hold the settings of a sampling run") from error


def _differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{name: (old, new)} of what must be the same and is not; entries of a group as group.name."""

    def flat(settings: dict[str, Any]) -> dict[str, Any]:
        groups = {key: value if isinstance(value, dict) else {"": value} for key, value in settings.items()}
        return {f"{key}.{name}".rstrip("."): v for key, group in groups.items() for name, v in group.items()}

    old, new = flat(before), flat(json.loads(_text(now)))
    keys = [key for key in [*new, *(old.keys() - new.keys())] if key not in MAY_DIFFER]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}
