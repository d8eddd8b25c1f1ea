"""Folders of images: order, description, fingerprint, and what is said of files that are no images."""

import io
import os
import pickle
import zlib

import numpy as np
import pytest
import torch
from image_helpers import message, noise, solid

from ddpm_redistill.errors import UserError
from ddpm_redistill.sources import image_files
from ddpm_redistill.sources.images import ImageSource, open_images

# --- folders


def test_order_recursion_and_what_is_passed_over(tmp_path):
    for value, name in enumerate(["B/x.png", "a/2.png", "a/deep/1.png", "a/deep/10.BMP", "a-b.png", "z.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        solid(value).save(tmp_path / name)
    (tmp_path / ".hidden").mkdir()
    solid(99).save(tmp_path / ".hidden/h.png")
    (tmp_path / "._z.png").write_bytes(b"not an image")
    (tmp_path / "labels.csv").write_text("1")
    source = open_images(str(tmp_path), image_size=4, channels=1)
    # by the characters of the relative path: "B/x", "a-b", "a/2", "a/deep/1.", "a/deep/10", "z"
    assert [int(image[0, 0, 0]) for image in source] == [0, 4, 1, 2, 3, 5]
    assert [int(image[0, 0, 0]) for image in open_images(tmp_path, image_size=4, channels=1)] == [
        0, 4, 1, 2, 3, 5,
    ]  # fmt: skip
    with pytest.raises(IndexError):
        source[6]
    assert int(source[-1][0, 0, 0]) == 5


def test_links_are_followed_without_circles(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    solid(1).save(tmp_path / "elsewhere/a.png")
    (tmp_path / "data/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "data")
    assert len(open_images(str(tmp_path / "data"), image_size=4, channels=1)) == 1


def test_description(tmp_path):
    solid(0, (28, 28)).save(tmp_path / "a.png")
    text = open_images(str(tmp_path), image_size=28, channels=1).description
    assert text == f"1 image from {tmp_path}, 28x28, 1 channel"
    solid(0, (640, 480)).save(tmp_path / "b.png")
    text = open_images(str(tmp_path), image_size=32, channels=3).description
    assert text == f"2 images from {tmp_path}, sizes 28x28 to 640x480 resized to 32x32, 3 channels"


@pytest.fixture(params=["kept", "on access"])
def keeping(request, monkeypatch):
    if request.param == "on access":
        monkeypatch.setattr(image_files, "KEEP_BYTES", 0)
    return request.param


def test_fingerprint_of_a_folder(tmp_path, keeping):
    def fingerprint(size: int = 4) -> str:
        return open_images(str(tmp_path), image_size=size, channels=1).fingerprint

    solid(1).save(tmp_path / "a.png")
    first = fingerprint()
    assert len(first) == 64
    assert first == fingerprint() != fingerprint(8)
    solid(2).save(tmp_path / "a.png")
    second = fingerprint()
    assert first != second
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    assert second != fingerprint()


def test_fingerprint_does_not_depend_on_where_the_folder_is(tmp_path):
    solid(1).save(tmp_path / "a.png")
    before = open_images(str(tmp_path), image_size=4, channels=1).fingerprint
    moved = tmp_path.rename(tmp_path.with_name("moved_" + tmp_path.name))
    assert open_images(str(moved), image_size=4, channels=1).fingerprint == before


def test_kept_and_on_access_give_the_same_and_pickle(tmp_path, keeping, monkeypatch):
    for i in range(3):
        noise(seed=i).save(tmp_path / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    source = open_images(".", image_size=8, channels=3)
    monkeypatch.chdir("/")  # a relative folder stays found
    copy = pickle.loads(pickle.dumps(source))
    assert isinstance(copy, ImageSource)
    assert (copy.description, copy.fingerprint, len(copy)) == (source.description, source.fingerprint, 3)
    for i in range(3):
        expected = torch.from_numpy(np.array(noise(seed=i))).permute(2, 0, 1)
        assert torch.equal(source[i], expected)
        assert torch.equal(copy[i], expected)
        source[i].zero_()  # a reader that works in place must not change the source
        assert torch.equal(source[i], expected)


def test_loader_workers(tmp_path, keeping):
    for i in range(4):
        solid(i).save(tmp_path / f"{i}.png")
    source = open_images(str(tmp_path), image_size=4, channels=1)
    loader = torch.utils.data.DataLoader(source, batch_size=2, num_workers=1)
    assert [batch[:, 0, 0, 0].tolist() for batch in loader] == [[0, 1], [2, 3]]


# --- folders that are wrong


def test_missing_path_and_unknown_prefix(tmp_path):
    text = message(tmp_path / "nowhere")
    assert "nowhere" in text
    assert ".npz" in text
    assert "torchvision:NAME" in text
    assert "builtin:digits" in message("s3:bucket")
    assert "'s3:'" in message("s3:bucket")
    assert "no such path" in message("")
    (tmp_path / "a.png").write_bytes(b"")
    assert "is a file, but not an .npz" in message(tmp_path / "a.png")


@pytest.mark.parametrize(("size", "channels", "word"), [(0, 1, "image_size is 0"), (8, 2, "2 channels")])
def test_bad_size_and_channels(size, channels, word):
    assert word in message("builtin:digits", size, channels)


def test_folder_without_images(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.gif").write_text("b")
    text = message(tmp_path)
    assert "2 other files" in text
    for extension in image_files.EXTENSIONS:
        assert extension in text


def test_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    assert "cannot list" in message(tmp_path)


def damaged(kind: str) -> bytes:
    def encoded(format: str) -> bytearray:
        buffer = io.BytesIO()
        noise(64).save(buffer, format)
        return bytearray(buffer.getvalue())

    png, jpeg = encoded("PNG"), encoded("JPEG")
    if kind == "flipped":
        png[len(png) // 2] ^= 0xFF
    return bytes(
        {
            "empty": b"",
            "text": b"hello, world",
            "truncated png": png[: len(png) // 2],
            "truncated jpeg": jpeg[: len(jpeg) // 2],
            "truncated webp": encoded("WEBP")[:600],
            "truncated bmp": encoded("BMP")[:600],
            "flipped": png,
            "gif": encoded("GIF"),
        }[kind]
    )


BAD = [
    "empty", "text", "truncated png", "truncated jpeg", "truncated webp", "truncated bmp", "flipped", "gif",
]  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_image_is_named(tmp_path, kind, keeping):
    solid(1).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(damaged(kind))
    text = message(tmp_path)
    assert f"1 image of 2 cannot be read, {tmp_path / 'bad.png'}: " in text
    assert "remove or replace" in text
    assert "BytesIO" not in text


def test_several_bad_images_are_counted_and_the_first_named(tmp_path, capfd):
    for i in range(20):
        solid(i).save(tmp_path / f"{i:02}.png")
    for i in (3, 11, 17):
        (tmp_path / f"{i:02}.png").write_bytes(b"")
    text = message(tmp_path)
    assert f"3 images of 20 cannot be read, first {tmp_path / '03.png'}: the file is empty" in text
    (tmp_path / "02.png").unlink()
    (tmp_path / "02.png").symlink_to(tmp_path / "gone.png")
    assert f"4 images of 20 cannot be read, first {tmp_path / '02.png'}: No such file" in message(tmp_path)
    assert capfd.readouterr().out == ""


def huge_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    data = zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# 100 and 900 megapixels: Pillow only warns of the first; and a line that resizing would blow up
@pytest.mark.parametrize("size", [(10_000, 10_000), (30_000, 30_000), (10_000_000, 1)])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(huge_png(*size))
    text = message(tmp_path)
    assert "bomb.png" in text
    assert "safety limit" in text


def test_image_that_rots_later_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "KEEP_BYTES", 0)
    for name in ("a.png", "b.png"):
        solid(1).save(tmp_path / name)
    source = open_images(str(tmp_path), image_size=4, channels=1)
    (tmp_path / "a.png").write_bytes(b"rot")
    (tmp_path / "b.png").unlink()
    for i, name in enumerate(["a.png", "b.png"]):
        with pytest.raises(UserError, match=f"{name} can no longer be read"):
            source[i]
