"""A student as a teacher: 2 then 2 is planned as 4 is and makes the same network, or is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES
from diffusers import UNet2DModel
from student_helpers import assert_blocks_meet, base_of, equal_states, half_of, image, step, trained

from ddpm_redistill import RedUNet2DModel, StudentConfig, StudentPlan, UserError
from ddpm_redistill.core.taps import Tap, reading
from ddpm_redistill.families.unet2d import resampling_table
from ddpm_redistill.pipelines.red_block import REDBlock
from ddpm_redistill.students.budget import plan_under_budget
from ddpm_redistill.students.derive import derive_student, student_on_meta
from ddpm_redistill.students.footprint import network_memory, planned_memory
from ddpm_redistill.students.plan import plan_student

FIVE_LEVELS = {
    "block_out_channels": (8, 8, 8, 16, 16),
    "down_block_types": ("DownBlock2D",) * 5,
    "up_block_types": ("UpBlock2D",) * 5,
}


@pytest.fixture(scope="module")
def half(tiny_config: dict[str, Any]) -> UNet2DModel:
    """Not to be changed by a test."""
    return half_of(tiny_config)


def paths(plan: StudentPlan) -> list[tuple]:
    return [(block.name, block.channels, block.resolution, block.resolution) for block in plan.blocks]


# --- the plan


@pytest.mark.parametrize("placement", ["full", "outer", "none"])
@pytest.mark.parametrize(("first", "second"), [(2, 2), (2, 4), (4, 2)])
def test_the_plan_is_the_direct_ones(tiny_config: dict[str, Any], placement: Any, first: Any, second: Any) -> None:
    """But for what it is matched to, which is the teacher that was given."""
    red: dict[str, Any] = {"red_placement": placement}
    direct = plan_student(tiny_config, StudentConfig(reduction=first * second, **red))
    through = plan_student(tiny_config, StudentConfig(reduction=first, **red))
    config = {**tiny_config, "_class_name": "RedUNet2DModel", "student_plan": through.to_dict()}
    plan = plan_student(config, StudentConfig(reduction=second, **red))
    assert (plan.reduction, plan.student_strides, plan.widen) == (first * second, direct.student_strides, direct.widen)
    assert plan.teacher_strides == through.student_strides
    assert paths(plan) == paths(direct)
    assert plan.options.reduction == second
    assert plan_student(config, plan.options) == plan
    assert StudentPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    words = f"feature maps {second}x smaller a side than its teacher's, a student's: {first * second}x in all"
    assert words in str(plan)


def test_three_times_two(tiny_config: dict[str, Any]) -> None:
    config, plan = {**tiny_config, **FIVE_LEVELS, "sample_size": 16}, None
    strides = [(2, 2, 2, 2, 1), (4, 2, 2, 1, 1), (8, 2, 1, 1, 1)]
    for expected in strides:
        plan = plan_student(config)
        assert plan.student_strides == expected
        config = {**config, "student_plan": plan.to_dict()}
    with pytest.raises(UserError, match=r"reduction 2 of a student .* is 16 in all, 8 is the most: it cannot be red"):
        plan_student(config)


def test_what_it_is_matched_to(half: UNet2DModel) -> None:
    """The map that the teacher's layer reads, behind its RED block, and the one that leaves its last RED block."""
    plan, _ = step(half)
    assert [(block.teacher_layer, block.teacher_side) for block in plan.blocks] == [
        ("down_blocks.0.downsamplers.0", "output"),
        ("down_blocks.1.downsamplers.0.layer", "input"),
        ("down_blocks.1.downsamplers.0", "output"),
        ("up_blocks.1.upsamplers.0.layer", "input"),
        ("up_blocks.1.upsamplers.0", "output"),
        ("up_blocks.2.upsamplers.0.layer", "input"),
    ]
    matched = [Tap(block.teacher_layer, block.teacher_side) for block in plan.blocks]  # type: ignore[arg-type]
    blocks = [
        Tap(f"{tap.path.removesuffix('.layer')}.red_{'in' if tap.side == 'input' else 'out'}", "output")
        for tap in matched
    ]
    with torch.no_grad(), reading(half, [*matched, *blocks]) as reader:
        maps = reader.run(half, image(dict(half.config)), 10)[1]
        for tap, block in zip(matched, blocks, strict=True):
            assert isinstance(half.get_submodule(block.path), REDBlock)
            assert torch.equal(maps[tap], maps[block])
    without, _ = step(step(UNet2DModel(**base_of(half)), red_placement="none")[1])
    assert not any(block.teacher_layer.endswith(".layer") for block in without.blocks)


# --- the network


@pytest.mark.parametrize("name", ["growing channels", "attention everywhere", "padding 0", "resnet blocks"])
def test_other_architectures(tiny_config: dict[str, Any], name: str, tmp_path: Path) -> None:
    architecture = {**tiny_config, **ARCHITECTURES[name]}
    torch.manual_seed(0)
    teacher = trained(step(UNet2DModel(**architecture).eval())[1])
    plan, student = step(teacher)
    x = image(architecture)
    assert_blocks_meet(teacher, plan, student, x)
    assert [row.stride for row in resampling_table(dict(student.config))][:1] == [4]
    student.save_pretrained(tmp_path)
    loaded = RedUNet2DModel.from_pretrained(tmp_path).eval()
    assert StudentPlan.from_dict(loaded.config.student_plan) == plan
    assert all(equal_states(loaded, student).values())
    with torch.no_grad():
        torch.testing.assert_close(loaded(x, 10).sample, student(x, 10).sample, rtol=0, atol=1e-5)
    kept = {key: value for key, value in base_of(student).items() if key != "sample_size"}
    assert kept == {key: value for key, value in base_of(teacher).items() if key != "sample_size"}


def test_memory_is_the_direct_ones(tiny_config: dict[str, Any]) -> None:
    """Of the teacher, the x2 student's own; of the student, that of one made in one step."""
    config = {**tiny_config, "student_plan": plan_student(tiny_config).to_dict()}
    found = planned_memory(config, plan_student(config))
    for name, reduction in (("teacher", 2), ("student", 4)):
        plan = plan_student(tiny_config, StudentConfig(reduction=reduction))  # type: ignore[arg-type]
        direct = network_memory(student_on_meta(tiny_config, plan))
        assert (found[name].tensor_peak, found[name].weights) == (direct.tensor_peak, direct.weights)
        assert found[name].paper_peak == direct.paper_peak


def test_under_a_budget(half: UNet2DModel) -> None:
    """Reductions are the options to give: from this teacher."""
    peaks = [network_memory(unet).tensor_peak for unet in (half, step(half)[1])]
    with pytest.raises(UserError, match="the largest that it can take is 4"):
        plan_under_budget(dict(half.config), peaks[0], reduction=8)
    whole = plan_under_budget(dict(half.config), peaks[0])
    assert whole.chosen
    assert (whole.chosen.reduction, whole.plan, whole.chosen.over) == (1, None, 0)
    found = plan_under_budget(dict(half.config), peaks[1], reduction=2)
    assert found.chosen
    assert found.plan
    assert (found.chosen.reduction, found.plan.reduction, found.chosen.activations) == (2, 4, peaks[1])


# --- refused


REFUSED = {
    "more than is left": (2, 8, "needs 3 strided levels, .* has 2 left: the largest that it can take is 4"),
    "more than is left of x4": (4, 4, "needs 2 strided levels, .* has 1 left: the largest that it can take is 2"),
    "nothing is left": (8, 2, "a student 8x smaller a side already, has 0 left: it cannot be reduced further"),
    "no reduction": (2, 3, "reduction 3 is not supported: choose 2, 4 or 8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tiny_config: dict[str, Any], case: str) -> None:
    first, second, reason = REFUSED[case]
    plan = plan_student(tiny_config, StudentConfig(reduction=first))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=reason) as raised:
        plan_student({**tiny_config, "student_plan": plan.to_dict()}, StudentConfig(reduction=second))  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_past_8_with_levels_left(tiny_config: dict[str, Any]) -> None:
    config = {**tiny_config, **FIVE_LEVELS}
    config["student_plan"] = plan_student(config, StudentConfig(reduction=4)).to_dict()
    with pytest.raises(UserError, match=r"reduction 4 of a student .* is 16 in all, 8 is the most: .* can take is 2"):
        plan_student(config, StudentConfig(reduction=4))


def test_a_widened_student_is_no_teacher(tiny_config: dict[str, Any]) -> None:
    plan = plan_student(tiny_config, StudentConfig(widen=[1, 1, 1, 2]))
    config = {**tiny_config, "student_plan": plan.to_dict()}
    for planned in (plan_student, lambda config: plan_under_budget(config, 1)):
        with pytest.raises(UserError, match="is a student that is widened: give the teacher that it was made from"):
            planned(config)


def test_a_plan_of_another_teacher(half: UNet2DModel, tiny_config: dict[str, Any]) -> None:
    config = base_of(half)
    direct = plan_student(config, StudentConfig(reduction=4, red_placement="none"))
    with pytest.raises(UserError, match=r"it is of strides \[1, 2, 2, 2\], not \[2, 2, 2, 1\]"):
        derive_student(half, direct)
    with pytest.raises(UserError, match=r"it is of strides \[2, 2, 2, 1\], not \[1, 2, 2, 2\]"):
        derive_student(UNet2DModel(**config), step(half)[0])
