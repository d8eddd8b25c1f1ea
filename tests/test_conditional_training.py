"""Training of class-conditional networks: which labels a batch has, warm starts, the guided teacher, killed runs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from training_helpers import SIZE, TRAIN, UNET, UNET_WEIGHTS, Killed, arguments, assert_same_run, kill_at, refused

from ddpm_redistill.cli import main
from ddpm_redistill.config import DistillConfig, LossConfig, StudentConfig, TeachConfig, TrainingConfig
from ddpm_redistill.core.losses import noisy_of, output_loss
from ddpm_redistill.errors import UserError
from ddpm_redistill.pipelines.conditioning import Conditioning
from ddpm_redistill.recipes import resolve
from ddpm_redistill.sources.image_source import from_tensor
from ddpm_redistill.sources.image_survey import Survey
from ddpm_redistill.sources.teacher import load_pipeline, load_teacher, sha256_of
from ddpm_redistill.students.derive import derive_student
from ddpm_redistill.students.plan import plan_student
from ddpm_redistill.training.classes import Classes
from ddpm_redistill.training.comparison import alignment, comparing
from ddpm_redistill.training.denoise import Denoise
from ddpm_redistill.training.distill import distill
from ddpm_redistill.training.draws import Draws, micro_batches
from ddpm_redistill.training.objective import distillation_objective
from ddpm_redistill.training.teach import teach
from ddpm_redistill.training.teach_ddpm import build_teacher

CLASSES = ["ant", "bee", "cow"]
CONDITIONAL = {"unet": UNET, "image_size": SIZE, "class_conditional": True}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/ with a folder for each of three classes; conditional/teacher; plain/teacher, without classes."""
    place = tmp_path_factory.mktemp("conditional")
    values = np.random.default_rng(0).integers(0, 256, (9, SIZE, SIZE), dtype=np.uint8)
    for k, pixels in enumerate(values):
        folder = place / "images" / CLASSES[k % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    for name, conditional in (("conditional", True), ("plain", False)):
        settings: dict[str, Any] = {"training": {**TRAIN, "steps": 4}, "data": place / "images", "unet": UNET}
        settings |= {"output_dir": place / name, "image_size": SIZE, "class_conditional": conditional}
        main(["teach", *arguments(settings)])
    return place


def draws_of(dropout: float, classes: Classes | None = None, batch: int = 40) -> Draws:
    """Image i is i everywhere and of class i % 3."""
    images = torch.arange(60, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    source = from_tensor(images, Survey("images", 4, {(4, 4)}))
    if dropout >= 0:
        labels = torch.arange(60) % 3
        classes = Classes(labels, Conditioning(("a", "b", "c"), 3), dropout, None)
    task = Denoise(scheduler=DDPMScheduler(), horizontal_flip=True, classes=classes)
    return Draws(source, task, seed=0, batch_size=batch)


def batches(draws: Draws, steps: int = 20, processes: int = 1, accumulation: int = 1) -> list[dict[str, torch.Tensor]]:
    shared = {"first_step": 0, "last_step": steps, "processes": processes, "accumulation": accumulation}
    return [
        batch
        for rank in range(processes)
        for batch in micro_batches(draws, **shared, rank=rank, num_workers=0, device=torch.device("cpu"))
    ]


# --- what a batch has


def test_a_batchs_labels_are_its_images_and_a_share_is_the_null_class() -> None:
    found = batches(draws_of(0.25))
    labels = torch.cat([batch["class_labels"] for batch in found])
    images = torch.cat([((batch["images"][:, 0, 0, 0] + 1) * 127.5).round().long() for batch in found])
    kept = labels != 3
    assert torch.equal(labels[kept], images[kept] % 3)
    assert 0.19 < 1 - kept.float().mean() < 0.31  # 800 draws: four standard deviations


def test_labels_change_no_other_draw_and_no_dropout_drops_nothing() -> None:
    without, labelled = batches(draws_of(-1)), batches(draws_of(0.0))
    assert "class_labels" not in without[0]
    for one, other in zip(without, labelled, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert int(other["class_labels"].max()) == 2


def test_every_process_and_micro_batch_takes_its_share() -> None:
    whole = batches(draws_of(0.25, batch=8), steps=2)
    parts = batches(draws_of(0.25, batch=8), steps=2, processes=2, accumulation=2)  # rank 0: 4 parts, rank 1: 4 parts
    for step in range(2):
        rows = [parts[rank * 4 + 2 * step + part] for part in range(2) for rank in range(2)]
        for name, value in whole[step].items():
            assert torch.equal(torch.cat([row[name] for row in rows]), value), name


# --- teachers


def test_teach_makes_one_embedding_a_class_and_a_null_class(place: Path) -> None:
    model = load_pipeline(str(place / "conditional" / "teacher"))
    assert model.conditioning == Conditioning(tuple(CLASSES), 3)
    assert model.unet.config.num_class_embeds == 4
    kept = json.loads((place / "conditional" / "provenance.json").read_text())
    assert kept["classes"] == CLASSES
    assert len(kept["label_sha256"]) == 64
    assert load_pipeline(str(place / "plain" / "teacher")).conditioning is None


def test_without_label_dropout_there_is_no_null_class(place: Path, tmp_path: Path) -> None:
    training = TrainingConfig(**{**TRAIN, "steps": 1}, label_dropout=0.0)
    teach(TeachConfig(**CONDITIONAL, data=str(place / "images"), output_dir=str(tmp_path), training=training))
    model = load_pipeline(str(tmp_path / "teacher"))
    assert (model.conditioning, model.unet.config.num_class_embeds) == (Conditioning(tuple(CLASSES), None), 3)


def test_a_teacher_without_classes_is_a_start_and_the_null_class_has_its_function(place: Path) -> None:
    config = TeachConfig(**CONDITIONAL, start=str(place / "plain" / "teacher"))
    unet = build_teacher(config, Conditioning(tuple(CLASSES), 3))[0].eval()
    plain = load_pipeline(str(place / "plain" / "teacher")).unet
    x, t = torch.randn(4, 1, SIZE, SIZE), torch.tensor([3, 300, 600, 999])
    with torch.no_grad():
        assert torch.equal(unet(x, t, torch.full((4,), 3)).sample, plain(x, t).sample)
    assert (unet.class_embedding.weight[:3].std(1) > 0.5).all()  # from zero they would not learn


def test_dropped_labels_of_no_classes_are_refused(place: Path, tmp_path: Path) -> None:
    training = TrainingConfig(**{**TRAIN, "steps": 1}, label_dropout=0.1)
    settings = {**CONDITIONAL, "class_conditional": False, "data": str(place / "images"), "training": training}
    with pytest.raises(UserError, match=r"training.label_dropout is set, but class_conditional is not"):
        teach(TeachConfig(**settings, output_dir=str(tmp_path / "never")))
    assert not (tmp_path / "never").exists()


def test_a_start_of_other_classes_is_refused(place: Path) -> None:
    config = TeachConfig(**CONDITIONAL, start=str(place / "conditional" / "teacher"))
    assert build_teacher(config, Conditioning(tuple(CLASSES), 3))
    with pytest.raises(UserError, match="has other classes than the data: ant, bee, cow"):
        build_teacher(config, Conditioning(("a", "b", "c"), 3))
    with pytest.raises(UserError, match="has num_class_embeds 4, and this config None"):
        build_teacher(replace(config, class_conditional=False))


# --- students


def settings_of(place: Path, run: Path, **changes: Any) -> DistillConfig:
    loss, student = LossConfig(**changes.pop("loss", {})), StudentConfig(**changes.pop("student", {}))
    teacher, data = str(place / "conditional" / "teacher"), str(place / "images")
    training = TrainingConfig(**{**TRAIN, "steps": 4, **changes})
    return DistillConfig(teacher=teacher, data=data, output_dir=str(run), loss=loss, student=student, training=training)


def test_a_student_keeps_the_classes_and_a_killed_run_ends_the_same(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = (settings_of(place, tmp_path / name, checkpoint_every=2) for name in ("whole", "killed"))
    distill(whole)
    with monkeypatch.context() as patch:
        kill_at(patch, 3)
        with pytest.raises(Killed):
            distill(killed)
    distill(killed, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert load_pipeline(str(tmp_path / "whole" / "student")).conditioning == Conditioning(tuple(CLASSES), 3)
    other = replace(whole, output_dir=str(tmp_path / "other"), training=replace(whole.training, label_dropout=0.0))
    distill(other)
    weights = [sha256_of(tmp_path / name / "student" / UNET_WEIGHTS) for name in ("whole", "other")]
    assert weights[0] != weights[1]  # so 0.1 is what nobody asked for


def test_a_run_is_not_resumed_with_other_labels(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels, labels=[0, 1, 2, 0, 1, 2])
    argv = ["distill", "--teacher", str(place / "conditional" / "teacher"), "--data", str(tmp_path / "images.npz")]
    argv += ["--output_dir", str(tmp_path / "run"), *arguments({"training": {**TRAIN, "steps": 4}})]
    main(argv)
    np.savez(tmp_path / "images.npz", images=pixels, labels=[0, 1, 2, 0, 2, 1])
    assert "label_sha256 was" in refused(capsys, caplog, [*argv, "--resume"])


def test_the_target_of_loss_guidance_is_the_guided_teacher(place: Path) -> None:
    teacher = load_teacher(str(place / "conditional" / "teacher"))
    teacher.unet.class_embedding.weight.data.normal_(generator=torch.Generator().manual_seed(1)).mul_(5)
    plan = plan_student(dict(teacher.unet.config))
    student = derive_student(teacher.unet, plan)
    loss = resolve(DistillConfig(loss=LossConfig(guidance=3.0, clip_sample=False, weighting="none"))).loss
    assert (loss.task, loss.output) == (0.0, 1.0)
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.rand(2, 3, 1, SIZE, SIZE, generator=generator)
    batch = {"images": images, "noise": noise, "timesteps": torch.tensor([5, 400, 900])}
    batch["class_labels"] = torch.tensor([1, 3, 0])
    with comparing(teacher.unet, student, alignment(dict(teacher.unet.config), plan)) as compared:
        objective = distillation_objective(teacher, plan, loss, compared, torch.device("cpu"), null=3)
        parts = objective(student, batch)
    abar = teacher.scheduler.alphas_cumprod[batch["timesteps"]]
    noisy, timesteps = noisy_of(images, noise, abar), batch["timesteps"]
    with torch.no_grad():
        conditional = teacher.unet(noisy, timesteps, batch["class_labels"]).sample
        null = teacher.unet(noisy, timesteps, torch.full((3,), 3)).sample
        sample = student(noisy, timesteps, batch["class_labels"]).sample
    abar = abar.view(-1, 1, 1, 1)
    epsilon = (noisy - abar.sqrt() * sample) / (1 - abar).sqrt()
    expected = output_loss(epsilon, null + 3 * (conditional - null))
    assert torch.allclose(parts["output"], expected, rtol=1e-4)
    assert not torch.allclose(parts["output"], output_loss(epsilon, conditional), rtol=1e-2)
    assert torch.allclose(parts["red"], red_without_guidance(teacher, student, plan, batch), rtol=1e-4)


def red_without_guidance(teacher: Any, student: Any, plan: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The alignment with the teacher's maps of its conditional pass: guidance has no part in it."""
    loss = resolve(DistillConfig(loss=LossConfig(clip_sample=False, weighting="none"))).loss
    with comparing(teacher.unet, student, alignment(dict(teacher.unet.config), plan)) as compared:
        return distillation_objective(teacher, plan, loss, compared, torch.device("cpu"))(student, batch)["red"]


def test_a_student_of_the_guided_teacher_says_so_and_takes_one_pass(place: Path, tmp_path: Path) -> None:
    distill(settings_of(place, tmp_path, loss={"guidance": 1.5}))
    student = load_pipeline(str(tmp_path / "student"))
    assert student.conditioning == Conditioning(tuple(CLASSES), 3, 1.5)
    assert student.check_classes(None, 1.5) == ((0, 1, 2), False)
    again = settings_of(place, tmp_path / "again", loss={"guidance": 1.5})
    with pytest.raises(UserError, match=r"has learned guidance 1.5 already"):
        distill(replace(again, teacher=str(tmp_path / "student")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"guidance": 1.5, "task": 1.0}}, "loss.guidance is of the teacher's output"),
        ({"loss": {"guidance": 1.5, "output": 0.0}}, "loss.guidance is of the teacher's output"),
        ({"loss": {"guidance": -1.0}}, "loss.guidance must be a finite number"),
    ],
)
def test_guidance_that_makes_no_sense_is_refused(place: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(settings_of(place, place / "never", **changes))


def test_what_needs_a_null_class_or_any_is_refused_without(place: Path, tmp_path: Path) -> None:
    training = TrainingConfig(**{**TRAIN, "steps": 1}, label_dropout=0.0)
    teach(TeachConfig(**CONDITIONAL, data=str(place / "images"), output_dir=str(tmp_path / "t"), training=training))
    config = settings_of(place, tmp_path / "never", loss={"guidance": 1.5})
    with pytest.raises(UserError, match=r"loss.guidance is 1.5, which needs a null class"):
        distill(replace(config, teacher=str(tmp_path / "t" / "teacher")))
    config = settings_of(place, tmp_path / "never", label_dropout=0.2)
    with pytest.raises(UserError, match=r"training.label_dropout is 0.2, which needs a null class"):
        distill(replace(config, teacher=str(tmp_path / "t" / "teacher")))
    with pytest.raises(UserError, match=r"training.label_dropout is set, but .* has no classes"):
        distill(replace(config, teacher=str(place / "plain" / "teacher")))
    assert not (tmp_path / "never").exists()
