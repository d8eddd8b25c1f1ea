"""The warm start of cheap convolutions: exact where a kernel has the form, else the best; students that start so."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from student_helpers import trained
from test_classifier_students import made
from torch import nn

from ddpm_redistill import StudentConfig, derive_student, plan_student
from ddpm_redistill.pipelines.cheap import CheapConv2d, parse_kind
from ddpm_redistill.students.cheap_start import factors, start_as


def product(down: torch.Tensor | None, kernel: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """(C_out, C_in, k, k), from the response to an impulse at each input channel."""
    groups = len(kernel) // kernel.shape[1]
    size = kernel.shape[-1]
    channels = down.shape[1] if down is not None else len(kernel)
    impulses = torch.zeros(channels, channels, 2 * size - 1, 2 * size - 1)
    impulses[range(channels), range(channels), size - 1, size - 1] = 1
    if down is not None:
        impulses = nn.functional.conv2d(impulses, down[:, :, None, None])
    made = nn.functional.conv2d(nn.functional.conv2d(impulses, kernel, groups=groups), up[:, :, None, None])
    return made.flip(2, 3).transpose(0, 1)


def of_form(in_channels: int, out_channels: int, name: str) -> torch.Tensor:
    """A kernel that is such a product of random numbers."""
    kind = parse_kind(name)
    inner, groups = kind.sizes(in_channels, out_channels)
    down = torch.randn(inner, in_channels) if kind.bottleneck > 1 else None
    return product(down, torch.randn(inner, inner // groups, 3, 3), torch.randn(out_channels, inner))


def factored(weight: torch.Tensor, name: str) -> torch.Tensor:
    kind = parse_kind(name)
    return product(*factors(weight, *kind.sizes(weight.shape[1], len(weight)), kind.bottleneck > 1))


@pytest.mark.parametrize("shape", [(12, 24), (24, 12), (8, 8)])
@pytest.mark.parametrize("name", ["DConv", "DConvG4", "DConvA2", "ConvB2", "ConvB4"])
def test_exact_where_the_kernel_has_the_form(name: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = of_form(*shape, name)
    torch.testing.assert_close(factored(weight, name), weight, rtol=1e-4, atol=1e-4)


def test_exact_where_the_bottleneck_is_of_the_groups() -> None:
    """With groups too where the directions that the groups read are the kernel's singular ones."""
    torch.manual_seed(0)
    down = torch.linalg.qr(torch.randn(12, 12))[0] * torch.linspace(4, 1, 12)[:, None]
    weight = product(down, nn.functional.normalize(torch.randn(12, 9), dim=1).view(12, 1, 3, 3), torch.eye(24)[:, :12])
    torch.testing.assert_close(factored(weight, "DConvB2"), weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "groups"), [("DConv", 8), ("DConvG4", 2)])
def test_the_best_grouped_product(name: str, groups: int) -> None:
    """What is lost is the singular values that are left out, and gradient descent finds nothing better."""
    torch.manual_seed(0)
    weight = torch.randn(16, 8, 3, 3)
    lost = (factored(weight, name) - weight).square().sum()
    values = [torch.linalg.svdvals(part.flatten(1))[8 // groups :] for part in weight.chunk(groups, 1)]
    torch.testing.assert_close(lost, sum(each.square().sum() for each in values))
    kernel, up = torch.randn(8, 8 // groups, 3, 3).requires_grad_(), torch.randn(16, 8).requires_grad_()
    optimizer = torch.optim.Adam([kernel, up], 0.05)
    for _ in range(300):
        error = (product(None, kernel, up) - weight).square().sum()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert lost <= error * 1.0001


def test_a_bottleneck_is_within_its_bound() -> None:
    """At least as much is lost as either rank alone loses, and at most both together."""
    torch.manual_seed(0)
    weight = torch.randn(16, 12, 3, 3)
    lost = (factored(weight, "ConvB2") - weight).square().sum()
    by_rank = [
        torch.linalg.svdvals(flat)[8:].square().sum() for flat in (weight.flatten(1), weight.transpose(0, 1).flatten(1))
    ]
    assert max(by_rank) <= lost <= sum(by_rank)
    narrow = torch.randn(32, 12, 3, 3)  # no more input channels than the bottleneck has: the best of its rank
    best = torch.linalg.svdvals(narrow.flatten(1))[16:].square().sum()
    torch.testing.assert_close((factored(narrow, "ConvB2") - narrow).square().sum(), best)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("name", "limit"), [("DConv", 0.25), ("DConvG4", 0.25), ("ConvB2", 0.5)])
def test_a_block_does_nearly_what_the_convolution_did(name: str, limit: float, norm: str) -> None:
    """On activations of standard normal values, away from the border; in training as in evaluation. A random block has
    an error of 1 or more."""
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 32, 3, padding=1, bias=norm == "group")
    conv.weight.data = of_form(16, 32, name) / 10
    block = CheapConv2d(16, 32, parse_kind(name), norm=norm, bias=norm == "group")
    x = torch.randn(8, 16, 12, 12)
    x = nn.functional.relu(x) if norm == "batch" else nn.functional.silu(x)

    def error() -> torch.Tensor:
        with torch.no_grad():
            made, wanted = block(x)[:, :, 1:-1, 1:-1], conv(x)[:, :, 1:-1, 1:-1]
        if norm == "batch":  # without a bias up to a constant for each channel
            made = made - made.mean((0, 2, 3), keepdim=True) + wanted.mean((0, 2, 3), keepdim=True)
        return (made - wanted).norm() / (wanted - wanted.mean((0, 2, 3), keepdim=True)).norm()

    assert error() > 0.9
    start_as(block, conv)
    assert error() < limit
    block.eval()
    assert error() < limit


def test_corners() -> None:
    conv, block = nn.Conv2d(4, 6, 3, padding=1), CheapConv2d(4, 6, parse_kind("Conv2x2"), bias=True)
    with torch.no_grad():
        conv.weight[:, :, 1] = 0
        conv.weight[:, :, :, 1] = 0
    start_as(block, conv)
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(block(x), conv(x))


def test_a_classifiers_student() -> None:
    teacher = made("wrn:16-1")
    plan = plan_student(teacher.config, StudentConfig(reduction=1, cheap=["S", "DConv", "G4B2"]))
    student: Any = derive_student(teacher, plan, seed=1)
    given, own = teacher.state_dict(), student.state_dict()
    assert all(own[name].equal(value) for name, value in given.items() if name in own)
    assert own["group1.0.conv1.weight"].equal(given["group1.0.conv1.weight"])
    kernel, up = own["group2.1.conv2.conv.weight"], own["group2.1.conv2.up.weight"]
    best = factored(given["group2.1.conv2.weight"], "DConv")
    scale = own["group2.1.conv2.conv_norm.running_var"].sqrt()
    found = product(None, kernel, up[:, :, 0, 0] / scale)
    torch.testing.assert_close(found / found.norm(), best / best.norm(), rtol=1e-3, atol=1e-5)
    again: Any = derive_student(teacher, plan, seed=1)
    assert all(value.equal(own[name]) for name, value in again.state_dict().items())
    fresh: Any = derive_student(
        teacher, plan_student(teacher.config, StudentConfig(reduction=1, cheap="DConv", start="random"))
    )
    assert not fresh.state_dict()["group1.0.norm1.weight"].equal(given["group1.0.norm1.weight"])


def test_cheap_wide_and_reduced(tiny_config: dict[str, Any]) -> None:
    """All at once: what is not cheap is as in the student without cheap convolutions."""
    torch.manual_seed(0)
    teacher = trained(UNet2DModel(**{**tiny_config, "in_channels": 3, "out_channels": 3}).eval())
    options: dict[str, Any] = {"reduction": 2, "widen": [1, 1, 2, 2], "head_start": "teacher"}
    plan = plan_student(dict(teacher.config), StudentConfig(**options, cheap=["S", "S", "DConvA2", "A2B2"]))
    kinds = [type(edit).__name__ for edit in plan.edits]
    assert sorted(set(kinds)) == ["Cheap", "Head", "Red", "Stem", "Stride", "Width"]
    student: Any = derive_student(teacher, plan, seed=1)
    full: Any = derive_student(teacher, plan_student(dict(teacher.config), StudentConfig(**options)), seed=1)
    given, own = full.state_dict(), student.state_dict()
    assert all(own[name].equal(value) for name, value in given.items() if name in own)
    assert {name.rsplit(".", 1)[0] for name in given.keys() - own.keys()} == {edit.path for edit in plan.cheap}
    x, timesteps = torch.randn(2, 3, 16, 16), torch.tensor([10, 500])
    with torch.no_grad():
        wanted, made_here = full(x, timesteps).sample, student(x, timesteps).sample
    assert made_here.shape == x.shape
    assert made_here.isfinite().all()
    assert not torch.equal(made_here, wanted)


def test_the_head_of_a_student_of_reduction_1_starts_at_zero(tiny_config: dict[str, Any]) -> None:
    teacher = UNet2DModel(**tiny_config).eval()
    plan = plan_student(dict(teacher.config), StudentConfig(reduction=1, cheap="DConv"))
    assert plan.options.head_start == "zero"
    student: Any = derive_student(teacher, plan)
    assert not any(parameter.any() for parameter in student.conv_out.parameters())
    assert student.conv_in.weight.equal(teacher.conv_in.weight)
