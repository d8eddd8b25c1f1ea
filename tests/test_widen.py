"""Widened students: their shapes, that they open as they were saved, and that they start as the unwidened one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from student_helpers import old_plan
from torch import nn

from ddpm_redistill import RedUNet2DModel, StudentConfig, StudentPlan, UserError
from ddpm_redistill.core.taps import Tap, reading
from ddpm_redistill.families.unet2d_widening import _Widening
from ddpm_redistill.pipelines.edits import Width
from ddpm_redistill.students.derive import build_student, derive_student
from ddpm_redistill.students.footprint import network_memory, network_of
from ddpm_redistill.students.plan import plan_student


def random_teacher(config: dict[str, Any]) -> UNet2DModel:
    """Biases and norms too: at their start they are 0 and 1, and would hide a mistake."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = UNet2DModel(**config).eval()
        for parameter in teacher.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return teacher


def derived(teacher: UNet2DModel, widen: list[int] | None, **student: Any) -> RedUNet2DModel:
    plan = plan_student(
        dict(teacher.config), StudentConfig(**{"red_start": "paper", "head_start": "teacher", **student}, widen=widen)
    )
    return derive_student(teacher, plan, seed=1)


def outputs(unet: UNet2DModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, unet.config.in_channels, 16, 16, generator=generator)
    with torch.no_grad():
        return unet(x, torch.tensor([10, 700])).sample


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


def mixed(widen: list[int], layers: int) -> list[tuple[str, tuple[int, int]]]:
    """The resnets that read a concatenation of unequally widened parts, and the levels of its two parts."""
    last, found = len(widen) - 1, []
    for level, factor in enumerate(widen):
        path = f"up_blocks.{last - level}.resnets"
        if level < last and widen[level + 1] != factor:
            found.append((f"{path}.0", (level + 1, level)))
        if level and widen[level - 1] != factor:
            found.append((f"{path}.{layers}", (level, level - 1)))
    return found


class OfOneReplica(nn.Module):
    """The unwidened student's norm of a concatenation: of one replica of each channel, then replicated."""

    def __init__(self, norm: nn.Module, parts: list[tuple[int, int]]):
        super().__init__()
        self.norm, first, copies, wide, narrow = norm, [], [], 0, 0
        for channels, factor in parts:
            first += [wide + factor * channel for channel in range(channels)]
            copies += [narrow + channel for channel in range(channels) for _ in range(factor)]
            wide, narrow = wide + channels * factor, narrow + channels
        self.first, self.copies = first, copies

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x[:, self.first])[:, self.copies]


# --- the plan and the network


@pytest.mark.parametrize("placement", ["full", "outer", "none"])
@pytest.mark.parametrize(("reduction", "widen"), [(2, [1, 1, 2, 2]), (4, [2, 1, 3, 2])])
def test_shapes_and_opening(
    tiny_config: dict[str, Any], tmp_path: Path, reduction: Any, widen: list[int], placement: Any
) -> None:
    teacher = random_teacher(tiny_config)
    student = derived(teacher, widen, reduction=reduction, red_placement=placement)
    widths = [8 * widen[0], 8 * widen[1], 16 * widen[2], 16 * widen[3]]
    assert [block.resnets[-1].out_channels for block in student.down_blocks] == widths
    assert [block.resnets[-1].out_channels for block in student.up_blocks] == widths[::-1]
    assert student.time_embedding.linear_1.in_features == 8
    assert student.time_embedding.linear_2.out_features == 32  # the teacher's
    plan = StudentPlan.from_dict(student.config.student_plan)
    assert plan.widen == tuple(widen)
    taps = [Tap(block.name, "output") for block in plan.blocks]
    with torch.no_grad(), reading(student, taps) as reader:
        maps = reader.run(student, torch.zeros(1, 1, 16, 16), 10)[1]
        assert [maps[tap].shape[1] for tap in taps] == [block.channels for block in plan.blocks]
    if placement == "full" and reduction == 2:
        assert [block.channels for block in plan.blocks] == [8, 8, 8, 8, 8, 32, 32, 8, 8, 8]

    student.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["block_out_channels"] == [8, 8, 16, 16]
    assert config["student_plan"]["options"]["widen"] == widen
    opened = [RedUNet2DModel.from_pretrained(tmp_path).eval(), build_student(config, plan).eval()]
    opened[1].load_state_dict(student.state_dict())
    for unet in opened:
        assert torch.equal(outputs(unet), outputs(student))
    assert network_memory(network_of(config)).weights == network_memory(student).weights


@pytest.mark.parametrize("widen", [None, [1, 1, 1, 1]])
def test_no_widening_is_the_student_as_it_was(tiny_config: dict[str, Any], widen: list[int] | None) -> None:
    plan = plan_student(tiny_config, StudentConfig(widen=widen))
    assert plan == plan_student(tiny_config)
    assert not plan.widens
    assert "channels [" not in str(plan)
    older = {key: value for key, value in old_plan(plan).items() if key != "widen"}
    assert StudentPlan.from_dict(older) == StudentPlan.from_dict(old_plan(plan)) == plan
    shapes = [
        {name: value.shape for name, value in RedUNet2DModel(**tiny_config, student_plan=made).state_dict().items()}
        for made in (older, plan.to_dict())
    ]
    assert shapes[0] == shapes[1]


def test_the_plan_survives_json_and_says_its_widths(tiny_config: dict[str, Any]) -> None:
    plan = plan_student(tiny_config, StudentConfig(widen=[1, 1, 2, 4]))
    assert StudentPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert plan.options.widen == [1, 1, 2, 4]
    assert "channels [1, 1, 2, 4] times the teacher's, level by level" in str(plan)


@pytest.mark.parametrize("widen", [[1, 2], [1] * 5, [1, 1, 1, 0], [1, 1, 1, -2], [1, 1, 1, 17], [1, 1, 1, 1.5], []])
def test_refused_factors(tiny_config: dict[str, Any], widen: list[int]) -> None:
    if not widen:  # a mistake as well, not "as the recipe says"
        with pytest.raises(UserError, match=r"student\.widen is \[\]"):
            plan_student(tiny_config, StudentConfig(widen=widen))
        return
    with pytest.raises(UserError, match="give 4 whole numbers from 1 to 16, one for each level") as raised:
        plan_student(tiny_config, StudentConfig(widen=widen))
    assert "\n" not in str(raised.value)


def test_a_plan_with_factors_of_another_depth(tiny_config: dict[str, Any]) -> None:
    plan = plan_student(tiny_config)
    with pytest.raises(UserError, match="not a student plan: widen has 2 factors for 4 levels"):
        StudentPlan.from_dict({**old_plan(plan), "widen": [1, 2]})
    wide = replace(plan, edits=(Width(level=4, factor=2), *plan.edits))
    with pytest.raises(UserError, match="does not fit this teacher: level 5 is to be widened, of 4"):
        build_student(tiny_config, wide)


# --- the start


def test_all_levels_alike_is_exact(architecture: dict[str, Any]) -> None:
    teacher = random_teacher(architecture)
    narrow, wide = derived(teacher, None), derived(teacher, [2] * len(architecture["block_out_channels"]))
    assert wide.num_parameters() > 2 * narrow.num_parameters()
    assert relative_error(outputs(wide), outputs(narrow)) < 1e-5


@pytest.mark.parametrize("reduction", [2, 4])
@pytest.mark.parametrize("placement", ["full", "outer", "none"])
def test_all_levels_alike_at_any_reduction_and_placement(
    tiny_config: dict[str, Any], reduction: Any, placement: Any
) -> None:
    teacher = random_teacher(tiny_config)
    narrow, wide = (
        derived(teacher, widen, reduction=reduction, red_placement=placement, red_start="identity")
        for widen in (None, [2] * 4)
    )
    assert relative_error(outputs(wide), outputs(narrow)) < 1e-5


def test_unequal_levels_are_exact_but_for_two_norms(architecture: dict[str, Any]) -> None:
    """With the norms of the mixed concatenations as the unwidened student has them, nothing is left of the error."""
    teacher = random_teacher(architecture)
    channels = list(architecture["block_out_channels"])
    widen = [1] * (len(channels) - 2) + [3, 3]
    narrow, wide = derived(teacher, None), derived(teacher, widen)
    expected = outputs(narrow)
    assert 1e-3 < relative_error(outputs(wide), expected) < 1
    places = mixed(widen, architecture["layers_per_block"])
    assert len(places) == 2
    for path, levels in places:
        parts = [(channels[level], widen[level]) for level in levels]
        wide.get_submodule(path).norm1 = OfOneReplica(narrow.get_submodule(path).norm1, parts)
    assert relative_error(outputs(wide), expected) < 1e-5


def test_a_shortcut_between_levels_that_became_equally_wide(tiny_config: dict[str, Any]) -> None:
    """8 -> 16 channels is a projection in the teacher; 16 -> 16 would be none."""
    teacher = random_teacher(tiny_config)
    wide = derived(teacher, [2, 2, 1, 1])
    shortcut = wide.down_blocks[2].resnets[0].conv_shortcut
    given = teacher.down_blocks[2].resnets[0].conv_shortcut
    assert shortcut.weight.shape == (16, 16, 1, 1)
    torch.testing.assert_close(shortcut.weight.view(16, 8, 2).sum(2), given.weight[:, :, 0, 0])
    assert torch.equal(shortcut.bias, given.bias)


def test_shares_add_up_and_are_uneven(tiny_teacher: UNet2DModel) -> None:
    student = derived(tiny_teacher, None)
    copies = torch.tensor([0, 0, 1, 2, 2, 2])
    shares = _Widening(student, student, torch.Generator().manual_seed(0))._shares(1000, copies)
    assert torch.equal(shares[:, 2], torch.ones(1000))
    for replicas in (shares[:, :2], shares[:, 3:]):
        torch.testing.assert_close(replicas.sum(1), torch.ones(1000))
        # z less its mean over k replicas has a standard deviation of sqrt(1 - 1/k)
        count = replicas.shape[1]
        assert float(replicas.std()) == pytest.approx(0.5 / count * (1 - 1 / count) ** 0.5, rel=0.1)


def test_seeded_and_the_teacher_untouched(tiny_config: dict[str, Any]) -> None:
    teacher = random_teacher(tiny_config)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    plan = plan_student(dict(teacher.config), StudentConfig(widen=[1, 1, 2, 2]))
    one, same, other = (derive_student(teacher, plan, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    name = "mid_block.resnets.0.conv1.weight"
    assert not torch.equal(one[name], other[name])
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_replicas_part_under_training(tiny_config: dict[str, Any]) -> None:
    student = derived(random_teacher(tiny_config), [2] * 4, red_start="identity").train()

    def apart() -> float:
        """Between the two replicas of each channel in the middle, relative."""
        maps: list[torch.Tensor] = []
        handle = student.mid_block.resnets[0].conv1.register_forward_hook(lambda _, __, output: maps.append(output))
        student.eval()(x, 10)
        student.train()
        handle.remove()
        pairs = maps[0].detach().unflatten(1, (-1, 2))
        return float((pairs[:, :, 0] - pairs[:, :, 1]).norm() / pairs.norm())

    x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert apart() < 1e-5
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    for _ in range(3):
        student(x, 10).sample.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert apart() > 1e-3


def test_a_random_start(tiny_config: dict[str, Any]) -> None:
    student = derived(random_teacher(tiny_config), [1, 1, 2, 2], start="random")
    weight = student.mid_block.resnets[0].conv1.weight
    assert weight.shape == (32, 32, 3, 3)
    assert torch.unique(weight.detach().flatten(1), dim=0).shape[0] == 32
    assert outputs(student).isfinite().all()


def test_heads_of_a_fixed_size(tiny_config: dict[str, Any]) -> None:
    """In the middle alone: two heads of 7 of its 16 channels; 32 channels make four of them, 64 make nine."""
    levels = {"down_block_types": ["DownBlock2D"] * 4, "up_block_types": ["UpBlock2D"] * 4, "attention_head_dim": 7}
    teacher = random_teacher({**tiny_config, **levels})
    assert relative_error(outputs(derived(teacher, [2] * 4)), outputs(derived(teacher, None))) < 1e-5
    with pytest.raises(UserError, match=r"2 attention heads of 7 channels cannot be replicated to 9"):
        derived(teacher, [1, 1, 1, 4])
