"""Folders of images: order, description, fingerprint, and what is said of files that are no images."""

import io
import os
import pickle
import zlib

import numpy as np
import pytest
import torch
from image_helpers import message, noise, solid
from PIL import Image

from ddpm_redistill.errors import UserError
from ddpm_redistill.sources import image_files, image_folders
from ddpm_redistill.sources.image_files import HAS_AVIF
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
        monkeypatch.setattr(image_folders, "KEEP_BYTES", 0)
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
    (tmp_path / "sub/b.eps").write_text("b")
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
            "truncated gif": encoded("GIF")[:600],
            "truncated tiff": encoded("TIFF")[:600],
            "truncated avif": encoded("AVIF")[:600] if HAS_AVIF else b"",
            "ico": encoded("ICO"),
        }[kind]
    )


BAD = [
    "empty", "text", "truncated png", "truncated jpeg", "truncated webp", "truncated bmp", "flipped",
    "truncated gif", "truncated tiff", "truncated avif", "ico",
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


# 67, 100 and 900 megapixels: Pillow lets the first pass, warns of the second; and a line that resizing would blow up
@pytest.mark.parametrize("size", [(8193, 8192), (10_000, 10_000), (30_000, 30_000), (10_000_000, 1)])
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb(tmp_path, size, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # another library's choice must not lift the limit
    (tmp_path / "bomb.png").write_bytes(huge_png(*size))
    text = message(tmp_path)
    assert "bomb.png" in text
    assert "safety limit of 67,108,864" in text


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    solid(1).save(tmp_path / "a.png")
    make(tmp_path / "b.png")
    assert "b.png: it is no regular file" in message(tmp_path)


def test_a_file_too_large_is_not_read(tmp_path):
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(image_files.LARGEST_FILE + 1)
    assert "more bytes than the safety limit" in message(tmp_path)


def test_image_that_rots_later_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(image_folders, "KEEP_BYTES", 0)
    for name in ("a.png", "b.png"):
        solid(1).save(tmp_path / name)
    source = open_images(str(tmp_path), image_size=4, channels=1)
    (tmp_path / "a.png").write_bytes(b"rot")
    (tmp_path / "b.png").unlink()
    for i, name in enumerate(["a.png", "b.png"]):
        with pytest.raises(UserError, match=f"{name} can no longer be read"):
            source[i]


# --- folders with bad images that may be skipped


def folder_of(tmp_path, count: int = 12) -> list:
    """Images 0 ... count - 1, image i of the grey value i."""
    for i in range(count):
        solid(i).save(tmp_path / f"{i:03}.png")
    return sorted(tmp_path.glob("*.png"))


def opened(folder, on_bad_image: str = "skip") -> ImageSource:
    return open_images(folder, image_size=4, channels=1, on_bad_image=on_bad_image)


def served(source: ImageSource) -> list[int]:
    return [int(image[0, 0, 0]) for image in source]


def test_a_skipped_image_is_replaced_by_the_next(tmp_path, keeping, caplog):
    paths = folder_of(tmp_path)
    paths[5].write_bytes(b"rot")
    source = opened(tmp_path)
    assert served(source) == [0, 1, 2, 3, 4, 6, 6, 7, 8, 9, 10, 11]  # in its place: the others stay where they were
    assert source.description.endswith("1 channel, 1 of them unreadable and skipped")
    assert (
        f"1 image of 12 cannot be read and skipped, the next one in place of each; at most 1 may be: {paths[5]}"
        in (caplog.messages[0])
    )
    with pytest.raises(UserError, match=r"005.png"):
        opened(tmp_path, "error")


def test_the_last_image_is_replaced_by_the_first(tmp_path, keeping):
    folder_of(tmp_path)[-1].unlink()
    (tmp_path / "011.png").symlink_to(tmp_path / "gone.png")
    assert served(opened(tmp_path))[-1] == 0


def test_more_bad_images_than_may_be_skipped(tmp_path, keeping, monkeypatch):
    paths = folder_of(tmp_path)
    for i in (3, 4):
        paths[i].write_bytes(b"")
    with pytest.raises(
        UserError, match=r"2 images of 12 cannot be read, more than the 1 that may be skipped, first .*003"
    ):
        opened(tmp_path)
    monkeypatch.setattr(image_folders, "GOOD_TO_A_BAD", 6)
    assert served(opened(tmp_path))[2:6] == [2, 5, 5, 5]  # side by side
    for path in paths:
        path.write_bytes(b"")
    monkeypatch.setattr(image_folders, "GOOD_TO_A_BAD", 1)
    with pytest.raises(UserError, match="12 images of 12 cannot be read, more than the 11"):
        opened(tmp_path)


def test_what_is_served_depends_on_the_files_alone(tmp_path, monkeypatch, caplog):
    """A run that saw the file rot, one that opens it rotten, and one after it was restored serve the same."""
    monkeypatch.setattr(image_folders, "KEEP_BYTES", 0)
    paths = folder_of(tmp_path)
    good = paths[5].read_bytes()
    saw, whole = opened(tmp_path), opened(tmp_path).fingerprint
    paths[5].write_bytes(b"rot")
    late = opened(tmp_path)
    assert served(saw) == served(saw) == served(late) == served(pickle.loads(pickle.dumps(late)))
    assert served(late)[5] == 6
    assert (
        len([text for text in caplog.messages if "skipped, the next one takes its place; 1 of at most 1" in text]) == 2
    )
    assert late.fingerprint != whole == saw.fingerprint
    paths[5].write_bytes(good)
    assert served(saw) == served(late) == list(range(12))


def test_too_many_that_rot_later(tmp_path, monkeypatch):
    monkeypatch.setattr(image_folders, "KEEP_BYTES", 0)
    paths = folder_of(tmp_path)
    source = opened(tmp_path)
    paths[2].unlink()
    assert int(source[2][0, 0, 0]) == 3
    paths[7].write_bytes(b"")
    with pytest.raises(
        UserError, match=r"2 images in .* cannot be read, more than the 1 that may be skipped, last .*007"
    ):
        source[7]


def test_the_bound_grows_with_the_folder():
    assert [image_folders.most_bad(n) for n in (1, 100, 199, 200, 60_000)] == [1, 1, 1, 2, 600]
