"""The memory of a training step: predicted without data, measured on real ones, and what fits into a budget."""

import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DDPMScheduler
from test_loop import run_loop, tiny_network
from training_helpers import TRAIN, UNET, arguments, distill_config, make_tiny_teacher, metrics, refused

from ddpm_redistill.cli import main
from ddpm_redistill.config import DistillConfig, StudentConfig, TrainingConfig
from ddpm_redistill.errors import UserError
from ddpm_redistill.recipes import resolve
from ddpm_redistill.students.plan import plan_student
from ddpm_redistill.training.distill import distill
from ddpm_redistill.training.fit import fitted
from ddpm_redistill.training.step_memory import Alone, StepMemory, distillation_memory

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
allocated_peak = importlib.import_module("training_memory").allocated_peak

CPU = torch.device("cpu")
TEACHER: dict[str, Any] = {
    **UNET,
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2,
    "sample_size": 16,
    "in_channels": 1,
    "out_channels": 1,
    "add_attention": False,
}
NETWORKS = {
    "two levels": TEACHER,
    "attention": {**TEACHER, "add_attention": True, "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]},
    "wide, with classes": {**TEACHER, "block_out_channels": [32, 32], "num_class_embeds": 3, "dropout": 0.1},
}


def memory(teacher: dict[str, Any], batch: int, *, fake: bool = True, **changes: Any) -> StepMemory:
    settings = resolve(DistillConfig(student=StudentConfig(red_placement="full")))
    plan = plan_student(teacher, settings.student)
    training = TrainingConfig(batch_size=batch, **changes)
    return distillation_memory(teacher, DDPMScheduler(), plan, settings.loss, training, fake=fake)


@pytest.mark.parametrize("batch", [8, 16])
@pytest.mark.parametrize("name", NETWORKS)
def test_predicted_is_measured(name: str, batch: int) -> None:
    """By the allocator: nothing that predicts takes part in this measurement."""
    for checkpointing in (False, True):
        predicted = memory(NETWORKS[name], batch, gradient_checkpointing=checkpointing)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            measured = memory(NETWORKS[name], batch, gradient_checkpointing=checkpointing, fake=False)
        assert predicted.held == pytest.approx(measured.held, rel=0.001)
        assert predicted.peak == pytest.approx(measured.peak, rel=0.03)
        assert predicted.peak == pytest.approx(allocated_peak(profiler), rel=0.05)


def test_what_saves_memory() -> None:
    plain = memory(TEACHER, 8)
    assert memory(TEACHER, 8, gradient_checkpointing=True).peak < plain.peak
    assert memory(TEACHER, 8, gradient_accumulation=4).peak < plain.peak
    assert memory(TEACHER, 8, mixed_precision="bf16").peak < plain.peak
    assert memory(TEACHER, 8, mixed_precision="fp16").held == plain.held


def test_checkpointing_changes_no_number(inputs: dict[str, str], tmp_path: Path) -> None:
    """BatchNorm statistics included, with RED blocks and taps at every layer and dropout."""
    teacher = str(make_tiny_teacher(tmp_path / "teacher", dropout=0.1))
    runs = []
    for checkpointing in (False, True):
        run = tmp_path / str(checkpointing)
        student = {"red_placement": "full", "red_norm": "batch"}
        changes = {"student": student, "loss": {"red": 1.0, "feature_share": 1.0}, "steps": 3, "checkpoint_every": 3}
        distill(distill_config({**inputs, "teacher": teacher}, run, gradient_checkpointing=checkpointing, **changes))
        runs.append(run)
    assert metrics(runs[0]) == metrics(runs[1])
    weights = [run / "student" / "unet" / "diffusion_pytorch_model.safetensors" for run in runs]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_nothing_of_checkpointing_is_left(tmp_path: Path) -> None:
    network = run_loop(tmp_path, network=tiny_network(), gradient_checkpointing=True)
    assert not network.is_gradient_checkpointing


def fit(budget: str, linear: int, saving: int = 2, **changes: Any) -> TrainingConfig:
    """``linear`` MiB an image and 10 MiB held."""

    def memory_of(training: TrainingConfig) -> StepMemory:
        assert training.memory_budget is None
        size = training.global_batch // training.gradient_accumulation
        peak = 10 + size * linear // (saving if training.gradient_checkpointing else 1)
        return StepMemory(10 * 2**20, peak * 2**20)

    return fitted(TrainingConfig(memory_budget=budget, **changes), memory_of, Alone("no", CPU))  # type: ignore[arg-type]


@pytest.mark.parametrize(("budget", "parts"), [("74MiB", 1), ("73MiB", 2), ("42MiB", 2), ("11MiB", 64)])
def test_the_largest_that_fits(budget: str, parts: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ddpm_redistill"):
        found = fit(budget, 1, batch_size="auto")
    assert (found.batch_size, found.gradient_accumulation, found.memory_budget) == (64, parts, None)
    peak = 10 + 64 // parts
    assert caplog.messages == [
        f"training.batch_size 64 in {parts} micro-batches of {64 // parts} images a process: about {peak}.0 MiB of"
        f" tensors, of {budget[:2]}.0 MiB"
    ]


def test_the_batch_stays() -> None:
    assert fit("15MiB", 1, batch_size=6).gradient_accumulation == 2


@pytest.mark.parametrize(("saving", "verb"), [(2, "fits"), (1, "does not fit either")])
def test_nothing_fits(saving: int, verb: str) -> None:
    with pytest.raises(UserError, match=f"takes 14.0 MiB .* it takes 1[24].0 MiB, which {verb}"):
        fit("12MiB", 4, saving)
    with pytest.raises(UserError, match=r"one image at a time takes 12.0 MiB of tensors$"):
        fit("11MiB", 4, gradient_checkpointing=True)


def test_auto_runs_and_is_resumed(inputs: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    changes = {"batch_size": 4, "memory_budget": "1GiB", "steps": 2, "checkpoint_every": 1}
    with caplog.at_level(logging.INFO, "ddpm_redistill"):
        distill(distill_config(inputs, run, **changes))
    assert any(text.startswith("training.batch_size 4 in 1 micro-batches of 4 images") for text in caplog.messages)
    recorded = yaml.safe_load((run / "config.yaml").read_text())["training"]
    assert (recorded["batch_size"], recorded["gradient_accumulation"], recorded["memory_budget"]) == (4, 1, None)
    caplog.clear()
    with caplog.at_level(logging.INFO, "ddpm_redistill"):  # which would not fit into this now
        distill(distill_config(inputs, run, **{**changes, "memory_budget": "1KiB"}), resume=True)
    said = "micro-batches as the run that is resumed has them: training.gradient_accumulation 1"
    assert said in caplog.messages


def test_refused_before_anything_is_written(inputs, tmp_path, capsys, caplog) -> None:
    run = tmp_path / "run"
    given = {**inputs, "output_dir": str(run), "training": {**TRAIN, "batch_size": "auto", "memory_budget": "1KiB"}}
    assert "a step with one image at a time takes" in refused(capsys, caplog, ["distill", *arguments(given)])
    assert not run.exists()


def test_plan_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_tiny_teacher(tmp_path / "teacher")
    main(["plan", str(folder), "--batch_size", "4", "--json"])
    found = json.loads(capsys.readouterr().out)["training"]
    assert found["batch_size"] == 4
    assert found["held"] < found["tensor_peak_checkpointed"] < found["tensor_peak"]
    main(["plan", str(folder), "--batch_size", "4"])
    said = capsys.readouterr().out.splitlines()[-1]
    peaks = (found[key] / 2**20 for key in ("tensor_peak", "tensor_peak_checkpointed", "held"))
    assert said == (
        "training at batch 4: about {:,.1f} MiB of tensors, {:,.1f} with gradient checkpointing, of which {:,.1f} are"
        " held from step to step"
    ).format(*peaks)
