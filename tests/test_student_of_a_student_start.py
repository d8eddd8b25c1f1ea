"""Where the first weights of a student's student come from: its teacher's, whatever stands around them."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from student_helpers import assert_blocks_meet, half_of, image, step
from torch.nn import functional as F

from ddpm_redistill.pipelines.red_block import REDBlock


@pytest.fixture(scope="module")
def half(tiny_config: dict[str, Any]) -> UNet2DModel:
    """Not to be changed by a test."""
    return half_of(tiny_config)


def plain(unet: UNet2DModel) -> dict[str, torch.Tensor]:
    """Without RED blocks, by the names of a network without them."""
    state = {name.replace(".layer.", "."): value for name, value in unet.state_dict().items()}
    return {name: value for name, value in state.items() if ".red_" not in name and not name.startswith("conv_out.")}


@pytest.mark.parametrize("placement", ["full", "outer", "none"])
def test_every_layer_that_both_have(half: UNet2DModel, placement: Any) -> None:
    student = step(half, red_placement=placement)[1]
    theirs = plain(half)
    different = [name for name, value in plain(student).items() if not torch.equal(value, theirs.pop(name))]
    assert different == ["conv_in.weight"]  # its values, and the head's: below
    assert theirs == {}


@pytest.mark.parametrize(("changes", "inherits"), [({}, True), ({"red_norm": "group"}, False)])
def test_red_blocks_of_the_same_place_and_kind(half: UNet2DModel, changes: dict[str, Any], inherits: bool) -> None:
    plan, student = step(half, **changes)
    theirs, start = half.state_dict(), REDBlock(8, plan.options.red_norm, plan.options.red_start).state_dict()
    assert len(plan.blocks) == 6
    for name, value in student.state_dict().items():
        if ".red_" in name:
            assert (name in theirs and torch.equal(value, theirs[name])) == inherits or name.endswith("tracked"), name
    if not inherits:
        weight = "gate_norm.bias"
        assert torch.equal(student.state_dict()[f"conv_in.red_out.{weight}"], start[weight])
    random = step(half, start="random")[1]
    assert not torch.equal(random.conv_in.red_out.gate_conv.weight, half.conv_in.red_out.gate_conv.weight)


@pytest.mark.parametrize("reduction", [2, 4])
def test_the_stem_averages_its_teachers(half: UNet2DModel, reduction: Any) -> None:
    """On any image: the mean of what the teacher's stem says at the pixels around a position's own."""
    student = step(half, reduction, red_placement="none")[1]
    mine, theirs = student.conv_in, half.conv_in.layer
    x, r = image(dict(half.config)), 2 * reduction
    assert (mine.kernel_size, mine.stride) == ((r + 1, r + 1), (r, r))
    with torch.no_grad():
        everywhere = F.conv2d(x, theirs.weight, theirs.bias, padding=1)
        around = r // 2 - 1
        means = F.avg_pool2d(everywhere[:, :, r - around :, r - around :], 2 * around + 1, stride=r)
        torch.testing.assert_close(mine(x)[:, :, 1:, 1:], means, rtol=1e-5, atol=1e-5)
        same = torch.full_like(x, 0.7)  # where the image does not change, it says the same
        torch.testing.assert_close(mine(same)[:, :, 1, 1], theirs(same)[:, :, 2, 2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduction", [2, 4])
def test_the_head_repeats_its_teachers(half: UNet2DModel, reduction: Any) -> None:
    """A position stands for a square of the teacher's, each with its own 2 x 2 pixels."""
    student = step(half, reduction, red_placement="none")[1]
    hidden = torch.randn(2, half.conv_out[0].in_channels, 4, 4)
    with torch.no_grad():
        theirs, mine = half.conv_out(hidden), student.conv_out(hidden)
    assert mine.shape[-1] == reduction * theirs.shape[-1] == 4 * 2 * reduction
    for row in range(4):
        for column in range(4):
            square = theirs[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            r = 2 * reduction
            own = mine[:, :, r * row : r * row + r, r * column : r * column + r]
            torch.testing.assert_close(own, square.tile(1, 1, reduction, reduction), rtol=1e-5, atol=1e-6)


def test_a_head_that_starts_at_zero(half: UNet2DModel) -> None:
    student = step(half, head_start="zero")[1]
    assert not student(image(dict(half.config)), 10).sample.any()


@pytest.mark.parametrize("factors", [[2, 2, 2, 2], [1, 1, 1, 2]])
def test_a_widened_student_of_a_student(half: UNet2DModel, factors: list[int]) -> None:
    """It computes what the unwidened one does: exactly where all levels are widened alike."""
    plan, wide = step(half, widen=factors)
    _, narrow = step(half)
    x = image(dict(half.config))
    assert_blocks_meet(half, plan, wide, x)
    with torch.no_grad():
        error = (wide(x, 10).sample - narrow(x, 10).sample).norm() / narrow(x, 10).sample.norm()
    assert error < (1e-4 if len(set(factors)) == 1 else 0.5)


def test_the_teacher_is_left_as_it_was(half: UNet2DModel) -> None:
    before = {name: value.clone() for name, value in half.state_dict().items()}
    student = step(half)[1]
    for value in student.state_dict().values():
        value.zero_()  # no tensor is shared
    assert all(torch.equal(value, before[name]) for name, value in half.state_dict().items())
    assert not half.training
