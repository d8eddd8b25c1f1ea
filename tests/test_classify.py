"""The loop serves a classifier as it serves a DDPM: batches by the seed, resumed to the byte, on any processes."""

import json
import subprocess
from pathlib import Path
from typing import Any

import classifier_helpers
import pytest
import torch
import yaml
from classifier_helpers import (
    MEAN,
    PLACES,
    SIZE,
    STD,
    WEIGHTS,
    TinyClassifier,
    labelled,
    task_of,
    train_classifier,
)
from safetensors.torch import load_file
from torch.nn import functional as F
from training_helpers import Killed, assert_same_checkpoints, kill_at, metrics, one_thread_environment

from ddpm_redistill.config import FEATURE_TERMS, ClassificationConfig, LossConfig, TrainingConfig
from ddpm_redistill.core.feature_losses import feature_mse, red_distance
from ddpm_redistill.errors import UserError
from ddpm_redistill.pipelines.seeds import seeded_generator
from ddpm_redistill.recipes import classifier_loss
from ddpm_redistill.sources.predictions import logits_of
from ddpm_redistill.training.batch_norm import batch_norm_record
from ddpm_redistill.training.checkpoint import list_checkpoints, load_checkpoint
from ddpm_redistill.training.classify import crop_of, distillation_objective
from ddpm_redistill.training.comparison import comparing, make_regressors
from ddpm_redistill.training.draws import STREAM, Draws, micro_batches
from ddpm_redistill.training.step_memory import classification_memory

CPU = torch.device("cpu")
ALL = {**dict.fromkeys(FEATURE_TERMS, 1.0), "feature": 0.5, "output": 1.0, "feature_share": 0.5}


def batches(draws: Draws, steps: int = 3, **shared: int) -> list[dict[str, torch.Tensor]]:
    whole = {"first_step": 0, "last_step": steps, "rank": 0, "processes": 1, "accumulation": 1, "num_workers": 0}
    return list(micro_batches(draws, **{**whole, **shared}, device=CPU))


# --- batches


def test_a_batch_is_the_images_augmented_and_normalised_with_their_labels():
    learned = labelled()
    draws = Draws(learned.images, task_of(learned), seed=0, batch_size=8)
    (found,) = batches(draws, steps=1)
    drawn, order = draws.drawn(0, (3, SIZE, SIZE), CPU), draws.order(0)
    assert torch.equal(found["class_labels"], learned.labels[order])
    assert set(drawn) == {"flips", "offsets", "class_labels"}
    for i, index in enumerate(order.tolist()):
        image = learned.images[index].float()
        image = image.flip(-1) if drawn["flips"][i] else image
        top, left = drawn["offsets"][i].tolist()
        image = F.pad(image, [4] * 4)[:, top : top + SIZE, left : left + SIZE]
        expected = (image / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        torch.testing.assert_close(found["images"][i], expected)
    assert 0 < drawn["flips"].sum() < 8
    assert len(drawn["offsets"].unique(dim=0)) > 3


@pytest.mark.parametrize("crop", ["padded", "resized", "none"])
def test_ranks_and_micro_batches_share_one_run(crop):
    learned = labelled()
    draws = Draws(learned.images, task_of(learned, crop), seed=3, batch_size=8)
    whole = batches(draws)
    shares = [batches(draws, rank=rank, processes=2, accumulation=2) for rank in range(2)]
    for step, expected in enumerate(whole):
        parts = [share[2 * step + micro] for micro in range(2) for share in shares]
        for key, value in expected.items():
            assert torch.equal(torch.cat([part[key] for part in parts]), value)


def test_a_generator_of_the_step_draws_it():
    learned = labelled()
    drawn = Draws(learned.images, task_of(learned), seed=3, batch_size=8).drawn(7, (3, SIZE, SIZE), CPU)
    generator = seeded_generator(3, STREAM, 7)
    assert torch.equal(drawn["flips"], torch.rand(8, generator=generator) < 0.5)
    assert torch.equal(drawn["offsets"], torch.randint(9, (8, 2), generator=generator))


@pytest.mark.parametrize(
    ("asked", "size", "crop"), [("auto", 32, "padded"), ("auto", 96, "resized"), ("none", 96, "none")]
)
def test_the_crop_is_chosen_by_the_size(asked, size, crop):
    assert crop_of(ClassificationConfig(crop=asked), size) == crop


# --- the loss


def test_each_part_is_its_own_computation():
    teacher, student = TinyClassifier((1, 2), seed=7).eval(), TinyClassifier((2, 1)).eval()
    loss = classifier_loss(LossConfig(**{**ALL, "temperature": 3.0}))
    regressors = make_regressors(loss, PLACES, seed=0)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "images": torch.randn(5, 3, SIZE, SIZE, generator=generator),
        "class_labels": torch.tensor([0, 2, 1, 1, 0]),
    }
    with comparing(teacher, student, PLACES) as compared:
        found = distillation_objective(teacher, loss, compared)(student, batch, regressors)
    assert set(found) == {"task", "output", *FEATURE_TERMS}
    x = batch["images"]
    stem, its_stem = student.stem(x), teacher.stem(x)
    middle, its = student.middle(student.act(student.norm(stem))), teacher.middle(teacher.act(teacher.norm(its_stem)))
    logits, theirs = student(x), teacher(x)
    task = -logits.log_softmax(1)[torch.arange(5), batch["class_labels"]].mean()
    soft = (theirs / 3).softmax(1)
    output = 9 * (soft * (soft.log() - (logits / 3).log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(found["task"], task)
    torch.testing.assert_close(found["output"], output)
    red = (red_distance(stem, its, "cosine") + red_distance(middle, its, "cosine")) / 2
    torch.testing.assert_close(found["red"], red)
    torch.testing.assert_close(found["feature"], feature_mse(middle, its))
    hints = [feature_mse(regressors.taps[i](own), its) for i, own in enumerate([stem, middle])]
    torch.testing.assert_close(found["fitnet"], sum(hints) / 2)
    sum(found.values()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.stem.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("loss", "ran"), [({"red": 0.0}, (0, 0)), ({"red": 1.0}, (1, 0)), ({"output": 1.0}, (1, 1))])
def test_the_teacher_is_run_as_far_as_the_loss_needs(loss, ran):
    teacher, student, seen = TinyClassifier((1, 2), seed=7).eval(), TinyClassifier((2, 1)), {"stem": 0, "head": 0}
    for name in seen:
        teacher.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.update({name: seen[name] + 1}))
    batch = {"images": torch.zeros(2, 3, SIZE, SIZE), "class_labels": torch.tensor([0, 1])}
    terms = classifier_loss(LossConfig(**loss))
    with comparing(teacher, student, PLACES) as compared:
        parts = distillation_objective(teacher, terms, compared)(student, batch)
    assert tuple(seen.values()) == ran
    assert set(parts) == {"task"} | {name for name in ("red", "output") if getattr(terms, name)}


# --- whole runs


def test_a_classifier_learns_and_says_so(tmp_path):
    network = train_classifier(tmp_path / "run", steps=60, sample_every=30, log_every=7, schedule="constant")
    rows = [row for row in metrics(tmp_path / "run") if "held_out_top1" in row]
    assert [row["step"] for row in rows] == [30, 60]
    held = labelled().held
    right = (logits_of(network, held, MEAN, STD, CPU).argmax(1) == labelled().held_labels).double().mean()
    assert rows[-1]["held_out_top1"] == pytest.approx(float(right))
    assert "held_out_top5" not in rows[-1]  # of three classes
    assert right > 0.8
    saved = load_file(tmp_path / "run" / "teacher" / WEIGHTS)
    assert all(torch.equal(saved[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        (None, {}),
        (ALL, {"gradient_accumulation": 2, "ema_decay": 0.9}),
        (ALL, {"optimizer": "adam", "learning_rate": 1e-3, "schedule": "cosine"}),
    ],
    ids=["teach", "distill", "adam"],
)
def test_a_killed_run_is_resumed_to_the_byte(loss, changes, tmp_path, monkeypatch):
    one, killed, changes = tmp_path / "one", tmp_path / "killed", {**changes, "sample_every": 3}
    train_classifier(one, loss=loss, **changes)
    with monkeypatch.context() as patch:
        kill_at(patch, 7)
        with pytest.raises(Killed):
            train_classifier(killed, loss=loss, **changes)
    torch.manual_seed(99)
    train_classifier(killed, loss=loss, resume=True, **changes)
    assert_same_checkpoints(one, killed)
    name = Path("teacher" if loss is None else "student") / WEIGHTS
    assert (one / name).read_bytes() == (killed / name).read_bytes()
    assert [row["step"] for row in metrics(killed) if "held_out_top1" in row] == [3, 6, 8]


def test_sgd_is_torchs_over_all_parameters(tmp_path):
    """Two steps against torch.optim.SGD on the parameters themselves: momentum, Nesterov, decay of all of them."""
    run_steps = {"steps": 2, "warmup_steps": 0, "schedule": "constant"}
    found = train_classifier(tmp_path / "run", **run_steps)
    network, learned = TinyClassifier((1, 2)).train(), labelled()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for step, batch in enumerate(batches(Draws(learned.images, task_of(learned), seed=0, batch_size=8), steps=2)):
        torch.manual_seed(seeded_generator(0, "dropout", step, 0).initial_seed())
        optimizer.zero_grad()
        F.cross_entropy(network(batch["images"]), batch["class_labels"]).backward()
        optimizer.step()
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["training"]["max_grad_norm"] == 0
    for name, value in network.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, msg=name)
    saved = load_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert set(saved.optimizer) == {f"momentum_buffer/{name}" for name, _ in network.named_parameters()}


def run_program(command: list[str], folder: Path, loss: Any, training: dict[str, Any], **more: Any) -> Any:
    line = [*command, classifier_helpers.__file__, str(folder), json.dumps(loss), json.dumps(training)]
    return subprocess.Popen(line, env=one_thread_environment(ACCELERATE_USE_CPU="true"), **more)


# --- memory


@pytest.mark.parametrize("loss", [None, ALL], ids=["teach", "distill"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_predicted_memory_is_measured(loss, optimizer):
    training = TrainingConfig(batch_size=8, gradient_accumulation=2, optimizer=optimizer)
    given: dict[str, Any] = {}
    if loss:
        given = {
            "teacher": lambda: TinyClassifier((1, 2)),
            "places": PLACES,
            "loss": classifier_loss(LossConfig(**loss)),
        }
    found = [
        classification_memory(lambda: TinyClassifier((2, 1)), training, (3, SIZE, SIZE), fake=fake, **given)
        for fake in (True, False)
    ]
    assert found[0] == found[1]
    assert found[0].peak > found[0].held > 0


def test_micro_batches_of_a_network_with_batch_norm_are_kept(tmp_path):
    assert batch_norm_record(torch.nn.Conv2d(1, 1, 1), TrainingConfig()) == {}
    train_classifier(tmp_path / "run", steps=4, schedule="constant")
    with pytest.raises(UserError, match="gradient_accumulation was 1 and is now 2"):
        train_classifier(tmp_path / "run", steps=4, schedule="constant", resume=True, gradient_accumulation=2)
    text = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(text.replace("gradient_accumulation: 1", "gradient_accumulation: 2"))
    with pytest.raises(UserError, match=r"batch_norm_over was 8 .* and is now 4; that is never safe"):
        train_classifier(tmp_path / "run", steps=4, schedule="constant", resume=True, gradient_accumulation=2)
