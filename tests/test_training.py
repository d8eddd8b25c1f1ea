"""teach and distill: what a run computes, and what it leaves behind."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import (
    TRAIN,
    UNET,
    UNET_WEIGHTS,
    distill_config,
    make_tiny_teacher,
    metrics,
)

from ddpm_redistill.config import TeachConfig, TrainingConfig
from ddpm_redistill.errors import UserError
from ddpm_redistill.sources.teacher import load_teacher, sha256_of
from ddpm_redistill.training import distill_ddpm as distill_module
from ddpm_redistill.training.checkpoint import list_checkpoints, load_checkpoint
from ddpm_redistill.training.distill import distill
from ddpm_redistill.training.loop import learning_rate_at
from ddpm_redistill.training.teach import teach

# --- a run and what it leaves behind


@pytest.fixture(scope="module")
def straight(inputs, tmp_path_factory):
    """A distillation of 20 steps in one go, with RED alignment and sample grids."""
    run = tmp_path_factory.mktemp("runs") / "straight"
    teacher = sha256_of(Path(inputs["teacher"]) / UNET_WEIGHTS)
    torch.manual_seed(11)
    loss = {"red": 1.0, "feature_share": 1.0}
    config = distill_config(inputs, run, student={"prediction_type": "v_prediction"}, loss=loss, sample_every=5)
    assert distill(config) == run / "student"
    assert sha256_of(Path(inputs["teacher"]) / UNET_WEIGHTS) == teacher
    return run


def test_run_folder(straight):
    assert sorted(path.name for path in straight.iterdir()) == sorted(
        [
            ".lock",
            "config.yaml",
            "plan.json",
            "metrics.jsonl",
            "provenance.json",
            "checkpoints",
            "student",
            "samples",
            "tensorboard",
        ]
    )
    grids = sorted(path.name for path in (straight / "samples").iterdir())
    assert grids == [f"step-0000{step:02d}.png" for step in (5, 10, 15, 20)]
    steps = [path.name for path in list_checkpoints(straight / "checkpoints")]
    assert steps == [f"step-0000{step:02d}" for step in (4, 8, 12, 16, 20)]
    assert any((straight / "tensorboard").rglob("events*"))


def test_json_of_a_run(straight, inputs):
    plan = json.loads((straight / "plan.json").read_text())
    red = [edit for edit in plan["edits"] if edit["edit"] == "red"]
    assert (plan["student_strides"], len(red)) == ([2, 2, 2, 1], 2)
    assert plan == json.loads((straight / "student" / "unet" / "config.json").read_text())["student_plan"]
    provenance = json.loads((straight / "provenance.json").read_text())
    assert provenance["teacher_sha256"] == sha256_of(Path(inputs["teacher"]) / UNET_WEIGHTS)
    assert {"data_sha256", "torch", "diffusers", "device", "time"} < provenance.keys()


def test_metrics_rows(straight):
    rows = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 21))
    wanted = {"step", "loss", "task", "red", "learning_rate", "grad_norm", "images_per_second"}
    assert all(row.keys() == wanted for row in rows)
    for row in rows:
        assert row["loss"] == pytest.approx(row["task"] + row["red"], rel=1e-5)
        assert min(row["grad_norm"], row["images_per_second"], row["task"]) > 0
    config = TrainingConfig(**TRAIN)
    assert [row["learning_rate"] for row in rows] == [learning_rate_at(step, config) for step in range(20)]


def test_the_student_folder_holds_the_average_and_opens(straight):
    weights = load_file(straight / "student" / UNET_WEIGHTS)
    checkpoint = load_checkpoint(list_checkpoints(straight / "checkpoints")[-1])
    assert all(torch.equal(weights[name], checkpoint.ema[name]) for name in weights)
    assert any(not torch.equal(weights[name], checkpoint.model[name]) for name in weights)
    scheduler = json.loads((straight / "student" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"


def test_no_checkpoint_holds_the_teacher(straight):
    own = load_file(straight / "student" / UNET_WEIGHTS).keys()
    checkpoint = load_checkpoint(list_checkpoints(straight / "checkpoints")[-1])
    assert checkpoint.model.keys() == checkpoint.ema.keys() == own
    assert {name.split("/", 1)[1] for name in checkpoint.optimizer} < own


def test_the_teacher_is_frozen_in_eval_mode_and_unchanged(dropout_inputs, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(distill_module, "load_teacher", lambda ref: seen.setdefault("teacher", load_teacher(ref)))
    distill(distill_config(dropout_inputs, tmp_path / "run", loss={"red": 1.0}, steps=3))
    unet, fresh = seen["teacher"].unet, load_teacher(dropout_inputs["teacher"]).unet
    assert not any(module.training for module in unet.modules())
    assert not any(p.requires_grad or p.grad is not None for p in unet.parameters())
    now, before = unet.cpu().state_dict().values(), fresh.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(now, before, strict=True))


@pytest.mark.parametrize(
    ("loss", "starts", "ends"),
    [
        ({"task": 1.0, "output": 0.0, "red": 0.0}, 0, 0),
        ({"output": 1.0}, 2, 2),
        ({"output": 0.0, "red": 1.0, "feature_share": 1.0}, 2, 0),
        ({"output": 0.0, "red": 1.0, "feature_share": 0.5}, 1, 0),
        ({"output": 1.0, "red": 1.0}, 2, 2),
    ],
)
def test_the_teacher_runs_only_as_far_as_a_weight_needs_it(inputs, tmp_path, monkeypatch, loss, starts, ends):
    started, ended = [], []

    def counted(ref):
        teacher = load_teacher(ref)
        teacher.unet.conv_in.register_forward_hook(lambda *args: started.append(1))
        teacher.unet.conv_out.register_forward_hook(lambda *args: ended.append(1))
        return teacher

    monkeypatch.setattr(distill_module, "load_teacher", counted)
    distill(distill_config(inputs, tmp_path / "run", loss=loss, steps=2))
    assert (len(started), len(ended)) == (starts, ends)
    assert ("output" in metrics(tmp_path / "run")[0]) == bool(ends)


# --- the loop


def rates(**changes) -> list[float]:
    config = TrainingConfig(**{"learning_rate": 2.0, "steps": 10, "warmup_steps": 4, **changes})
    return [learning_rate_at(step, config) for step in range(config.steps)]


def test_constant_learning_rate_after_a_linear_warm_up():
    assert rates(schedule="constant") == [0.5, 1.0, 1.5, 2.0] + [2.0] * 6


def test_cosine_learning_rate_after_a_linear_warm_up():
    cosine = [1 + math.cos(math.pi * i / 6) for i in range(6)]
    assert rates(schedule="cosine") == pytest.approx([0.5, 1.0, 1.5, 2.0, *cosine])
    end = TrainingConfig(learning_rate=2.0, steps=10, warmup_steps=4, schedule="cosine")
    assert learning_rate_at(10, end) == pytest.approx(0)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_learning_rate_without_warm_up_and_with_nothing_else(schedule):
    assert rates(schedule=schedule, warmup_steps=0)[0] == 2.0
    assert rates(schedule=schedule, warmup_steps=20)[-1] == pytest.approx(1.0)


def test_accumulation_gives_the_same_losses(inputs, tmp_path):
    losses = []
    for accumulation in (1, 2, 4):
        run = tmp_path / str(accumulation)
        student = {"red_placement": "none"}  # BatchNorm sees micro-batches, as it should
        loss = {"output": 1.0}
        distill(distill_config(inputs, run, student=student, loss=loss, gradient_accumulation=accumulation, steps=4))
        losses.append([[row[key] for key in ("loss", "task", "output", "grad_norm")] for row in metrics(run)])
    rounding = 1e-4 if torch.cuda.is_available() else 1e-5  # TF32 has 10 bits of mantissa
    for other in losses[1:]:
        torch.testing.assert_close(torch.tensor(other), torch.tensor(losses[0]), rtol=rounding, atol=rounding / 100)


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_batch_that_does_not_divide_is_refused(inputs, tmp_path, dry_run):
    config = distill_config(inputs, tmp_path / "run", batch_size=5, gradient_accumulation=2)
    with pytest.raises(UserError, match=r"batch_size 5 does not divide by 1 processes x 2 .* a multiple of 2"):
        distill(config, dry_run=dry_run)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_leaves_nothing(inputs, tmp_path):
    assert distill(distill_config(inputs, tmp_path / "run"), dry_run=True) is None
    assert not (tmp_path / "run").exists()


def test_any_seed_and_a_schedule_shorter_than_the_grids_steps(inputs, tmp_path):
    teacher = make_tiny_teacher(tmp_path / "teacher")
    path = teacher / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_train_timesteps": 10}))
    config = distill_config({**inputs, "teacher": str(teacher)}, tmp_path / "run", steps=2, sample_every=2)
    distill(type(config)(**{**vars(config), "seed": 2**70}))
    assert (tmp_path / "run" / "samples" / "step-000002.png").exists()


# --- teach


def teach_config(inputs, **changes) -> TeachConfig:
    training = TrainingConfig(**{**TRAIN, "steps": 3})
    return TeachConfig(**{"unet": UNET, "data": inputs["data"], "image_size": 16, "training": training, **changes})


def test_a_taught_teacher_can_be_distilled(inputs, tmp_path):
    folder = teach(teach_config(inputs, output_dir=str(tmp_path / "taught")))
    rows = metrics(tmp_path / "taught")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["loss"] == row["task"] for row in rows)
    assert load_teacher(str(folder)).unet.config.sample_size == 16
    distill(distill_config({**inputs, "teacher": str(folder)}, tmp_path / "run", steps=1))
