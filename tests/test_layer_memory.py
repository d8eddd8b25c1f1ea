"""Theoretical memory by layer, against the figures of the ReDistill authors' own scripts for classifiers."""

import pytest
import torch
from memory_helpers import GatedBlock
from torch import nn

from ddpm_redistill.core.layer_memory import layer_memory
from ddpm_redistill.pipelines.red_block import REDBlock
from ddpm_redistill.pipelines.strides import set_stride
from ddpm_redistill.pipelines.wide_resnet import WideResNet

timm = pytest.importorskip("timm")

MIB = 2**20
RESNET = ["conv1", "maxpool", *(f"layer{level}.{block}" for level in (1, 2, 3, 4) for block in (0, 1))]
RESNET18 = [3.63671875, 3.828125, 2.296875, 2.296875, 2.296875, 1.53125, 1.1484375, 0.765625, 0.57421875, 0.3828125]
RESNET18_STUDENT = [
    *(0.765625, 0.3828125, 0.57421875, 0.57421875, 0.57421875, 0.3828125),
    *(0.287109375, 0.19140625, 0.3349609375, 0.2392578125),
]
RESNET_STRIDES = {"conv1": 8, "maxpool": 1, "layer4.0.downsample.0": 1}


def network(name: str, strides: dict[str, int]) -> nn.Module:
    with torch.device("meta"):
        network = timm.create_model(name).eval()
    for path, stride in strides.items():
        set_stride(network.get_submodule(path), stride)
    return network


def entries(network: nn.Module, size: int, channels: int = 3) -> dict[str, int]:
    device = next(network.parameters()).device
    return dict(layer_memory(network, torch.zeros(1, channels, size, size, device=device)))


@pytest.mark.parametrize(
    ("strides", "expected"),
    [({}, RESNET18), ({**RESNET_STRIDES, "layer4.0.conv1": 1}, RESNET18_STUDENT)],
    ids=["teacher", "student"],
)
def test_every_entry_of_resnet18(strides: dict[str, int], expected: list[float]) -> None:
    found = entries(network("resnet18", strides), 224)
    assert list(found)[:10] == RESNET
    assert [value / MIB for value in found.values()][:10] == expected
    assert max(found.values()) == max(expected) * MIB


STUDENT_OF_50 = {**RESNET_STRIDES, "layer4.0.conv2": 1}
V2_DROPPED = {f"blocks.{block}.0.conv_dw": 1 for block in (2, 3, 5)}
V3_DROPPED = {f"blocks.{block}.0.conv_dw": 1 for block in (2, 4)}


@pytest.mark.parametrize(
    ("name", "size", "strides", "peak", "where"),
    [
        ("resnet50", 224, {}, 9_633_792, "layer2.0"),
        ("resnet50", 224, STUDENT_OF_50, 2_408_448, "layer2.0"),
        # STL-10 at 128 px. The teachers' first convolutions do not stride.
        ("mobilenetv2_100", 128, {"conv_stem": 1}, int(7.5 * MIB), "blocks.1.0.conv_dw"),
        ("mobilenetv2_100", 128, {"conv_stem": 8, **V2_DROPPED}, int(0.5078125 * MIB), "blocks.5.1"),
        ("mobilenetv3_small_100", 128, {"conv_stem": 1}, int(1.40625 * MIB), "blocks.1.0.conv_dw"),
        ("mobilenetv3_small_100", 128, {"conv_stem": 4, **V3_DROPPED}, int(0.306884765625 * MIB), "blocks.4.1"),
        # ResNeXt-18 is a ResNet-18 whose 3x3 convolutions are grouped, which changes no map. timm groups in
        # bottlenecks alone.
        ("resnet18", 128, {"conv1": 1}, 5 * MIB, "maxpool"),
        ("resnet18", 128, {**RESNET_STRIDES, "layer4.0.conv1": 1, "conv1": 4}, int(0.75 * MIB), "layer1.0"),
    ],
)
def test_published_peaks(name: str, size: int, strides: dict[str, int], peak: int, where: str) -> None:
    found = entries(network(name, strides), size)
    assert max(found.values()) == peak
    assert max(found, key=lambda path: found[path]) == where


def test_a_wide_residual_network_by_hand() -> None:
    found = entries(WideResNet(10, 2).eval(), 32)
    unit = 4 * 1024  # bytes of one channel at 32 px
    assert found == {
        "conv1": (3 + 16) * unit,
        "group1.0": (32 + 32 + 32 + 16) * unit,  # conv2, the shortcut's own map, the block's input
        "group2.0": (32 + 64 // 4 + 64 // 4 + 32) * unit,  # conv1
        "group3.0": (64 + 128 // 4 + 128 // 4 + 64) * unit // 4,
        "classifier": 4 * (128 + 10),
    }


def test_red_blocks_are_left_out() -> None:
    plain = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.MaxPool2d(2))
    with_red = nn.Sequential(plain[0], REDBlock(8), plain[1], GatedBlock(8)).eval()
    assert list(entries(with_red, 8, 4).values()) == list(entries(plain, 8, 4).values())
    assert set(entries(with_red, 8, 4)) == {"0", "2"}


def test_no_hook_stays() -> None:
    net = WideResNet(10, 1).eval()
    entries(net, 8)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
