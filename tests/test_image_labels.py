"""The class of each image: where every kind of source has it from, and what is said of labels that are none."""

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from image_helpers import message, solid
from torchvision.datasets import ImageFolder

from ddpm_redistill.errors import UserError
from ddpm_redistill.sources import image_folders
from ddpm_redistill.sources.image_source import ImageSource
from ddpm_redistill.sources.images import MOST_CLASSES, open_images

# By the characters of the whole path "a-b/3.png" comes before "a/0.png": the labels are not in ascending order.
FILES = ("a/0.png", "a/1.png", "a/deep/2.png", "a-b/3.png", "b/4.PNG", "b/5.png")


@pytest.fixture(params=["kept", "on access"])
def folder(request, monkeypatch, tmp_path) -> Path:
    """Image i of FILES is of the grey value i; in memory, or decoded on access."""
    if request.param == "on access":
        monkeypatch.setattr(image_folders, "KEEP_BYTES", 0)
    for value, name in enumerate(FILES):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        solid(value).save(tmp_path / name)
    return tmp_path


def opened(source: object, **more) -> ImageSource:
    return open_images(str(source), image_size=4, channels=1, **more)


def pairs(source: ImageSource) -> list[tuple[int, int]]:
    """(grey value, label) of each image."""
    assert source.labels is not None
    assert (source.labels.dtype, source.labels.shape) == (torch.int64, (len(source),))
    return [(int(image[0, 0, 0]), int(label)) for image, label in zip(source, source.labels, strict=True)]


# --- folders


def test_a_folder_has_the_labels_of_imagefolder(folder):
    source, theirs = opened(folder), ImageFolder(str(folder))
    assert source.classes == tuple(theirs.classes) == ("a", "a-b", "b")
    assert sorted(pairs(source)) == sorted((image.getpixel((0, 0))[0], label) for image, label in theirs)
    assert pairs(source) == [(3, 1), (0, 0), (1, 0), (2, 0), (4, 2), (5, 2)]
    assert source.description == f"6 images from {folder}, 4x4, 1 channel, 3 classes"


def test_images_outside_a_class_mean_no_labels(folder, tmp_path):
    solid(9).save(folder / "9.png")
    mixed = opened(folder)
    assert (mixed.labels, mixed.classes, mixed.label_fingerprint) == (None, None, None)
    assert mixed.description == f"7 images from {folder}, 4x4, 1 channel"
    flat = opened(folder / "b")
    assert (flat.labels, flat.classes) == (None, None)


def test_only_folders_that_hold_images_are_classes(folder):
    (folder / "0_notes").mkdir()
    (folder / "0_notes/a.txt").write_text("no image")
    (folder / ".hidden").mkdir()
    solid(9).save(folder / ".hidden/9.png")
    assert opened(folder).classes == ("a", "a-b", "b")
    (folder / "one").mkdir()
    (folder / "a").rename(folder / "one/a")
    one = opened(folder / "one")
    assert (one.classes, one.labels.tolist()) == (("a",), [0, 0, 0])
    assert one.description.endswith(", 1 class")


@pytest.mark.parametrize(("bad", "instead"), [("a-b/3.png", 0), ("a/deep/2.png", 4), ("b/5.png", 3)])
def test_a_skipped_image_has_the_label_of_the_one_in_its_place(folder, bad, instead):
    """The next one, which is of another class here; after the last comes the first."""
    class_of = dict(pairs(opened(folder)))
    (folder / bad).write_bytes(b"rot")
    source = opened(folder, on_bad_image="skip")
    assert [value for value, _ in pairs(source)].count(instead) == 2
    assert all(label == class_of[value] for value, label in pairs(source))
    assert source.classes == ("a", "a-b", "b")
    assert source.description.endswith("1 channel, 1 of them unreadable and skipped, 3 classes")


# --- what is served, and the fingerprints


def test_labels_change_nothing_that_was_there_before(folder, tmp_path):
    """The fingerprints by the formulas that run folders were written with."""
    digest = hashlib.sha256(b"1x4x4")
    for name in sorted(FILES):
        digest.update(name.encode() + b"\0" + hashlib.sha256((folder / name).read_bytes()).digest())
    assert opened(folder).fingerprint == digest.hexdigest()

    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "bare.npz", images=images)
    np.savez(tmp_path / "labelled.npz", images=images, labels=[1, 0, 1])
    bare, labelled = opened(tmp_path / "bare.npz"), opened(tmp_path / "labelled.npz")
    assert bare.fingerprint == labelled.fingerprint == hashlib.sha256(b"(3, 1, 4, 4)" + images.tobytes()).hexdigest()
    assert torch.equal(bare.held, labelled.held)
    assert all(torch.equal(one, other) for one, other in zip(bare, labelled, strict=True))
    assert (bare.labels, bare.classes, bare.label_fingerprint) == (None, None, None)
    assert labelled.description == bare.description.replace("bare", "labelled") + ", 2 classes"


def test_the_fingerprint_of_the_labels_covers_labels_and_names():
    images = ImageSource(2, torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "two", "f")
    labels = [
        ((0, 1), ("a", "b")), ((1, 0), ("a", "b")), ((0, 0), ("a", "b")), ((0, 1), ("a", "c")), ((0, 1), ("ab", "")),
        ((0, 1), ("", "ab")), ((0, 1), ("a", "b", "c")), ((0, 1), ("a", "\udcff")),
    ]  # fmt: skip
    prints = [images.with_labels(*each).label_fingerprint for each in labels]
    assert len(set(prints)) == len(labels)
    expected = hashlib.sha256(b"(2, [1, 1])" + b"ab" + struct.pack("<2q", 0, 1)).hexdigest()
    assert prints[0] == expected == images.with_labels(torch.tensor([0, 1], dtype=torch.uint8), "ab").label_fingerprint
    assert images.labels is None  # with_labels is another source
    assert images.description == "two"


def test_a_labelled_source_pickles(folder):
    source = opened(folder)
    copy = pickle.loads(pickle.dumps(source))
    assert pairs(copy) == pairs(source)
    assert (copy.classes, copy.label_fingerprint) == (source.classes, source.label_fingerprint)


def test_labels_that_are_none_of_the_classes():
    images = ImageSource(2, torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "2 images from somewhere", "f")
    with pytest.raises(UserError, match=r"image 1 has label 2, not one of 0 to 1: 2 images from somewhere"):
        images.with_labels([0, 2], "ab")
    with pytest.raises(UserError, match="image 0 has label -1"):
        images.with_labels([-1, 2], "ab")
    with pytest.raises(ValueError, match=r"labels of shape \(3,\) for 2 images"):
        images.with_labels([0, 1, 1], "ab")


# --- npz


def test_npz_labels(tmp_path):
    images = np.arange(4, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    path = tmp_path / "a.npz"
    for kind in ("u1", "<i2", ">i4", "i8", "u8"):
        # The labels first in the file, and as bytes: today's first array of uint8 would be them.
        for arrays in ({"images": images}, {"faces": images}, {"arr_0": images}):
            np.savez(path, labels=np.array([5, 0, 2, 5], dtype=kind), **arrays)
            source = opened(path)
            assert pairs(source) == [(0, 5), (1, 0), (2, 2), (3, 5)]
            assert source.classes == ("0", "1", "2", "3", "4", "5")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros(3), "holds float64, not the class of each image as an integer"),
        (np.zeros(3, dtype=bool), "holds bool"),
        (np.array(["a", "b", "c"]), "holds <U1"),
        (np.array([0, None, 1]), "'labels' holds Python objects, which are never loaded"),
        (np.array([0, 1]), "has shape (2,), not (3,)"),
        (np.zeros((3, 1), dtype=int), "has shape (3, 1), not (3,)"),
        (np.array(0), "has shape (), not (3,)"),
        (np.array([0, -1, 1]), "holds -1, not classes of 0 to at most 99,999"),
        (np.array([0, 2**64 - 1, 1], dtype=np.uint64), "holds 18446744073709551615, not classes"),
        (np.array([0, 100_000, 1]), "holds 100000, not classes"),
    ],
)
def test_npz_labels_that_are_none(tmp_path, labels, words):
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 4, 4), dtype=np.uint8), labels=labels)
    text = message(tmp_path / "a.npz")
    assert words in text
    assert str(tmp_path / "a.npz") in text


def test_the_most_classes_of_an_npz(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((1, 4, 4), dtype=np.uint8), labels=[MOST_CLASSES - 1])
    assert opened(tmp_path / "a.npz").classes[-1] == "99999"


def test_labels_are_never_taken_for_images(tmp_path):
    images = np.zeros((3, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", labels=images)
    assert "it holds 'labels' and no images" in message(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", labels=images, faces=images)
    assert "'labels' in" in message(tmp_path / "a.npz")
