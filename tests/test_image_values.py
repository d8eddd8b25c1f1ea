"""Which value of an image becomes 255: bit depths, floating point, data_range; and what is said of a source's range."""

from pathlib import Path

import numpy as np
import pytest
import torch
from bad_input_files import deep_png
from image_helpers import noise, solid
from PIL import Image

from ddpm_redistill.errors import UserError
from ddpm_redistill.sources import image_folders
from ddpm_redistill.sources.images import ImageSource, open_images


def opened(folder: Path, data_range: float | None = None, channels: int = 1, **options) -> ImageSource:
    return open_images(folder, image_size=8, channels=channels, data_range=data_range, **options)


def rounded(values: np.ndarray, full: float) -> np.ndarray:
    """An independent computation: by exact fractions of whole numbers, halves upwards."""
    return np.array([[int((2 * 255 * float(v) + full) // (2 * full)) for v in row] for row in values], np.uint8)


def twelve_bits(seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 4096, (8, 8), dtype=np.uint16)
    values[0, :2] = 0, 4095
    return values


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.TIFF"])
@pytest.mark.parametrize("data_range", [None, 4095, 65535, 5000.5])
def test_sixteen_bits(tmp_path, name, data_range):
    Image.fromarray(twelve_bits()).save(tmp_path / name)
    source = opened(tmp_path, data_range)
    full = data_range or 65535
    assert np.array_equal(source[0][0].numpy(), rounded(twelve_bits(), full))
    end = f"{int(full):,}" if full == int(full) else full
    assert source.description.endswith(f"8x8, 1 channel, 16-bit values of 0 to 4,095 in a range of {end}")
    colour = opened(tmp_path, data_range, 3)[0]
    assert torch.equal(colour, source[0].expand(3, 8, 8))


def test_a_range_that_is_hardly_used_is_said_once_with_the_option(tmp_path, caplog):
    for seed in range(3):
        Image.fromarray(twelve_bits(seed)).save(tmp_path / f"{seed}.png")
    assert opened(tmp_path)[0].max() == 16
    assert caplog.messages == [
        f"{tmp_path}: its 16-bit values end at 4,095, less than a quarter of their range of 65,535, so that the images"
        " are dark; --data_range 4095 makes that value white"
    ]
    caplog.clear()
    assert opened(tmp_path, 4095)[0].max() == 255
    assert caplog.messages == []


def test_eight_bits_too(tmp_path, caplog):
    values = np.arange(64, dtype=np.uint8).reshape(8, 8) % 16
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.array_equal(opened(tmp_path)[0][0].numpy(), values)
    assert "its 8-bit values end at 15, less than a quarter of their range of 255" in caplog.text
    assert "--data_range 15 makes" in caplog.text
    caplog.clear()
    source = opened(tmp_path, 15)
    assert np.array_equal(source[0][0].numpy(), values * 17)
    assert "8-bit values of 0 to 15 in a range of 15" in source.description
    assert caplog.messages == []
    np.savez(tmp_path / "a.npz", images=np.stack([values, values.T]))
    source = opened(tmp_path / "a.npz", 15)
    assert np.array_equal(source[1][0].numpy(), values.T * 17)
    colour = opened(tmp_path / "a.npz", 15, channels=3)
    assert np.array_equal(colour[1][2].numpy(), values.T * 17)
    assert "values" not in opened(tmp_path / "a.npz", 255).description
    assert opened(tmp_path / "a.npz", 255).fingerprint == opened(tmp_path / "a.npz").fingerprint != source.fingerprint
    caplog.clear()
    solid(0).save(tmp_path / "a.png")
    opened(tmp_path)
    assert caplog.messages[0].endswith("the images are dark; look at them")


def test_colour_and_transparency_are_spread_alike(tmp_path):
    pixels = np.array(noise()) // 16
    alpha = np.full((8, 8, 1), 255, np.uint8)
    alpha[0] = 0
    Image.fromarray(np.concatenate([pixels, alpha], -1)).save(tmp_path / "a.png")
    image = opened(tmp_path, 15, 3)[0].permute(1, 2, 0).numpy()
    assert (image[0] == 255).all()
    assert np.array_equal(image[1:], pixels[1:] * 17)


@pytest.mark.parametrize("full", [None, 0.5, 300.0])
def test_floating_point(tmp_path, full):
    values = np.random.default_rng(0).random((8, 8), dtype=np.float32) * np.float32(full or 1)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    source = opened(tmp_path, full)
    assert np.array_equal(source[0][0].numpy(), np.floor(values.astype(np.float64) / (full or 1) * 255 + 0.5))
    assert "floating-point values of " in source.description


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1.5, "floating-point values of 0 to 1.5, outside of 0 to 1;"),
        (-0.25, "floating-point values of -0.25 to 0, outside of 0 to 1;"),
        (np.nan, "floating-point values of nan to nan, outside of 0 to 1;"),
        (np.inf, "floating-point values of 0 to inf, outside of 0 to 1;"),
    ],
)
def test_floating_point_outside(tmp_path, value, said):
    values = np.zeros((8, 8), np.float32)
    values[0, 0] = value
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: ") as caught:
        opened(tmp_path)
    assert said in str(caught.value)
    assert "data_range is the value that becomes white" in str(caught.value)


def test_floats_that_are_dark(tmp_path, caplog):
    Image.new("F", (8, 8), 0.125).save(tmp_path / "a.tif")
    opened(tmp_path)
    assert "end at 0.125, less than a quarter of their range of 1" in caplog.text
    assert "--data_range 0.125" in caplog.text


def test_thirty_two_bits(tmp_path):
    values = np.zeros((8, 8), np.int32)
    values[0, :3] = 70_000, 35_000, 1
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="32-bit values of 0 to 70000, outside of 0 to 65535"):
        opened(tmp_path)
    assert opened(tmp_path, 70_000)[0][0, 0, :3].tolist() == [255, 128, 0]
    Image.fromarray(-values).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="32-bit values of -70000 to 0, outside of 0 to 70000"):
        opened(tmp_path, 70_000)


def test_values_past_data_range_are_a_bad_image(tmp_path, caplog):
    for seed in range(3):
        Image.fromarray(twelve_bits(seed)).save(tmp_path / f"{seed}.png")
    values = twelve_bits()
    values[5, 5] = 4096
    Image.fromarray(values).save(tmp_path / "1.png")
    with pytest.raises(UserError, match=r"1\.png: 16-bit values of 0 to 4096, outside of 0 to 4095;"):
        opened(tmp_path, 4095)
    source = opened(tmp_path, 4095, on_bad_image="skip")
    assert torch.equal(source[1], source[2])
    assert "skipped" in caplog.text


def test_images_of_two_kinds(tmp_path, caplog):
    noise().convert("L").save(tmp_path / "a.png")
    Image.fromarray(twelve_bits()).save(tmp_path / "b.png")
    source = opened(tmp_path)
    assert "16-bit values of 0 to 4,095" in source.description
    assert "8-bit values" not in source.description
    assert "save all images with one kind of values" in caplog.text
    with pytest.raises(UserError, match=r"a\.png: 8-bit values, which end at 255, so that data_range 4095 is not of"):
        opened(tmp_path, 4095)


def test_sixteen_bit_colour(tmp_path, caplog):
    values = np.random.default_rng(0).integers(0, 65536, (8, 8, 3), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(deep_png(values))
    source = opened(tmp_path, channels=3)
    assert np.array_equal(source[0].permute(1, 2, 0).numpy(), values >> 8)
    assert "16-bit colour values of" in source.description
    assert caplog.messages == []
    (tmp_path / "a.png").write_bytes(deep_png(values >> 4))
    assert opened(tmp_path, channels=3)[0].max() <= 15
    assert "save them as 8 bit with their values spread" in caplog.text
    with pytest.raises(UserError, match="16-bit colour, of which the upper byte is read"):
        opened(tmp_path, 4095, 3)


def test_white_is_zero_of_more_than_eight_bits_is_refused(tmp_path):
    Image.fromarray(twelve_bits()).save(tmp_path / "a.tif", tiffinfo={262: 0})
    with pytest.raises(UserError, match="16-bit values of which 0 is white"):
        opened(tmp_path)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_no_range(tmp_path, value):
    with pytest.raises(UserError, match="give the value that becomes white"):
        opened(tmp_path, value)


def test_the_fingerprint_is_of_what_is_served(tmp_path, monkeypatch):
    Image.fromarray(twelve_bits()).save(tmp_path / "a.png")
    found = [opened(tmp_path, each).fingerprint for each in (None, 4095, 4095.0, 65535)]
    assert found[1] == found[2]
    assert len(set(found)) == 3
    held = opened(tmp_path, 4095)[0]
    monkeypatch.setattr(image_folders, "KEEP_BYTES", 0)
    assert torch.equal(opened(tmp_path, 4095)[0], held)
    assert opened(tmp_path, 4095).fingerprint == found[1]


def test_the_fingerprints_of_eight_bit_sources_are_what_they_were(tmp_path):
    """Runs begun by an earlier version are resumed on the same data."""
    (tmp_path / "folder").mkdir()
    solid(200, (8, 8)).save(tmp_path / "folder/a.bmp")  # which has the same bytes with every version of Pillow
    np.savez(tmp_path / "a.npz", images=np.arange(128, dtype=np.uint8).reshape(2, 8, 8) + 100)
    assert opened(tmp_path / "folder").fingerprint == "b5e35721fe65d54563bd98e40154618c566e14bc81cfd0c587894ba44bfbb4d1"
    assert opened(tmp_path / "a.npz").fingerprint == "bffb7bcdd9d805d13f4aa7d8d9310acabdbbac36c68b20390431e609afc15a33"
