"""Cheap convolutions: their names, their block against an independent computation, Moonshine's sizes, and plans."""

from typing import Any

import pytest
import torch
from test_wide_resnet import multiply_accumulates
from torch import nn
from torch.nn import functional as F

from ddpm_redistill import StudentConfig, StudentPlan, UserError, plan_student
from ddpm_redistill.families.classifier import cheap_layers
from ddpm_redistill.families.classifier_files import find_config
from ddpm_redistill.families.registry import family_of
from ddpm_redistill.pipelines.cheap import CheapConv2d, CheapKind, parse_kind
from ddpm_redistill.pipelines.edits import Cheap
from ddpm_redistill.pipelines.wide_resnet import WideResNet
from ddpm_redistill.students.derive import student_on_meta

# Of WRN-40-2 with 10 classes: parameters, and multiply-accumulates of one 32 px image.
PUBLISHED = {
    "Conv": (2_243_546, 327_599_360),
    "DConv": (293_514, 44_127_488),
    "DConvG2": (316_698, 50_062_592),
    "DConvG4": (363_066, 61_932_800),
    "DConvG8": (455_802, 85_673_216),
    "DConvG16": (641_274, 133_154_048),
    "DConvA2": (1_358_970, 197_444_864),
    "DConvA4": (814_650, 117_818_624),
    "DConvA8": (542_490, 78_005_504),
    "DConvA16": (406_410, 58_098_944),
    "ConvB2": (856_538, 125_486_336),
    "ConvB4": (292_058, 42_517_760),
    "ConvB8": (118_682, 16_958_720),
    "DConvB2": (288_026, 43_648_256),
    "DConvB4": (152_954, 22_832_384),
    "G2B2": (300_122, 46_744_832),
    "G8B2": (372_698, 65_324_288),
    "G16B2": (469_466, 90_096_896),
    "G4B4": (171_098, 27_477_248),
    "A16B2": (312_218, 45_860_096),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        network = WideResNet(40, 2).eval()
        for layer in cheap_layers(find_config("wrn:40-2").to_dict()):
            Cheap(path=layer.path, convolution=name, norm="batch").apply(network)
    found = sum(weight.numel() for weight in network.parameters())
    assert (found, multiply_accumulates(network, torch.empty(1, 3, 32, 32, device="meta"))) == PUBLISHED[name]


def test_the_planned_network_is_that_one() -> None:
    config = find_config("wrn:40-2").to_dict()
    plan = plan_student(config, StudentConfig(reduction=1, cheap="G8B2"))
    assert plan.cheap == plan.edits
    assert (len(plan.edits), plan.reduction, plan.student_strides) == (36, 1, (1, 2, 2))
    student = student_on_meta(config, plan)
    assert sum(weight.numel() for weight in student.parameters()) == PUBLISHED["G8B2"][0]
    assert StudentPlan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("Conv", CheapKind(), "S"),
        ("S", CheapKind(), "S"),
        ("Conv2x2", CheapKind(corners=True), "Conv2x2"),
        ("DConv", CheapKind(group_size=1), "DConv"),
        ("DConvG8", CheapKind(group_size=8), "DConvG8"),
        ("DConvA4", CheapKind(groups=4), "DConvA4"),
        ("ConvB2", CheapKind(bottleneck=2), "ConvB2"),
        ("G8B2", CheapKind(bottleneck=2, group_size=8), "G8B2"),
        ("A4B2", CheapKind(bottleneck=2, groups=4), "A4B2"),
        ("DConvB4", CheapKind(bottleneck=4, group_size=1), "DConvB4"),
        ("G(4)", CheapKind(groups=4), "DConvA4"),
        ("G(N)", CheapKind(group_size=1), "DConv"),
        ("G(N/16)", CheapKind(group_size=16), "DConvG16"),
        ("B(2)", CheapKind(bottleneck=2), "ConvB2"),
        ("BG(2, 4)", CheapKind(bottleneck=2, groups=4), "A4B2"),
        ("BG(2,M)", CheapKind(bottleneck=2, group_size=1), "DConvB2"),
        ("BG(2,M/16)", CheapKind(bottleneck=2, group_size=16), "G16B2"),
    ],
)
def test_names(text: str, kind: CheapKind, name: str) -> None:
    assert parse_kind(text) == kind
    assert str(kind) == name
    assert parse_kind(name) == kind


@pytest.mark.parametrize(
    "text", ["", "s", "G8", "B2", "DConvG8B2", "GB2", "BG(2)", "G(8", "Conv3x3", "G-8B2", "G999999B2", "G8B2x"]
)
def test_no_names(text: str) -> None:
    with pytest.raises(ValueError, match="is no convolution that is known: give S, Conv2x2, DConv"):
        parse_kind(text)


@pytest.mark.parametrize("text", ["G0B2", "DConvA0", "ConvB1", "B(0)"])
def test_numbers_that_are_too_small(text: str) -> None:
    with pytest.raises(ValueError, match="a number that is too small"):
        parse_kind(text)


def in_parts(block: Any, x: torch.Tensor, groups: int, stride: int) -> torch.Tensor:
    """Another computation of a block in eval mode: the grouped convolution group by group, norms by their formula."""

    def norm(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if isinstance(layer, nn.BatchNorm2d):
            mean, variance = (value.view(1, -1, 1, 1) for value in (layer.running_mean, layer.running_var))
            normal, activated = (x - mean) / (variance + layer.eps).sqrt(), F.relu
        else:
            parts = x.reshape(len(x), layer.num_groups, -1)
            variance, mean = torch.var_mean(parts, dim=2, correction=0, keepdim=True)
            normal, activated = ((parts - mean) / (variance + layer.eps).sqrt()).view(x.shape), F.silu
        return activated(normal * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1))

    if block.down is not None:
        x = norm(block.down_norm, torch.einsum("bchw,oc->bohw", x, block.down.weight[:, :, 0, 0]))
    size = block.conv.weight.shape[-1]
    columns = F.unfold(x, size, dilation=block.conv.dilation, padding=1, stride=stride)
    side = x.shape[-1] // stride
    parts = columns.view(len(x), groups, -1, side * side)
    weight = block.conv.weight.view(groups, -1, parts.shape[2])
    x = torch.einsum("bgkp,gok->bgop", parts, weight).reshape(len(x), -1, side, side)
    if block.up is None:
        return x
    made = torch.einsum("bchw,oc->bohw", norm(block.conv_norm, x), block.up.weight[:, :, 0, 0])
    return made if block.up.bias is None else made + block.up.bias.view(1, -1, 1, 1)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(
    ("name", "groups"),
    [("S", 1), ("Conv2x2", 1), ("DConv", 8), ("DConvG4", 2), ("ConvB2", 1), ("A4B2", 4), ("G4B2", 4), ("DConvB4", 8)],
)
def test_the_block(name: str, groups: int, norm: str, stride: int) -> None:
    torch.manual_seed(0)
    block = CheapConv2d(8, 32, parse_kind(name), stride=stride, bias=norm == "group", norm=norm).eval()
    with torch.no_grad():
        for value in block.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand(value.shape) / 2)
        if block.up is None and norm == "group":
            block.conv.bias.zero_()  # type: ignore[union-attr, operator]
        x = torch.randn(2, 8, 6, 6)
        given, made = x.clone(), block(x)
        assert made.shape == (2, 32, 6 // stride, 6 // stride)
        torch.testing.assert_close(made, in_parts(block, x, groups, stride), rtol=1e-5, atol=1e-5)
        assert torch.equal(x, given)
    assert torch.is_grad_enabled()
    torch.testing.assert_close(block(x), made)  # with gradients nothing is written over


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("G3B2", "16 channels are not divided into groups of 3"),
        ("A3B2", "16 channels are not divided into 3 groups"),
        ("ConvB3", "32 channels are not divided by 3"),
        ("DConvG16", "8 channels are not divided into groups of 16"),
    ],
)
def test_channels_that_do_not_divide(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CheapConv2d(8, 32, parse_kind(name))


def test_an_edit_of_another_layer() -> None:
    network = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
    for path in ("0", "1"):
        with pytest.raises(ValueError, match=f"{path} is no full 3x3 convolution"):
            Cheap(path=path, convolution="DConv", norm="batch").apply(network)


def test_kinds_by_level(tiny_config: dict[str, Any]) -> None:
    plan = plan_student(tiny_config, StudentConfig(reduction=2, cheap=["S", "S", "DConv", "G2B2"]))
    layers = family_of(tiny_config)[1].cheap_layers(tiny_config)
    wanted = {2: "DConv", 3: "G2B2"}
    assert [(edit.path, edit.convolution) for edit in plan.cheap] == [
        (layer.path, wanted[layer.level]) for layer in layers if layer.level in wanted
    ]
    assert {edit.norm for edit in plan.cheap} == {"group"}
    assert plan.blocks
    assert plan_student(tiny_config, StudentConfig(cheap="S", reduction=1)).edits == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cheap": "G8B3x"}, "student.cheap: 'G8B3x' is no convolution that is known"),
        ({"cheap": ["S", "DConv"]}, "student.cheap has 2 kinds: give one for all, or one for each of the 4 levels"),
        ({"cheap": "DConvG5"}, "student.cheap does not fit down_blocks.0.resnets.0.conv1 of"),
        ({"reduction": 1}, "reduction 1 is not supported: choose 2, 4 or 8"),
        ({"cheap_norm": "batch"}, "student.cheap_norm is set, and no convolution is cheap"),
        ({"cheap": "DConv", "reduction": 1, "red_placement": "full"}, "has the RED blocks of its teacher"),
    ],
)
def test_plans_refused(tiny_config: dict[str, Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as refused:
        plan_student(tiny_config, StudentConfig(**options))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_network_without_residual_blocks() -> None:
    pytest.importorskip("timm")
    config = find_config("timm:vgg11_bn").to_dict()
    with pytest.raises(UserError, match="no 3x3 convolution of a residual block is known in this network"):
        plan_student(config, StudentConfig(cheap="DConv"))


@pytest.mark.parametrize(("ref", "count"), [("timm:resnet18", 16), ("timm:resnet50", 16)])
def test_blocks_of_timm(ref: str, count: int) -> None:
    """The stride that a block keeps, or has lost, is that of its cheap convolution."""
    pytest.importorskip("timm")
    config = {**find_config(ref).to_dict(), "image_size": 64}
    plan = plan_student(config, StudentConfig(reduction=2, cheap=["DConv", "S", "G4B2", "G4B2"]))
    layers = cheap_layers(config)
    assert len(layers) == count
    assert {layer.level for layer in layers} == {0, 1, 2, 3}
    student = student_on_meta(config, plan)
    with torch.no_grad():
        assert student(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 1000)
    assert StudentPlan.from_dict(plan.to_dict()) == plan
