"""What a resumed run must have in common with the first, and what may be another: refused by name, or the same end."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from student_helpers import old_plan
from training_helpers import UNET_WEIGHTS, assert_same_run, distill_config, make_images, make_tiny_teacher, metrics

from ddpm_redistill.config import DistillConfig, LossConfig, StudentConfig, TeachConfig, TrainingConfig
from ddpm_redistill.errors import UserError
from ddpm_redistill.recipes import resolve
from ddpm_redistill.students.plan import StudentPlan
from ddpm_redistill.training.checkpoint import load_checkpoint, newest_intact, save_checkpoint
from ddpm_redistill.training.distill import distill
from ddpm_redistill.training.same_run import changed_settings, flatten

ALIKE = {"feature_share": 1.0}  # every step: their number is then safe to change


def settings(**changes: object) -> dict[str, object]:
    training = TrainingConfig(steps=100, batch_size=8, schedule="constant", **changes)
    config = DistillConfig(loss=LossConfig(feature_share=1.0), training=training)
    return flatten(asdict(resolve(config)))


# --- settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("training.log_every", 7),
        ("training.sample_every", 7),
        ("training.checkpoint_every", 7),
        ("training.keep_checkpoints", 7),
        ("training.num_workers", 7),
        ("training.compile", "off"),
        ("training.gradient_checkpointing", True),
        ("training.steps", 200),
        ("training.steps", 60),
        ("data", "elsewhere"),
        ("teacher", "elsewhere"),
    ],
)
def test_what_may_differ_if_that_is_asked_for(name, value):
    before = settings()
    now = {**before, name: value}
    assert changed_settings(before, now, 60, anyway=True) == [(name, before[name], value)]
    with pytest.raises(UserError, match=f"{name} was .* and is now {value}; use the same config, --resume_anyway"):
        changed_settings(before, now, 60, anyway=False)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("training.learning_rate", 0.5, "it would be another run from here on"),
        ("training.batch_size", 16, "it would be another run"),
        ("training.mixed_precision", "bf16", "it would be another run"),
        ("loss.task", 0.25, "it would be another run"),
        ("student.reduction", 4, "it would be another run"),
        ("seed", 1, "it would be another run"),
        ("on_bad_image", "skip", "it would be another run"),
        ("training.steps", 59, "the run is at step 60 already"),
        ("training.gradient_accumulation", 2, "BatchNorm in RED blocks"),
    ],
)
def test_what_never_may(name, value, why):
    before = settings()
    now = {**before, name: value}
    with pytest.raises(UserError, match=f"{name} was .* --resume_anyway does not help: {why}"):
        changed_settings(before, now, 60, anyway=True)


def test_steps_are_part_of_a_schedule_that_depends_on_them():
    before = {**settings(), "training.schedule": "cosine"}
    with pytest.raises(UserError, match="with the cosine schedule every step's learning rate depends on it"):
        changed_settings(before, {**before, "training.steps": 200}, 60, anyway=True)


def test_steps_are_what_a_share_is_of():
    before = {**settings(), "loss.feature_share": 0.25}
    with pytest.raises(UserError, match=r"does not help: loss\.feature_share 0\.25 is a share of them"):
        changed_settings(before, {**before, "training.steps": 200}, 60, anyway=True)
    alone = {**before, "loss.red": 0.0}
    assert changed_settings(alone, {**alone, "training.steps": 200}, 60, anyway=True)


def test_accumulation_may_change_where_nothing_is_taken_over_a_micro_batch():
    config = DistillConfig(student=StudentConfig(red_norm="group"), loss=LossConfig(task=1.0))
    before = flatten(asdict(resolve(config)))
    now = {**before, "training.gradient_accumulation": 2}
    assert len(changed_settings(before, now, 0, anyway=True)) == 1
    with pytest.raises(UserError, match="over a micro-batch"):
        changed_settings({**before, "loss.similarity": 1.0}, {**now, "loss.similarity": 1.0}, 0, anyway=True)


def test_a_teachers_own_arguments_are_all_compared():
    before = flatten(asdict(TeachConfig(unet={"act_fn": "silu"})))
    now = flatten(asdict(TeachConfig(unet={"act_fn": "silu", "dropout": 0.1})))
    with pytest.raises(UserError, match=r"unet\.dropout was None and is now 0\.1"):
        changed_settings(before, now, 0, anyway=False)


# --- teacher, data and plan


@pytest.fixture
def begun(inputs, tmp_path) -> tuple[dict[str, str], Path]:
    """Own copies of teacher and data, and a run of four steps."""
    place = tmp_path / "in"
    own = {"teacher": str(shutil.copytree(inputs["teacher"], place / "teacher")), "data": str(place / "images.npz")}
    shutil.copy(inputs["data"], own["data"])
    distill(distill_config(own, tmp_path / "run", steps=4, schedule="constant", loss=ALIKE))
    return own, tmp_path / "run"


def test_other_data_under_the_same_name(begun):
    inputs, run = begun
    make_images(Path(inputs["data"]), count=9)
    with pytest.raises(UserError, match=r"cannot resume .*: data_sha256 was .* \(provenance.json\) and is now"):
        distill(distill_config(inputs, run, steps=4, schedule="constant", loss=ALIKE), resume_anyway=True)


def test_another_teacher_under_the_same_name(begun):
    inputs, run = begun
    weights = Path(inputs["teacher"]) / UNET_WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match="teacher_sha256 was"):
        distill(distill_config(inputs, run, steps=4, schedule="constant", loss=ALIKE), resume=True)


def test_a_teacher_of_another_schedule_under_the_same_weights(begun):
    inputs, run = begun
    path = Path(inputs["teacher"]) / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "beta_end": 0.03}))
    with pytest.raises(UserError, match=r"teacher_config\.scheduler\.beta_end was 0\.02 .* and is now 0\.03"):
        distill(distill_config(inputs, run, steps=4, schedule="constant", loss=ALIKE), resume=True)


def test_another_plan(begun):
    inputs, run = begun
    path = run / "plan.json"
    made = json.loads(path.read_text())
    path.write_text(json.dumps({**made, "reduction": 4}))
    with pytest.raises(UserError, match=r"reduction was 4 \(plan.json\) and is now 2; that is never safe"):
        distill(distill_config(inputs, run, steps=4, schedule="constant", loss=ALIKE), resume=True)
    path.write_text(json.dumps(old_plan(StudentPlan.from_dict(made))))  # as an older version wrote the same plan
    distill(distill_config(inputs, run, steps=4, schedule="constant", loss=ALIKE), resume=True, dry_run=True)
    path.unlink()
    with pytest.raises(UserError, match=r"plan\.json is missing"):
        distill(distill_config(inputs, run, steps=4, schedule="constant", loss=ALIKE), resume=True)


def test_a_run_that_drew_its_noise_in_another_way(begun):
    """As those begun before streams had names."""
    inputs, run = begun
    path = run / "provenance.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "draws"}))
    for options in ({"resume": True}, {"resume_anyway": True}):
        with pytest.raises(UserError) as refused:
            distill(distill_config(inputs, run, steps=4, schedule="constant", loss=ALIKE), **options)
        was = "draws was one generator an image (provenance.json) and is now one generator a step"
        assert str(refused.value) == f"cannot resume {run}: {was}; that is never safe to change"
    shutil.rmtree(run / "checkpoints")  # nothing is drawn yet: it begins anew
    distill(distill_config(inputs, run, steps=4, schedule="constant", loss=ALIKE), resume=True)


def test_a_run_that_goes_on_on_another_kind_of_device_says_so(begun, caplog):
    inputs, run = begun
    config = distill_config(inputs, run, steps=5, schedule="constant", loss=ALIKE)
    distill(config, resume_anyway=True)
    assert not [message for message in caplog.messages if "drew its noise" in message]
    checkpoint = load_checkpoint(newest_intact(run / "checkpoints"))
    assert checkpoint.state["device"] == "cpu"
    save_checkpoint(run / "checkpoints", replace(checkpoint, state={**checkpoint.state, "device": "cuda"}), keep=0)
    distill(replace(config, training=replace(config.training, steps=6)), resume_anyway=True)
    said = [message for message in caplog.messages if "drew its noise" in message]
    assert len(said) == 1
    assert said[0].startswith("the run drew its noise on cuda until step 5 and draws on cpu now")


def test_a_run_that_moved_and_is_made_longer_is_that_of_all_its_steps(begun, tmp_path, caplog):
    inputs, run = begun
    moved = {"teacher": str(tmp_path / "there" / "teacher"), "data": str(tmp_path / "there" / "images.npz")}
    Path(inputs["data"]).parent.rename(tmp_path / "there")
    caplog.set_level("INFO", logger="ddpm_redistill")
    longer = distill_config(moved, run, steps=9, schedule="constant", loss=ALIKE)
    with pytest.raises(UserError, match=r"data was .* and is now"):
        distill(longer, resume=True)
    distill(longer, resume_anyway=True)
    assert "going on with training.steps 9, which was 4" in caplog.messages
    distill(distill_config(moved, tmp_path / "one", steps=9, schedule="constant", loss=ALIKE))
    assert_same_run(tmp_path / "one", run)
    assert [row["step"] for row in metrics(run)] == list(range(1, 10))


def test_a_refused_resume_changes_nothing(begun):
    inputs, run = begun
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    other = make_tiny_teacher(run.parent / "other", norm_eps=1e-4)
    with pytest.raises(UserError):
        distill(
            distill_config({**inputs, "teacher": str(other)}, run, steps=4, schedule="constant", loss=ALIKE),
            resume_anyway=True,
        )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
