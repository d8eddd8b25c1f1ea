"""Data that goes bad while a run is at work: named, skipped or the end, and the run goes on when it is whole again."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_helpers import SIZE, arguments, assert_same_run, distill_config, metrics

from ddpm_redistill.cli import main
from ddpm_redistill.errors import UserError
from ddpm_redistill.sources import image_folders
from ddpm_redistill.training import loop
from ddpm_redistill.training.checkpoint import newest_intact
from ddpm_redistill.training.distill import distill


@pytest.fixture
def folder(inputs, tmp_path, monkeypatch) -> dict[str, str]:
    """Teacher, and ten images that are read when they are needed."""
    monkeypatch.setattr(image_folders, "KEEP_BYTES", 0)
    images = tmp_path / "images"
    images.mkdir()
    pixels = np.random.default_rng(1).integers(0, 256, (10, SIZE, SIZE), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(images / f"{i}.png")
    return {**inputs, "data": str(images)}


def spoil_at_step(monkeypatch: pytest.MonkeyPatch, step: int, path: Path) -> None:
    true_rate = loop.learning_rate_at

    def rate(now, config):
        if now == step:
            path.unlink()
        return true_rate(now, config)

    monkeypatch.setattr(loop, "learning_rate_at", rate)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_vanishes_ends_the_run_in_one_line_and_it_goes_on_when_it_is_back(
    folder, tmp_path, monkeypatch, capfd, workers
):
    run, lost = tmp_path / "run", Path(folder["data"]) / "7.png"
    data, training = lost.read_bytes(), vars(distill_config(folder, run, steps=9, num_workers=workers).training)
    with monkeypatch.context() as patch:
        spoil_at_step(patch, 4, lost)
        with pytest.raises(SystemExit) as ended:
            main(
                [
                    "distill",
                    *arguments({**folder, "output_dir": str(run), "horizontal_flip": True, "training": training}),
                ]
            )
    assert ended.value.code == 2
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert f"error: image {lost} can no longer be read (No such file or directory)" in err.splitlines()[-1]
    assert newest_intact(run / "checkpoints").name == "step-000004"
    with pytest.raises(UserError, match="data_sha256 was"):
        distill(distill_config(folder, run, steps=9, num_workers=workers), resume=True)
    lost.write_bytes(data)
    distill(distill_config(folder, run, steps=9, num_workers=workers), resume=True)
    distill(distill_config(folder, tmp_path / "one", steps=9))
    assert_same_run(tmp_path / "one", run)


def test_an_image_that_vanishes_is_skipped_by_name(folder, tmp_path, monkeypatch, caplog):
    run, lost = tmp_path / "run", Path(folder["data"]) / "7.png"
    spoil_at_step(monkeypatch, 4, lost)
    distill(distill_config({**folder, "on_bad_image": "skip"}, run, steps=9))
    skipped = [line for line in caplog.messages if "skipped, the next one takes its place" in line]
    assert len(skipped) == 1
    assert f"image {lost} cannot be read (No such file or directory)" in skipped[0]
    assert len(metrics(run)) == 9


def test_a_run_begins_with_a_torn_image_where_that_may_be_skipped(folder, tmp_path, caplog):
    torn = Path(folder["data"]) / "3.png"
    torn.write_bytes(torn.read_bytes()[:50])
    with pytest.raises(UserError, match=r"1 image of 10 cannot be read, .*3\.png"):
        distill(distill_config(folder, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    distill(distill_config({**folder, "on_bad_image": "skip"}, tmp_path / "run", steps=2))
    assert "1 of them unreadable and skipped" in (tmp_path / "run" / "provenance.json").read_text()
