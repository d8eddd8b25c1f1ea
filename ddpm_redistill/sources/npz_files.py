"""Arrays out of an .npz of unknown origin: no Python objects, and no memory that its headers only promise."""

import math
import os
import zipfile
from collections.abc import Callable, Iterable

import numpy as np
from numpy.lib import format as npy

from .image_files import one_line

# An array of more bytes than this may not be packed this many times smaller: pictures are not, bombs are.
LARGE = 2**30
PACKED = 100
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_arrays(path: str | os.PathLike[str], choose: Callable[[list[str]], Iterable[str]]) -> dict[str, np.ndarray]:
    """The arrays of an .npz that `choose` picks from the names that there are.

    Of each the header is read first: how many bytes it announces must be what the archive has, and not LARGE and packed
    PACKED times. Raises ValueError with the reason on one line, whatever is wrong.
    """
    try:
        if not zipfile.is_zipfile(path):  # np.load would take a .npy or a pickle under this name
            raise ValueError("it is not an archive as numpy.savez writes")
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            if not names:
                raise ValueError("it holds no arrays")
            chosen = list(choose(names))
            for name in chosen:
                check_member(archive, f"{name}.npy")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in chosen}
    except Exception as error:  # zip, zlib, numpy and memory errors alike: the file is the cause
        raise ValueError(one_line(error)) from error


def check_member(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    """The shape that the header of an array announces. Raises ValueError as `read_arrays`; and as numpy does."""
    info, stem = archive.getinfo(name), name.removesuffix(".npy")
    with archive.open(info) as member:
        version = npy.read_magic(member)
        if version not in HEADERS:
            raise ValueError(f"'{stem}' has a header of version {version}, which pictures and figures do not need")
        shape, _, dtype = HEADERS[version](member)
        start = member.tell()
    if dtype.hasobject:
        raise ValueError(f"'{stem}' holds Python objects, which are never loaded")
    if any(side < 0 for side in shape) or math.prod(shape) * dtype.itemsize != info.file_size - start:
        raise ValueError(f"the header of '{stem}' announces {shape} of {dtype}, which its contents are not")
    if info.file_size > LARGE and info.file_size > PACKED * info.compress_size:
        packed = f"{info.compress_size:,} bytes would become {info.file_size:,}"
        raise ValueError(f"'{stem}' would fill the memory: {packed}; save it by numpy.savez, without compression")
    return shape
