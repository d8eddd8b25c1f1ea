"""What the tests of training, evaluation and the command line share: a tiny teacher, images, how to run a verb."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from ddpm_redistill.cli import main
from ddpm_redistill.config import DistillConfig, LossConfig, StudentConfig, TrainingConfig
from ddpm_redistill.sources.teacher import sha256_of
from ddpm_redistill.training import loop
from ddpm_redistill.training.checkpoint import list_checkpoints

torch.set_num_threads(1)  # the last bits depend on it, and networks this tiny are slower with more

SIZE = 16
UNET_WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"
CHECKPOINT_FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
TRAIN = {
    "steps": 20,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "warmup_steps": 4,
    "log_every": 1,
    "sample_every": 0,
    "checkpoint_every": 4,
    "keep_checkpoints": 0,
}
UNET = {
    "block_out_channels": [8, 8, 16, 16],
    "down_block_types": ["DownBlock2D"] * 4,
    "up_block_types": ["UpBlock2D"] * 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": None,
}
CIFAR10_UNET = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}


def make_tiny_teacher(folder: Path, **changes: Any) -> Path:
    """A DDPMPipeline folder of a random network: four levels, 16 px, one channel; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(**{**UNET, "sample_size": SIZE, "in_channels": 1, "out_channels": 1, **changes})
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    return folder


def make_cifar10_config(folder: Path) -> Path:
    """Only config.json of google/ddpm-cifar10-32's architecture."""
    with torch.device("meta"):
        UNet2DModel(**CIFAR10_UNET).save_config(folder)
    return folder


def make_images(path: Path, count: int = 10) -> Path:
    """An .npz of random grey images with a black margin, for which the default recipe is ``saturated``; the same every
    time."""
    images = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 1), dtype=np.uint8)
    images[:, :, : SIZE // 2] = 0
    np.savez(path, images=images)
    return path


def arguments(settings: dict[str, Any], prefix: str = "--") -> list[str]:
    """{"training": {"steps": 3}} -> ["--training.steps=3"]"""
    found = []
    for key, value in settings.items():
        if isinstance(value, dict) and key in ("training", "student", "loss"):
            found += arguments(value, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}={json.dumps(value) if isinstance(value, dict | list | None) else value}")
    return found


def refused(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, argv: list[str]) -> str:
    """Run a verb that must end with exit code 2 and one line on standard error -> that line."""
    capsys.readouterr()
    caplog.clear()
    with pytest.raises(SystemExit) as ended:
        main(argv)
    out, err = capsys.readouterr()
    assert ended.value.code == 2, err
    assert out == ""
    assert caplog.messages == []  # outside of pytest they would be on standard error too
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("ddpm-redistill: error: ")
    return lines[0]


class Killed(Exception):
    """What ``kill_at`` raises."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Stop a run, as a kill would, when the learning rate of a step (from 0) is asked for."""
    true_rate = loop.learning_rate_at

    def rate(now: int, config: TrainingConfig) -> float:
        if now == step:
            raise Killed
        return true_rate(now, config)

    monkeypatch.setattr(loop, "learning_rate_at", rate)


def distill_config(inputs: dict[str, str], run: Path, **changes: Any) -> DistillConfig:
    """``inputs``: teacher and data; ``changes``: student, loss, and the rest of training."""
    student, loss = StudentConfig(**changes.pop("student", {})), LossConfig(**changes.pop("loss", {}))
    training = TrainingConfig(**{**TRAIN, **changes})
    return DistillConfig(
        **inputs, output_dir=str(run), horizontal_flip=True, student=student, loss=loss, training=training
    )


def assert_same_run(one: Path, other: Path, model: str = "student") -> None:
    """The same weights, last checkpoint and metrics, bit for bit."""
    assert sha256_of(one / model / UNET_WEIGHTS) == sha256_of(other / model / UNET_WEIGHTS)
    assert_same_checkpoints(one, other)


def assert_same_checkpoints(one: Path, other: Path) -> None:
    """The same last checkpoint and metrics, bit for bit."""
    last = [list_checkpoints(run / "checkpoints")[-1] for run in (one, other)]
    assert last[0].name == last[1].name
    for name in CHECKPOINT_FILES:
        assert (last[0] / name).read_bytes() == (last[1] / name).read_bytes(), name
    assert metrics(one) == metrics(other)


def metrics(run: Path) -> list[dict[str, float]]:
    """Rows of metrics.jsonl without what is timed."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


def one_thread_environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def tool(name: str) -> str:
    """A program beside this Python."""
    return str(Path(sys.executable).with_name(name))
