"""A disk that fills during a run: one line, nothing half-written, the older checkpoint intact; then the run goes on."""

import os
import shutil
import subprocess

import pytest
import torch
from safetensors import SafetensorError
from test_loop import run_loop
from training_helpers import arguments, assert_same_run, distill_config, metrics

from ddpm_redistill.cli import main
from ddpm_redistill.errors import UserError
from ddpm_redistill.training import loop
from ddpm_redistill.training.checkpoint import Checkpoint, newest_intact, save_checkpoint
from ddpm_redistill.training.disk import written
from ddpm_redistill.training.distill import distill


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 20 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place, leave: int) -> None:
    """All of a disk but ``leave`` bytes."""
    with (place / "filler").open("wb") as file:
        file.write(b"x" * (shutil.disk_usage(place).free - leave))


def test_a_checkpoint_that_no_longer_fits(small_disk):
    def large(step: int) -> Checkpoint:
        return Checkpoint({"w": torch.full((3, 2**20), float(step))}, {}, {}, {"step": step})  # 12 MiB

    first = save_checkpoint(small_disk, large(1), keep=2)
    wanted = r"step-000002 could not be written: .*No space left .*\(12\.0 MiB are needed, [78]\.\d MiB are free\)"
    with pytest.raises(UserError, match=wanted):
        save_checkpoint(small_disk, large(2), keep=2)
    assert [path.name for path in small_disk.iterdir()] == ["step-000001"]
    assert newest_intact(small_disk) == first


def test_a_run_whose_disk_fills_ends_in_one_line_and_goes_on_when_there_is_room(
    inputs, tmp_path, small_disk, capfd, monkeypatch
):
    true_rate, run = loop.learning_rate_at, small_disk / "run"

    def fill_at_step_6(step, config):
        if step == 5:
            fill(small_disk, 200_000)
        return true_rate(step, config)

    settings = {**inputs, "output_dir": str(run), "horizontal_flip": True}
    training = {**vars(distill_config(inputs, run, steps=9, keep_checkpoints=1).training)}
    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate_at", fill_at_step_6)
        with pytest.raises(SystemExit) as ended:
            main(["distill", *arguments({**settings, "training": training})])
    err = capfd.readouterr().err
    assert ended.value.code == 2
    assert "Traceback" not in err
    line = err.splitlines()[-1]
    assert line.startswith(f"ddpm-redistill: error: {run / 'checkpoints' / 'step-000008'} could not be written: ")
    assert "last good checkpoint" in line
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000004"]
    (small_disk / "filler").unlink()
    config = distill_config(inputs, run, steps=9, keep_checkpoints=1)
    distill(config, resume=True)
    distill(distill_config(inputs, tmp_path / "one", steps=9))
    assert_same_run(tmp_path / "one", run)


@pytest.mark.parametrize(
    ("where", "what"),
    [("run_folder.json.dumps", "metrics.jsonl"), ("samples.save_image", "step-000002.png")],
)
def test_rows_and_grids_that_do_not_fit(tmp_path, monkeypatch, where, what):
    def refuse(*args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"ddpm_redistill.training.{where}", refuse)
        with pytest.raises(UserError, match=rf"{what} could not be written: No space left on device \([\d.]+ MiB are"):
            run_loop(tmp_path / "run", sample_every=2)
    assert not any((tmp_path / "run").rglob("*.png*"))
    run_loop(tmp_path / "run", resume=True)
    assert [row["step"] for row in metrics(tmp_path / "run")] == list(range(1, 7))


def test_what_safetensors_says_of_a_full_disk(tmp_path):
    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    wanted = r"x could not be written: I/O error: No space .*\(.*free\); go away$"
    with pytest.raises(UserError, match=wanted), written(tmp_path / "no" / "x", hint="go away"):
        raise SafetensorError(said)


def test_a_folder_that_may_not_be_written(inputs, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="run could not be written: Permission denied"):
        distill(distill_config(inputs, tmp_path / "locked" / "run"))
