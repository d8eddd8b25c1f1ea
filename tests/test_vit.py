"""Vision transformers as students of convolutional classifiers: planned, aligned, trained, saved, opened, refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from ddpm_redistill import StudentConfig, StudentPlan, UserError, derive_student, plan_student
from ddpm_redistill.cli import main
from ddpm_redistill.core.taps import Tap, reading
from ddpm_redistill.families.classifier_config import config_from_dict
from ddpm_redistill.families.classifier_files import build, find_config, load_classifier, save_classifier
from ddpm_redistill.families.registry import family_of, find_family
from ddpm_redistill.pipelines.edits import Red, Tokens
from ddpm_redistill.pipelines.red_block import REDBlock, TokensAround
from ddpm_redistill.students.footprint import network_of, planned_memory
from ddpm_redistill.training.comparison import alignment

pytest.importorskip("timm")

TINY = "timm:vit_tiny_patch16_224"
ARGUMENTS: dict[str, Any] = {"patch_size": 4, "embed_dim": 12, "depth": 4, "num_heads": 3}


def teacher_config(image_size: int = 32) -> dict[str, Any]:
    return find_config("wrn:10-1", image_size=image_size, in_channels=1).to_dict()


def planned(image_size: int = 32, arguments: dict[str, Any] | None = None, **options: Any) -> StudentPlan:
    given = {"architecture": TINY, "arguments": {**ARGUMENTS, **(arguments or {})}, **options}
    return plan_student(teacher_config(image_size), StudentConfig(**given))


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def test_tokens_are_laid_out_row_by_row() -> None:
    """A block of identities, so that the map is known; the class token passes by the RED block."""
    around = TokensAround(nn.Identity(), prefix=1, side=2)
    tokens = torch.arange(5.0).repeat_interleave(3).view(1, 5, 3)
    assert around(tokens).equal(tokens)
    with reading(around, [Tap("red_out", "output")]) as reader:
        _, maps = reader.run(around, tokens)
    assert maps[Tap("red_out", "output")][0, 0].tolist() == [[1, 2], [3, 4]]
    around.red_out = nn.Upsample(scale_factor=1)
    around.red_out.forward = lambda x: x + 10  # type: ignore[assignment]
    assert around(tokens)[0, :, 0].tolist() == [0, 11, 12, 13, 14]


def test_the_plan() -> None:
    plan = planned()
    assert (plan.family, plan.student_strides, plan.teacher_strides) == ("vit", (4,), (1, 2, 2))
    tokens, red = plan.edits
    assert tokens == Tokens(path="blocks.1", prefix=1, side=8)
    assert isinstance(red, Red)
    assert (red.name, red.resolution, red.channels) == ("blocks.1.red_out", 8, 12)
    assert (red.teacher_layer, red.teacher_side, red.teacher_channels) == ("group3.0", "output", 64)
    assert StudentPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert planned(align_after=4).edits[0] == Tokens(path="blocks.3", prefix=1, side=8)
    assert planned(red_placement="none").blocks == ()
    with_registers = planned(arguments={"reg_tokens": 2, "class_token": False, "global_pool": "avg"})
    assert with_registers.edits[0] == Tokens(path="blocks.1", prefix=2, side=8)
    assert planned(arguments={"patch_size": 2}).blocks[0].teacher_layer == "group2.0"
    memory = planned_memory(teacher_config(), plan)
    assert memory["student"].tensor_peak > 0


@pytest.mark.parametrize("placement", ["full", "none"])
def test_the_maps_that_are_compared_have_one_resolution(placement: str) -> None:
    config, plan = teacher_config(), planned(red_placement=placement)
    teacher = build(config_from_dict(config, "here"))
    student = derive_student(teacher, plan, seed=3)
    (place,) = alignment(config, plan)
    with torch.no_grad(), reading(student, [place.student]) as own, reading(teacher, [place.teacher]) as its:
        mine, other = own.run(student, images())[1], its.run(teacher, images())[1]
    assert mine[place.student].shape == (2, 12, 8, 8)
    assert other[place.teacher].shape == (2, 64, 8, 8)
    assert (place.channels, place.teacher_channels) == (12, 64)
    assert any(isinstance(module, REDBlock) for module in student.modules()) == (placement == "full")


def test_saved_and_opened(tmp_path: Path) -> None:
    teacher = build(config_from_dict(teacher_config(), "here"))
    student: Any = derive_student(teacher, planned(), seed=1)
    assert derive_student(teacher, planned(), seed=1).state_dict()["pos_embed"].equal(student.pos_embed)
    assert not derive_student(teacher, planned(), seed=2).state_dict()["pos_embed"].equal(student.pos_embed)
    save_classifier(student, config_from_dict(student.config, "here"), tmp_path / "student")
    assert sorted(path.name for path in (tmp_path / "student").iterdir()) == ["config.json", "model.safetensors"]
    opened, config = load_classifier(str(tmp_path / "student"))
    with torch.no_grad():
        assert opened(images()).equal(student(images()))
    assert (config.num_classes, config.image_size, config.in_channels) == (10, 32, 1)
    assert find_family(str(tmp_path / "student"))[0] == "vit"
    assert [*network_of(config.to_dict()).state_dict()] == [*student.state_dict()]


@pytest.mark.parametrize(
    ("ref", "family"),
    [
        (TINY, "vit"),
        ("timm:vit_small_patch14_reg4_dinov2", "vit"),
        ("timm:resnet18", "classifier"),
        ("timm:mixer_s32_224", "classifier"),
        ("wrn:10-1", "classifier"),
        ("builtin:digits", "unet2d"),
    ],
)
def test_known_by_structure(ref: str, family: str) -> None:
    assert find_family(ref)[0] == family
    if family != "unet2d":
        assert family_of(find_config(ref, num_classes=10).to_dict())[0] == family


def test_trained_by_the_command_line(tmp_path: Path) -> None:
    """Three steps with RED alignment, and without; the loss's parts say which."""
    teacher = build(config_from_dict(teacher_config(), "here"))
    save_classifier(teacher, config_from_dict(teacher.config, "here"), tmp_path / "teacher")  # type: ignore[arg-type]
    argv = ["distill", "--teacher", str(tmp_path / "teacher"), "--data", "builtin:digits"]
    argv += ["--student.architecture", TINY, "--student.arguments", json.dumps(ARGUMENTS)]
    argv += ["--training.steps", "3", "--training.batch_size", "8", "--training.log_every", "1"]
    argv += ["--training.sample_every", "0"]
    for name, red in (("with", "1"), ("without", "0")):
        AcceleratorState._reset_state(reset_partial_state=True)
        main([*argv, "--output_dir", str(tmp_path / name), "--loss.red", red])
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert [("red" in row) for row in rows] == [red == "1"] * 3
        student, config = load_classifier(str(tmp_path / name / "student"))
        assert isinstance(student.get_submodule("blocks.1"), TokensAround)
        assert config.classes == tuple("0123456789")
        card = (tmp_path / name / "student" / "README.md").read_text()
        assert "# A student of" in card
        assert "a network of its own" in card
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("size", "arguments", "options", "words"),
    [
        (32, {"patch_size": 16}, {}, "are a map of 2 a side, and the teacher's maps are of 32, 16, 8: choose patches"),
        (36, {"patch_size": 8}, {}, "images of 36 pixels a side are not divided by patches of 8"),
        (32, {"patch_sizes": 8}, {}, "timm cannot build timm:vit_tiny_patch16_224"),
        (32, {"img_size": 32}, {}, "has img_size among its arguments"),
        (32, {}, {"architecture": "timm:resnet18", "arguments": {}}, "student.architecture timm:resnet18 is no vision"),
        (32, {}, {"architecture": "timm:vit_tinny"}, "timm has no network vit_tinny"),
        (32, {}, {"architecture": "vit"}, "student.architecture vit cannot learn what this teacher does"),
        (32, {}, {"align_after": 5}, "student.align_after is 5: the student has blocks 1 to 4"),
        (32, {}, {"reduction": 4}, "student.reduction is set, which no student of its own architecture has"),
        (32, {}, {"widen": [1, 1, 2]}, "student.widen is set, which no student of its own architecture has"),
        (32, {}, {"start": "teacher"}, "student.start is teacher"),
    ],
)
def test_refused(size: int, arguments: dict[str, Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        planned(size, **{"arguments": arguments, **options})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_refused_by_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, words in (
        (["plan", TINY], "it is a vision transformer, whose tokens keep one resolution"),
        (["plan", "builtin:digits", "--architecture", TINY], "cannot learn what this teacher does, to denoise"),
        (["plan", "wrn:10-1", "--arguments", "{depth: 4}"], "student.arguments is set, which no student of a"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        line = capsys.readouterr().err
        assert (ended.value.code, line.count("\n")) == (2, 1)
        assert words in line
