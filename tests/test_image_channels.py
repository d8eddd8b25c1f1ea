"""Images of up to 8 channels, in an .npz: opened, trained on, sampled; and what cannot be done with them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from image_helpers import message
from PIL import Image
from training_helpers import SIZE, TRAIN, make_tiny_teacher, refused

from ddpm_redistill.cli import main
from ddpm_redistill.sources.image_source import viewable
from ddpm_redistill.sources.images import open_images

CHANNELS = 4


def pixels(channels: int = CHANNELS, size: int = SIZE, count: int = 6) -> np.ndarray:
    """uint8 (N, H, W, C)."""
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz of four channels, a teacher and its student of them. Not to be changed by a test."""
    place = tmp_path_factory.mktemp("channels")
    np.savez(place / "images.npz", images=pixels())
    make_tiny_teacher(place / "teacher", in_channels=CHANNELS, out_channels=CHANNELS)
    return place


# --- data


@pytest.mark.parametrize("channels", [2, 4, 5, 8])
def test_the_channels_of_an_npz_as_they_are(tmp_path: Path, channels: int) -> None:
    images = pixels(channels)
    np.savez(tmp_path / "a.npz", images=images)
    source = open_images(tmp_path / "a.npz", image_size=SIZE, channels=channels)
    assert np.array_equal(torch.stack([*source]).permute(0, 2, 3, 1).numpy(), images)
    assert source.description.endswith(f"{SIZE}x{SIZE}, {channels} channels")


def test_each_channel_is_resized_as_a_grey_image(tmp_path: Path) -> None:
    images = pixels(5)
    np.savez(tmp_path / "a.npz", images=images)
    source = open_images(tmp_path / "a.npz", image_size=8, channels=5)
    for c in range(5):
        expected = Image.fromarray(images[2, :, :, c]).resize((8, 8), Image.Resampling.BICUBIC)
        assert np.array_equal(source[2][c].numpy(), np.array(expected))


def test_data_range_of_many_channels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=pixels() // 16)
    source = open_images(tmp_path / "a.npz", image_size=SIZE, channels=CHANNELS, data_range=15)
    assert np.array_equal(source[3].permute(1, 2, 0).numpy(), pixels()[3] // 16 * 17)


@pytest.mark.parametrize("channels", [0, 9])
def test_too_many_channels(tmp_path: Path, channels: int) -> None:
    np.savez(tmp_path / "a.npz", images=pixels())
    assert f"images with {channels} channels are not supported" in message(tmp_path / "a.npz", 8, channels)
    np.savez(tmp_path / "a.npz", images=pixels(9))
    assert "not (N, H, W[, 1 to 8]) with N > 0" in message(tmp_path / "a.npz", 8, 8)


@pytest.mark.parametrize(("own", "needed"), [(4, 3), (4, 1), (3, 4), (2, 5)])
def test_other_channels_than_are_needed(tmp_path: Path, own: int, needed: int) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(own))
    said = message(tmp_path / "a.npz", SIZE, needed)
    assert f"have {own} channels, and {needed} are needed" in said


def test_transparency_is_no_fourth_channel(tmp_path: Path) -> None:
    Image.fromarray(pixels()[0], "RGBA").save(tmp_path / "a.png")
    assert open_images(tmp_path, image_size=SIZE, channels=3)[0].shape == (3, SIZE, SIZE)
    assert f"save them as an .npz of uint8 (N, H, W, {CHANNELS})" in message(tmp_path, SIZE, CHANNELS)
    assert "save them as an .npz" in message("builtin:digits", 32, CHANNELS)


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (4, 3), (8, 3)])
def test_what_a_picture_shows(channels: int, shown: int) -> None:
    images = torch.rand(2, channels, 4, 4)
    assert torch.equal(viewable(images), images[:, :shown])


# --- verbs


def test_teach_distill_sample(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From an .npz of five channels to a teacher, a student and its samples, with grids of what can be shown."""
    np.savez(tmp_path / "images.npz", images=pixels(5))
    training = {**TRAIN, "steps": 2, "sample_every": 2, "checkpoint_every": 2}
    settings = [f"--training.{key}={value}" for key, value in training.items()]
    data = ["--data", str(tmp_path / "images.npz")]
    unet = (place / "teacher" / "unet" / "config.json").read_text()
    keys = ("block_out_channels", "down_block_types", "up_block_types", "layers_per_block", "norm_num_groups")
    network = json.dumps({key: json.loads(unet)[key] for key in keys})
    shape = ["--image_size", str(SIZE), "--channels", "5", "--unet", network]
    with caplog.at_level("INFO", "ddpm_redistill"):
        main(["teach", *data, *shape, "--output_dir", str(tmp_path / "taught"), *settings])
        teacher = ["--teacher", str(tmp_path / "taught" / "teacher")]
        main(["distill", *teacher, *data, "--output_dir", str(tmp_path / "run"), *settings])
    assert "sample grids show the first channels of 5, as grey or RGB" in caplog.messages
    for run in ("taught", "run"):
        with Image.open(tmp_path / run / "samples" / "step-000002.png") as grid:
            assert grid.mode == "RGB"
    argv = ["sample", str(tmp_path / "run" / "student"), "--output", str(tmp_path / "made.npz"), "--num_images", "3"]
    caplog.clear()
    with caplog.at_level("INFO", "ddpm_redistill"):
        main([*argv, "--steps", "2"])
    assert "the first of 5 channels as grey or RGB" in caplog.text
    with np.load(tmp_path / "made.npz") as file:
        assert file["images"].shape == (3, SIZE, SIZE, 5)
    assert (tmp_path / "made_grid.png").is_file()
    assert len(open_images(tmp_path / "made.npz", image_size=SIZE, channels=5)) == 3


def test_a_run_is_resumed_with_its_own_range_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    make_tiny_teacher(tmp_path / "teacher")
    np.savez(tmp_path / "a.npz", images=pixels(1) // 2)
    settings = [f"--training.{key}={value}" for key, value in {**TRAIN, "steps": 4}.items()]
    where = ["--teacher", str(tmp_path / "teacher"), "--data", str(tmp_path / "a.npz"), "--output_dir"]
    argv = ["distill", *where, str(tmp_path / "run"), *settings]
    main([*argv, "--data_range", "127"])
    caplog.clear()
    for resume in ("--resume", "--resume_anyway"):
        for other in (["--data_range", "200"], []):
            assert "data_range was 127.0 and is now" in refused(capsys, caplog, [*argv, *other, resume])
    main([*argv, "--data_range", "127", "--resume"])
    assert "data_range: 127.0" in (tmp_path / "run" / "config.yaml").read_text()
    assert "8-bit values of 0 to 127 in a range of 127" in (tmp_path / "run" / "provenance.json").read_text()


@pytest.mark.parametrize("verb", ["evaluate", "statistics"])
def test_what_is_measured_is_read_with_the_range(tmp_path: Path, verb: str) -> None:
    make_tiny_teacher(tmp_path / "teacher")
    (tmp_path / "deep").mkdir()
    (tmp_path / "shallow").mkdir()
    for i, values in enumerate(pixels(1)[:, :, :, 0]):
        Image.fromarray(values.astype(np.uint16) * 16).save(tmp_path / "deep" / f"{i}.png")
        Image.fromarray(np.floor(values * (16 * 255 / 4080) + 0.5).astype(np.uint8)).save(
            tmp_path / "shallow" / f"{i}.png"
        )
    found = []
    for name, ranged in (("deep", ["--data_range", "4080"]), ("shallow", [])):
        data, network = str(tmp_path / name), ["--extractor", "feature_helpers:Projection", "--num_images", "6"]
        if verb == "statistics":
            out = tmp_path / f"{name}.npz"
            size = ["--image_size", str(SIZE), "--channels", "1"]
            main(["statistics", data, *ranged, *size, *network, "--output", str(out)])
            found.append(str(np.load(out)["images_sha256"]))
        else:
            out = tmp_path / f"{name}_report"
            argv = ["evaluate", str(tmp_path / "teacher"), "--data", data, *ranged, *network, "--steps", "2"]
            main([*argv, "--output_dir", str(out)])
            provenance = json.loads((out / "report.json").read_text())["provenance"]
            assert provenance.get("data_range") == (4080 if ranged else None)
            found.append(provenance["data_sha256"])
    assert found[0] == found[1]
