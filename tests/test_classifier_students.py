"""Students of classifiers: planned by the paper's rule, built, started from their teacher, saved and opened."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm_redistill import StudentConfig, StudentPlan, UserError, derive_student, plan_student
from ddpm_redistill.cli import main
from ddpm_redistill.core.memory import profile_memory
from ddpm_redistill.core.taps import Tap, reading
from ddpm_redistill.families.classifier import network_on_meta, resampling_table
from ddpm_redistill.families.classifier_config import config_from_dict
from ddpm_redistill.families.classifier_files import build, find_config, load_classifier, save_classifier
from ddpm_redistill.students.derive import student_on_meta
from ddpm_redistill.students.footprint import network_memory, planned_memory
from ddpm_redistill.students.rule import strides_of

pytest.importorskip("timm")

RESNET_BLOCKS = [
    ("conv1.red_out", "layer2.0", "output", 28),
    ("layer2.0.red_in", "layer3.0", "input", 28),
    ("layer2.0.red_out", "layer3.0", "output", 14),
    ("layer3.0.red_in", "layer4.0", "input", 14),
    ("layer3.0.red_out", "layer4.0", "output", 7),
]


def planned(ref: str, reduction: Any, **options: Any) -> tuple[dict[str, Any], StudentPlan]:
    config = find_config(ref).to_dict()
    return config, plan_student(config, StudentConfig(reduction=reduction, **options))


def made(ref: str = "wrn:10-1", seed: int = 0) -> Any:
    """A classifier of random values at all of its weights and statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build(find_config(ref))
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand(value.shape) / 10)
    return network


@pytest.mark.parametrize(
    ("ref", "peaks"), [("timm:resnet18", (4014080, 802816)), ("timm:resnet50", (9633792, 2408448))]
)
def test_the_papers_students(ref: str, peaks: tuple[int, int]) -> None:
    config, plan = planned(ref, 4)
    assert (plan.teacher_strides, plan.student_strides) == ((2, 2, 2, 2, 2), (8, 1, 2, 2, 1))
    found = [(block.name, block.teacher_layer, block.teacher_side, block.resolution) for block in plan.blocks]
    assert found == RESNET_BLOCKS
    memory = planned_memory(config, plan)
    assert (memory["teacher"].paper_peak, memory["student"].paper_peak) == peaks


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize(
    ("ref", "strides"),
    [
        ("timm:mobilenetv2_100", (8, 2, 2, 1, 1)),
        ("timm:mobilenetv3_small_100", (8, 2, 2, 1, 1)),
        ("timm:resnext50_32x4d", (8, 1, 2, 2, 1)),
        ("timm:convnext_atto", (16, 2, 1, 1)),
        ("timm:efficientnet_lite0", (8, 2, 2, 1, 1)),
        ("timm:repvgg_a0", (8, 2, 2, 1, 1)),
        ("timm:vgg11_bn", (4, 1, 2, 2, 2, 1)),
        ("wrn:16-2", (4, 1, 1)),
    ],
)
def test_blocks_meet_their_teachers_maps(ref: str, strides: tuple[int, ...]) -> None:
    """Measured: each RED block's output is as large as the teacher's map, with the channels that the plan says."""
    config, plan = planned(ref, 4)
    assert plan.student_strides == strides
    teacher, student = network_on_meta(config), student_on_meta(config, plan)
    images = torch.zeros(1, 3, plan.sample_size, plan.sample_size, device="meta")
    mine = [Tap(block.name, "output") for block in plan.blocks]
    theirs = [Tap(block.teacher_layer, block.teacher_side) for block in plan.blocks]
    with torch.no_grad(), reading(student, mine) as reader, reading(teacher, theirs) as other:
        logits, own = reader.run(student, images)
        wanted, matched = other.run(teacher, images)
    assert logits.shape == wanted.shape
    for block, tap, teacher_tap in zip(plan.blocks, mine, theirs, strict=True):
        assert own[tap].shape[1:] == (block.channels, block.resolution, block.resolution)
        assert matched[teacher_tap].shape[1:] == (block.teacher_channels, block.resolution, block.resolution)


def test_warm_start_and_saving(tmp_path: Path) -> None:
    teacher = made()
    plan = plan_student(teacher.config, StudentConfig(reduction=2))
    student: Any = derive_student(teacher, plan, seed=1)
    given, own = teacher.state_dict(), student.state_dict()
    assert own["group1.0.conv1.weight"].equal(given["group1.0.conv1.weight"])
    assert own["group2.0.layer.conv2.weight"].equal(given["group2.0.conv2.weight"])
    assert own["conv1.layer.weight"].equal(given["conv1.weight"])  # 3x3 at stride 2: the kernel has not grown
    grown: Any = derive_student(teacher, plan_student(teacher.config, StudentConfig(reduction=4)), seed=1)
    assert grown.state_dict()["conv1.layer.weight"].shape[-2:] == (5, 5)
    torch.testing.assert_close(grown.state_dict()["conv1.layer.weight"].sum((2, 3)), given["conv1.weight"].sum((2, 3)))
    fresh: Any = derive_student(teacher, plan_student(teacher.config, StudentConfig(start="random")), seed=1)
    assert not fresh.state_dict()["group1.0.conv1.weight"].equal(given["group1.0.conv1.weight"])

    save_classifier(student, config_from_dict(student.config, "here"), tmp_path / "student")
    opened, config = load_classifier(str(tmp_path / "student"))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert opened(images).equal(student(images))
    assert StudentPlan.from_dict(config.to_dict()["student_plan"]) == plan
    assert sorted(path.name for path in (tmp_path / "student").iterdir()) == ["config.json", "model.safetensors"]


def test_a_student_of_a_student() -> None:
    teacher = made("wrn:10-1")
    half: Any = derive_student(teacher, plan_student(teacher.config, StudentConfig(reduction=2)))
    table = resampling_table(half.config)
    assert strides_of(table) == (2, 2, 1)
    assert [row.resolution for row in table] == [(32, 16), (16, 8), (8, 8)]
    plan = plan_student(half.config, StudentConfig(reduction=2))
    assert (plan.reduction, plan.teacher_strides, plan.student_strides) == (4, (2, 2, 1), (4, 1, 1))
    quarter: Any = derive_student(half, plan)
    assert quarter(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert [edit for edit in plan.edits if edit not in plan.blocks] == [
        edit for edit in planned("wrn:10-1", 4)[1].edits if edit.kind != "red"
    ]
    assert quarter.state_dict()["group3.0.conv1.weight"].equal(half.state_dict()["group3.0.conv1.weight"])


@pytest.mark.parametrize("ref", ["wrn:10-1", "timm:resnet18", "timm:mobilenetv3_small_050"])
def test_tensor_peak_is_the_real_one(ref: str) -> None:
    config = {**find_config(ref).to_dict(), "image_size": 64}
    plan = plan_student(config, StudentConfig(reduction=2))
    student: Any = build(config_from_dict({**config, "student_plan": plan.to_dict()}, "here"))
    real = profile_memory(student, torch.zeros(1, 3, 64, 64), fake=False)
    assert network_memory(student_on_meta(config, plan)).tensor_peak == real.tensor_peak


def test_plan_and_memory_by_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "timm:resnet18", "--image_size", "224", "--reduction", "4", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["plan"]["teacher_strides"], found["plan"]["student_strides"]) == ([2, 2, 2, 2, 2], [8, 1, 2, 2, 1])
    assert [found["memory"][name]["paper_peak"] for name in ("teacher", "student")] == [4014080, 802816]
    assert len([edit for edit in found["plan"]["edits"] if edit["edit"] == "red"]) == 5
    assert not any("lean" in name for profile in found["memory"].values() for name in profile)
    main(["memory", "wrn:16-2", "--json"])
    memory = json.loads(capsys.readouterr().out)
    assert (memory["image_size"], memory["memory"]["parameters"]) == (32, 691_674)


def test_plans_of_a_budget_and_of_a_batch(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "wrn:10-1", "--budget", "100KiB", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["chosen"]["reduction"], found["chosen"]["lean"]) == (2, None)
    assert {candidate["lean"] for candidate in found["candidates"]} == {None}
    main(["plan", "wrn:10-1"])
    assert "lean" not in capsys.readouterr().out
    main(["plan", "wrn:10-1", "--batch_size", "8", "--json"])
    training = json.loads(capsys.readouterr().out)["training"]
    assert training["tensor_peak"] > training["held"] > 0
    assert "tensor_peak_checkpointed" not in training


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["memory", "wrn:10-1", "--lean", "fast"], "--lean fast: no lean execution of a WideResNet: it is of UNets"),
        (["plan", "timm:resnet19"], "timm has no network resnet19"),
        (["plan", "timm:resnet18", "--image_size", "16"], "choose an image size that its strides divide"),
        (
            ["plan", "timm:resnet18", "--widen", "[1,1,1,1,2]"],
            "student.widen is set, which no student of a classifier has",
        ),
        (["plan", "wrn:16-2", "--reduction", "8"], "reduction 8 needs 3 strided levels, this teacher has 2"),
        (["plan", "timm:vit_tiny_patch16_224"], "so that none can lose its stride"),
        (
            ["plan", "timm:coatnet_pico_rw_224", "--reduction", "4"],
            "the student of timm:coatnet_pico_rw_224 does not run",
        ),
    ],
)
def test_refused(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    line = capsys.readouterr().err
    assert (ended.value.code, line.count("\n")) == (2, 1)
    assert words in line


def test_an_option_of_ddpms_is_refused() -> None:
    with pytest.raises(UserError, match=r"student\.prediction_type is set, which no student of a classifier has"):
        planned("wrn:10-1", 2, prediction_type="sample")
