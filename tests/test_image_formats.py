"""Files of every format that is read: TIFF, GIF, AVIF and .jfif; several frames; images that are too small."""

import io

import numpy as np
import pytest
import torch
from image_helpers import message, noise, solid
from PIL import Image
from property_helpers import assert_one_line

from ddpm_redistill.errors import UserError
from ddpm_redistill.sources import image_files
from ddpm_redistill.sources.images import open_images


def exact() -> torch.Tensor:
    return torch.from_numpy(np.array(noise())).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.tif", {}),
        ("a.TIFF", {"compression": "tiff_lzw"}),
        ("b.tif", {"compression": "tiff_deflate"}),
        ("c.tif", {"compression": "packbits"}),
    ],
)
def test_tiff(tmp_path, name, options):
    noise().save(tmp_path / name, **options)
    assert torch.equal(open_images(tmp_path, image_size=8, channels=3)[0], exact())


def test_gif_keeps_its_palette(tmp_path):
    noise().convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "a.gif")  # 64 colours, all of them kept
    assert torch.equal(open_images(tmp_path, image_size=8, channels=3)[0], exact())


def test_jfif_is_jpeg(tmp_path):
    noise(16).save(tmp_path / "a.jfif", format="JPEG", quality=95)
    expected = torch.from_numpy(np.array(Image.open(tmp_path / "a.jfif"))).permute(2, 0, 1)
    assert torch.equal(open_images(tmp_path, image_size=16, channels=3)[0], expected)


@pytest.mark.skipif(not image_files.HAS_AVIF, reason="Pillow without AVIF")
def test_avif(tmp_path):
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "a.avif", quality=100, subsampling="4:4:4")
    image = open_images(tmp_path, image_size=8, channels=3)[0]
    assert (image - torch.tensor([255, 0, 0])[:, None, None].to(torch.int16)).abs().max() <= 2


@pytest.mark.skipif(not image_files.HAS_AVIF, reason="Pillow without AVIF")
def test_avif_that_pillow_cannot_read(tmp_path, monkeypatch):
    solid(200).save(tmp_path / "a.avif")
    monkeypatch.setattr(image_files, "HAS_AVIF", False)
    monkeypatch.setattr(image_files, "FORMATS", [each for each in image_files.FORMATS if each != "AVIF"])
    assert "a.avif: an AVIF image, which the installed Pillow cannot read; version 11.3 can" in message(tmp_path)


def test_orientation_of_tiff(tmp_path):
    image = Image.new("L", (8, 4), 0)
    image.paste(255, (0, 0, 4, 4))  # left half white
    image.save(tmp_path / "a.tif", tiffinfo={0x0112: 6})  # to be turned by 90 degrees clockwise: white is on top
    source = open_images(tmp_path, image_size=4, channels=1)
    assert "4x8" in source.description
    assert source[0][0, 0].min() > source[0][0, -1].max()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_the_first_frame_of_several(tmp_path, kind, caplog):
    first, *others = [solid(value, (8, 8)).convert("RGB") for value in (255, 50, 90)]
    lossless = {"lossless": True} if kind == "WEBP" else {}
    for name in ("a", "b"):
        first.save(tmp_path / f"{name}.{kind}", save_all=True, append_images=others, **lossless)
    first.save(tmp_path / f"c.{kind}", **lossless)
    source = open_images(tmp_path, image_size=8, channels=1)
    assert len(source) == 3
    assert all((image == 255).all() for image in source)
    assert caplog.messages == [f"{tmp_path}: 2 of 3 images have more than one frame: the first is taken"]


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_a_bomb_is_refused_by_its_header(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(image_files, "LARGEST_IMAGE", 100)
    solid(255, (11, 10)).save(tmp_path / f"a.{kind}")
    assert "announces more pixels" in message(tmp_path)


def test_no_program_is_started(tmp_path):
    buffer = io.BytesIO()
    noise().save(buffer, "EPS")
    (tmp_path / "a.tif").write_bytes(buffer.getvalue())
    assert "a.tif: not a PNG, JPEG, WebP, BMP, TIFF, GIF or AVIF image" in message(tmp_path)


def test_images_that_are_much_too_small(tmp_path, caplog):
    for i, size in enumerate([(8, 8), (40, 7), (15, 40), (16, 16), (64, 64)]):
        solid(255, size).save(tmp_path / f"{i}.png")
    open_images(tmp_path, image_size=32, channels=1)
    assert caplog.messages == [
        f"{tmp_path}: 3 of 5 images are less than half as large as image_size 32, the smallest 40x7: enlarged they are"
        " blurred; leave them out, or give a smaller image_size"
    ]
    caplog.clear()
    open_images(tmp_path, image_size=14, channels=1)
    assert caplog.messages == []
    np.savez(tmp_path / "a.npz", images=np.full((6, 8, 8), 255, np.uint8))
    open_images(tmp_path / "a.npz", image_size=32, channels=1)
    assert "6 of 6 images are less than half as large" in caplog.text


def test_broken_frames_are_one_line(tmp_path):
    """A second frame that is cut off makes the file a broken one, or is not looked at."""
    buffer = io.BytesIO()
    solid(255, (8, 8)).save(buffer, "GIF", save_all=True, append_images=[noise(8).convert("L")])
    data, served = buffer.getvalue(), 0
    for length in range(len(data)):
        (tmp_path / "a.gif").write_bytes(data[:length])
        try:
            served += int((open_images(tmp_path, image_size=8, channels=1)[0] == 255).all())
        except UserError as error:
            assert_one_line(error)
    assert served
