"""The student: which layers change, which maps its RED blocks meet, where its first weights come from."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from memory_helpers import CELEBAHQ
from student_helpers import assert_blocks_meet, equal_states, image
from torch.nn import functional as F

from ddpm_redistill import RedUNet2DModel, StudentConfig, StudentPlan, UserError
from ddpm_redistill.core.memory import profile_memory
from ddpm_redistill.families.unet2d import network_on_meta
from ddpm_redistill.students.derive import build_student, derive_student
from ddpm_redistill.students.footprint import planned_memory
from ddpm_redistill.students.plan import plan_student

CIFAR10_BLOCKS = [
    ("conv_in.red_out", "down_blocks.0.downsamplers.0", "output", 16),
    ("down_blocks.0.downsamplers.0.red_in", "down_blocks.1.downsamplers.0", "input", 16),
    ("down_blocks.0.downsamplers.0.red_out", "down_blocks.1.downsamplers.0", "output", 8),
    ("down_blocks.1.downsamplers.0.red_in", "down_blocks.2.downsamplers.0", "input", 8),
    ("down_blocks.1.downsamplers.0.red_out", "down_blocks.2.downsamplers.0", "output", 4),
    ("up_blocks.1.upsamplers.0.red_in", "up_blocks.0.upsamplers.0", "input", 4),
    ("up_blocks.1.upsamplers.0.red_out", "up_blocks.0.upsamplers.0", "output", 8),
    ("up_blocks.2.upsamplers.0.red_in", "up_blocks.1.upsamplers.0", "input", 8),
    ("up_blocks.2.upsamplers.0.red_out", "up_blocks.1.upsamplers.0", "output", 16),
    ("conv_norm_out.red_in", "up_blocks.2.upsamplers.0", "input", 16),
]
REFUSED = {
    "class embedding of timesteps": ({"class_embed_type": "timestep"}, "class_embed_type is timestep"),
    "fourier": ({"time_embedding_type": "fourier"}, "Fourier time embedding"),
    "skip down": ({"down_block_types": ["SkipDownBlock2D", *["DownBlock2D"] * 3]}, "has SkipDownBlock2D"),
    "attention skip up": ({"up_block_types": ["AttnSkipUpBlock2D", *["UpBlock2D"] * 3]}, "has AttnSkipUpBlock2D"),
    "k blocks": ({"down_block_types": ["KDownBlock2D"] * 4}, "has KDownBlock2D"),
    "learned variance": ({"out_channels": 2}, "1 channels in, 2 out.*no learned variance"),
    "size does not divide": ({"sample_size": 20}, "image size 20 does not divide by 8"),
    "rectangular": ({"sample_size": [16, 32]}, r"sample_size is \[16, 32\]"),
    "no size": ({"sample_size": None}, "has no sample_size: give --image_size"),
    "no network at all": ({"block_out_channels": (8, 8)}, "diffusers cannot build"),
    "groups do not divide": ({"norm_num_groups": 5}, "diffusers cannot build"),
}


def make(config: dict[str, Any], **student: Any) -> tuple[UNet2DModel, StudentPlan, RedUNet2DModel]:
    torch.manual_seed(0)
    teacher = UNet2DModel(**config).eval()
    plan = plan_student(
        dict(teacher.config), StudentConfig(**{"red_placement": "full", "head_start": "teacher", **student})
    )
    return teacher, plan, derive_student(teacher, plan).eval()


@pytest.mark.parametrize(
    ("placement", "expected"), [("full", CIFAR10_BLOCKS), ("outer", CIFAR10_BLOCKS[::9]), ("none", [])]
)
def test_cifar10_plan(cifar10_config: dict[str, Any], placement: Any, expected: list) -> None:
    plan = plan_student(cifar10_config, StudentConfig(red_placement=placement))
    assert plan.teacher_strides == (1, 2, 2, 2)
    assert plan.student_strides == (2, 2, 2, 1)
    found = [(block.name, block.teacher_layer, block.teacher_side, block.resolution) for block in plan.blocks]
    assert found == expected


@pytest.mark.parametrize(
    ("config", "reduction", "strides", "blocks"),
    [
        (CELEBAHQ, 2, (2, 2, 2, 2, 2, 1), 18),
        (CELEBAHQ, 4, (4, 2, 2, 2, 1, 1), 14),
        (CELEBAHQ, 8, (8, 2, 2, 1, 1, 1), 10),
        ({}, 8, (8, 1, 1, 1), 2),  # every level in the stem
    ],
)
def test_reductions_on_the_built_network(
    tiny_config: dict[str, Any], config: dict[str, Any], reduction: Any, strides: tuple, blocks: int
) -> None:
    config = {**tiny_config, **config}
    plan = plan_student(config, StudentConfig(reduction=reduction, red_placement="full"))
    assert plan.teacher_strides == (1, *[2] * (len(strides) - 1))
    assert plan.student_strides == strides
    assert len(plan.blocks) == blocks
    with torch.device("meta"):
        student = build_student(config, plan)
    assert_blocks_meet(network_on_meta(config), plan, student, image(config, "meta", batch=1))


def test_plan_says_itself_and_survives_json(cifar10_config: dict[str, Any]) -> None:
    plan = plan_student(cifar10_config, StudentConfig(red_placement="full"))
    assert StudentPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    lines = str(plan).splitlines()
    assert "[1, 2, 2, 2] -> [2, 2, 2, 1]" in lines[0]
    assert len([line for line in lines if "<->" in line]) == 10
    for broken in ({**plan.to_dict(), "surplus": 1}, {"blocks": []}):
        with pytest.raises(UserError, match="not a student plan"):
            StudentPlan.from_dict(broken)


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tiny_config: dict[str, Any], case: str) -> None:
    changes, reason = REFUSED[case]
    with pytest.raises(UserError, match=reason) as raised:
        plan_student({**tiny_config, **changes})
    assert "\n" not in str(raised.value)


def test_refused_reductions(tiny_config: dict[str, Any]) -> None:
    levels = {"down_block_types": ["DownBlock2D"] * 3, "up_block_types": ["UpBlock2D"] * 3}
    with pytest.raises(UserError, match=r"reduction 8 needs 3 strided levels, this teacher has 2: .* is 4"):
        plan_student({**tiny_config, **levels, "block_out_channels": (8, 8, 16)}, StudentConfig(reduction=8))
    with pytest.raises(UserError, match="reduction 3 is not supported"):
        plan_student(tiny_config, StudentConfig(reduction=3))  # type: ignore[arg-type]


@pytest.mark.parametrize("reduction", [2, 4])
def test_every_architecture(architecture: dict[str, Any], tmp_path: Path, reduction: Any) -> None:
    teacher, plan, student = make(architecture, reduction=reduction)
    x = image(architecture)
    assert_blocks_meet(teacher, plan, student, x)
    student.save_pretrained(tmp_path)
    loaded = RedUNet2DModel.from_pretrained(tmp_path).eval()
    saved, read = (json.loads(unet.to_json_string()) for unet in (student, loaded))
    assert read == {**saved, "_name_or_path": str(tmp_path)}
    assert StudentPlan.from_dict(loaded.config.student_plan) == plan
    with torch.no_grad():
        torch.testing.assert_close(loaded(x, 10).sample, student(x, 10).sample, rtol=0, atol=1e-5)


def test_a_student_without_a_plan(tiny_config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs a student_plan"):
        RedUNet2DModel(**tiny_config)


@pytest.mark.parametrize(("placement", "red_peak"), [("full", 786_432), ("outer", 393_216), ("none", 0)])
def test_cifar10_memory(cifar10_config: dict[str, Any], placement: Any, red_peak: int) -> None:
    memory = planned_memory(cifar10_config, plan_student(cifar10_config, StudentConfig(red_placement=placement)))
    assert memory["teacher"].paper_peak == 3_670_528
    assert memory["student"].paper_peak == 918_016
    assert memory["student"].red_paper_peak == red_peak
    assert memory["teacher"].tensor_peak >= 3.9 * memory["student"].tensor_peak


def test_planned_memory_is_the_real_one(tiny_config: dict[str, Any]) -> None:
    _, plan, student = make(tiny_config)
    planned = planned_memory(tiny_config, plan)["student"]
    real = profile_memory(student, image(tiny_config, batch=1), 0, fake=False)
    assert real.tensor_peak == planned.tensor_peak


def test_warm_start_copies_every_shared_tensor(tiny_config: dict[str, Any]) -> None:
    teacher, plan, student = make(tiny_config)
    wrapped = {block.name.rsplit(".", 1)[0] for block in plan.blocks}
    state = student.state_dict()
    for name, value in teacher.state_dict().items():
        around = next((path for path in wrapped if name.startswith(f"{path}.")), None)
        mine = name.replace(around, f"{around}.layer", 1) if around else name
        if name.startswith("conv_out."):  # its values: the next test
            del state[name.replace("conv_out.", "conv_out.0.")]
        else:
            assert torch.equal(state.pop(mine), value), name
    blocks = {name.rsplit(".", 2)[0] for name in state}
    assert blocks == {block.name for block in plan.blocks}  # nothing is left but the RED blocks


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_stem_and_head_start(tiny_config: dict[str, Any], reduction: Any) -> None:
    config = {**tiny_config, "in_channels": 3, "out_channels": 3}
    teacher, _, student = make(config, reduction=reduction, red_placement="none")
    mine, theirs = student.conv_in.weight, teacher.conv_in.weight
    assert mine.shape[-2:] == (reduction + 1, reduction + 1)
    torch.testing.assert_close(mine.sum((2, 3)), theirs.sum((2, 3)), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        x, hidden = image(config), torch.randn(2, teacher.conv_out.in_channels, 4, 4)
        stem, full = student.conv_in(x), teacher.conv_in(x)
        half = reduction // 2 - 1  # a position is the mean of the teacher's around it; the border sees padding
        means = F.avg_pool2d(full[:, :, reduction - half :, reduction - half :], 2 * half + 1, stride=reduction)
        torch.testing.assert_close(stem[:, :, 1:, 1:], means, rtol=1e-5, atol=1e-5)
        repeated = teacher.conv_out(hidden).repeat_interleave(reduction, 2).repeat_interleave(reduction, 3)
        torch.testing.assert_close(student.conv_out(hidden), repeated, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("placement", "drawn"), [("none", False), ("full", True)])
def test_warm_start_draws_red_blocks_only(tiny_teacher: UNet2DModel, placement: Any, drawn: bool) -> None:
    plan = plan_student(dict(tiny_teacher.config), StudentConfig(red_placement=placement))
    one, same, other = (derive_student(tiny_teacher, plan, seed=seed) for seed in (1, 1, 2))
    assert all(equal_states(one, same).values())
    differing = {name for name, equal in equal_states(one, other).items() if not equal}
    assert bool(differing) == drawn
    assert all(".red_in." in name or ".red_out." in name for name in differing)


@pytest.mark.parametrize("reduction", [2, 4])
def test_a_head_that_starts_at_zero(tiny_config: dict[str, Any], reduction: int) -> None:
    _, _, student = make(tiny_config, reduction=reduction, head_start="zero")
    _, _, other = make(tiny_config, reduction=reduction, head_start="teacher")
    differing = {name for name, equal in equal_states(student, other).items() if not equal}
    assert differing
    assert all(name.startswith("conv_out.") for name in differing)
    output = student(image(tiny_config), torch.tensor([10, 700])).sample
    assert output.shape == image(tiny_config).shape
    assert not output.any()


def test_random_start(tiny_teacher: UNet2DModel) -> None:
    plans = [plan_student(dict(tiny_teacher.config), StudentConfig(start=start)) for start in ("random", "teacher")]
    one, same, other = (derive_student(tiny_teacher, plans[0], seed=seed) for seed in (1, 1, 2))
    assert all(equal_states(one, same).values())
    warm = derive_student(tiny_teacher, plans[1], seed=1)
    for different in (equal_states(one, other), equal_states(one, warm)):
        assert not different["conv_in.layer.weight"]
        assert not different["mid_block.resnets.0.conv1.weight"]


def test_derive_leaves_the_teacher_and_the_global_generator_alone(tiny_teacher: UNet2DModel) -> None:
    before = copy.deepcopy(tiny_teacher)
    plan, state = plan_student(dict(tiny_teacher.config)), torch.random.get_rng_state()
    student = derive_student(tiny_teacher, plan)
    assert torch.equal(torch.random.get_rng_state(), state)
    for parameter in student.parameters():
        parameter.data.zero_()  # no weight is shared
    assert all(equal_states(before, tiny_teacher).values())
    assert not tiny_teacher.training


def test_a_plan_of_another_teacher(tiny_config: dict[str, Any], tiny_teacher: UNet2DModel) -> None:
    levels = {"down_block_types": ["DownBlock2D"] * 5, "up_block_types": ["UpBlock2D"] * 5}
    plan = plan_student({**tiny_config, **levels, "block_out_channels": (8,) * 5})
    with pytest.raises(UserError, match="the plan does not fit this teacher"):
        derive_student(tiny_teacher, plan)


@pytest.mark.parametrize(("start", "placement"), [("teacher", "full"), ("random", "full"), ("random", "outer")])
def test_a_plan_of_a_teacher_of_other_widths(
    tiny_config: dict[str, Any], tiny_teacher: UNet2DModel, start: Any, placement: Any
) -> None:
    wider = {**tiny_config, "block_out_channels": (16, 16, 32, 32)}
    plan = plan_student(wider, StudentConfig(start=start, red_placement=placement))
    with pytest.raises(UserError, match=r"does not fit this teacher: conv_in.red_out is planned for 16 channels"):
        derive_student(tiny_teacher, plan)
