"""An image file becomes pixels: modes, bit depths, transparency and orientation; resizing and cropping."""

from pathlib import Path

import numpy as np
import pytest
import torch
from image_helpers import noise, solid
from PIL import Image

from ddpm_redistill.sources.images import open_images

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def one(image: Image.Image, folder: Path, name: str = "a.png", channels: int = 3, **save) -> torch.Tensor:
    """The image after a round through a file and open_images at its own height."""
    image.save(folder / name, **save)
    source = open_images(str(folder), image_size=min(image.size), channels=channels)
    assert len(source) == 1
    assert source[0].dtype == torch.uint8
    return source[0]


# --- modes


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


# --- resize and crop


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
