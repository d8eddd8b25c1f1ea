"""A killed run that is resumed gives the bytes of one run in one go, whatever became of its newest checkpoint."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_helpers import (
    SIZE,
    TRAIN,
    UNET,
    UNET_WEIGHTS,
    Killed,
    arguments,
    assert_same_run,
    distill_config,
    kill_at,
    make_tiny_teacher,
    metrics,
    one_thread_environment,
)

from ddpm_redistill.config import TeachConfig, TrainingConfig
from ddpm_redistill.errors import UserError
from ddpm_redistill.sources.teacher import sha256_of
from ddpm_redistill.training.checkpoint import list_checkpoints
from ddpm_redistill.training.distill import distill
from ddpm_redistill.training.teach import teach

# --- kill and resume


def test_a_real_kill_and_resume_is_bit_identical(inputs, tmp_path):
    one, run = tmp_path / "one", tmp_path / "killed"
    distill(distill_config(inputs, one, loss={"red": 1.0, "feature_share": 0.25}, sample_every=5))
    settings = {**inputs, "output_dir": str(run), "horizontal_flip": True, "loss": {"red": 1.0, "feature_share": 0.25}}
    argv = arguments({**settings, "training": {**TRAIN, "sample_every": 5}})
    command = [sys.executable, "-m", "ddpm_redistill", "distill", *argv]
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(command, env=one_thread_environment(), stdout=subprocess.DEVNULL, stderr=stderr)
        deadline = time.monotonic() + 120
        while not (run / "checkpoints" / "step-000004").exists():  # then comes the grid of step 5, which takes its time
            assert process.poll() is None, (tmp_path / "stderr").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert list_checkpoints(run / "checkpoints")[-1].name < "step-000020"
    assert not (run / "student").exists()
    distill(distill_config(inputs, run, loss={"red": 1.0, "feature_share": 0.25}, sample_every=5), resume=True)
    assert_same_run(one, run)
    grid = Path("samples") / "step-000020.png"
    assert (one / grid).read_bytes() == (run / grid).read_bytes()


def test_resume_with_dropout_and_the_papers_recipe(dropout_inputs, tmp_path, monkeypatch):
    runs = tmp_path / "one", tmp_path / "killed"
    student = {"start": "random", "red_start": "paper", "prediction_type": "epsilon"}
    configs = [
        distill_config(dropout_inputs, run, student=student, loss={"task": 1.0, "red": 50.0}, steps=9) for run in runs
    ]
    distill(configs[0])
    with monkeypatch.context() as patch:
        kill_at(patch, 7)
        with pytest.raises(Killed):
            distill(configs[1])
    assert [row["step"] for row in metrics(runs[1])] == list(range(1, 8))  # past the checkpoint of step 4
    torch.manual_seed(99)
    distill(configs[1], resume=True)
    assert_same_run(*runs)


def test_dropout_is_on_and_follows_the_seed(inputs, dropout_inputs, tmp_path):
    losses = []
    for name, given in (("on", dropout_inputs), ("again", dropout_inputs), ("off", inputs)):
        torch.manual_seed(len(losses))
        distill(distill_config(given, tmp_path / name, steps=2))
        losses.append([row["loss"] for row in metrics(tmp_path / name)])
    assert losses[0] == losses[1] != losses[2]


def test_a_run_killed_before_its_first_checkpoint_starts_again(inputs, tmp_path, monkeypatch):
    config = distill_config(inputs, tmp_path / "run", steps=4)
    with monkeypatch.context() as patch:
        kill_at(patch, 2)
        with pytest.raises(Killed):
            distill(config)
    distill(config, resume=True)
    assert [row["step"] for row in metrics(tmp_path / "run")] == [1, 2, 3, 4]


def test_resuming_a_finished_run_changes_nothing(inputs, tmp_path):
    config = distill_config(inputs, tmp_path / "run", steps=3)
    distill(config)
    before = sha256_of(tmp_path / "run" / "student" / UNET_WEIGHTS), metrics(tmp_path / "run")
    distill(config, resume=True)
    assert (sha256_of(tmp_path / "run" / "student" / UNET_WEIGHTS), metrics(tmp_path / "run")) == before


@pytest.mark.parametrize("damage", ["truncated", "a flipped byte", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(inputs, tmp_path, monkeypatch, caplog, damage):
    runs = tmp_path / "one", tmp_path / "killed"
    configs = [distill_config(inputs, run, steps=10) for run in runs]
    distill(configs[0])
    with monkeypatch.context() as patch:
        kill_at(patch, 9)
        with pytest.raises(Killed):
            distill(configs[1])
    weights = list_checkpoints(runs[1] / "checkpoints")[-1] / "model.safetensors"
    data = weights.read_bytes()
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(data[:1000] if damage == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    caplog.set_level("INFO", logger="ddpm_redistill")
    distill(configs[1], resume=True)
    assert any("step-000008 is damaged and passed over: model.safetensors" in line for line in caplog.messages)
    assert f"resuming from {runs[1] / 'checkpoints' / 'step-000004'}" in caplog.messages
    assert_same_run(*runs)


def test_with_no_intact_checkpoint_the_run_is_not_begun_anew(inputs, tmp_path):
    config = distill_config(inputs, tmp_path / "run", steps=4)
    distill(config)
    for path in list_checkpoints(tmp_path / "run" / "checkpoints"):
        (path / "ema.safetensors").write_bytes(b"")
    student = sha256_of(tmp_path / "run" / "student" / UNET_WEIGHTS)
    with pytest.raises(UserError, match=r"no checkpoint in .* is intact"):
        distill(config, resume=True)
    assert sha256_of(tmp_path / "run" / "student" / UNET_WEIGHTS) == student


def test_a_checkpoint_of_another_network_is_refused(inputs, tmp_path):
    config = distill_config(inputs, tmp_path / "run", steps=2)
    distill(config)
    (tmp_path / "run" / "plan.json").write_text("{}")
    other = make_tiny_teacher(tmp_path / "other", block_out_channels=[8, 8, 8, 8])
    distill(distill_config({**inputs, "teacher": str(other)}, tmp_path / "run2", steps=2))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run2" / "checkpoints").rename(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="is not of this network"):
        distill(config, resume=True)


def test_teach_resumes_bit_for_bit_with_dropout(inputs, tmp_path, monkeypatch):
    training = TrainingConfig(**{**TRAIN, "steps": 7})
    runs = tmp_path / "one", tmp_path / "killed"
    configs = [
        TeachConfig(
            unet={**UNET, "dropout": 0.2}, data=inputs["data"], image_size=SIZE, output_dir=str(run), training=training
        )
        for run in runs
    ]
    teach(configs[0])
    with monkeypatch.context() as patch:
        kill_at(patch, 6)
        with pytest.raises(Killed):
            teach(configs[1])
    torch.manual_seed(99)
    teach(configs[1], resume=True)
    assert_same_run(*runs, model="teacher")
