"""Wide residual networks against Moonshine's figures: parameters, and multiply-accumulates of one 32 px image."""

import math

import pytest
import torch
from torch import nn

from ddpm_redistill.pipelines.wide_resnet import WideBlock, WideResNet


def multiply_accumulates(network: nn.Module, image: torch.Tensor) -> int:
    """Of convolutions and linear layers, by their weights and the positions of their outputs."""
    total = 0

    def count(layer: nn.Module, _: tuple, output: torch.Tensor) -> None:
        nonlocal total
        total += layer.weight.numel() * math.prod(output.shape[2:])  # type: ignore[operator, union-attr]

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    network(image)
    return total


@pytest.mark.parametrize(
    ("depth", "width", "parameters", "macs"),
    [
        (40, 2, 2_243_546, 327_599_360),
        (16, 2, 691_674, 101_106_944),
        (40, 1, 563_930, 83_280_512),
        (16, 1, 175_066, 26_657_408),
    ],
)
def test_published_sizes(depth: int, width: int, parameters: int, macs: int) -> None:
    with torch.device("meta"):
        network = WideResNet(depth, width).eval()
    assert sum(weight.numel() for weight in network.parameters()) == parameters
    assert multiply_accumulates(network, torch.empty(1, 3, 32, 32, device="meta")) == macs


def test_the_shortcut_of_a_block_is_of_the_activated_input() -> None:
    torch.manual_seed(0)
    block, x = WideBlock(4, 6, 2).eval(), torch.randn(2, 4, 8, 8)
    nn.init.zeros_(block.conv2.weight)
    given = x.clone()
    assert torch.equal(block(x), block.shortcut(torch.relu(block.norm1(given))))
    assert torch.equal(x, given)
    same = WideBlock(4, 4, 1).eval()
    nn.init.zeros_(same.conv2.weight)
    assert torch.equal(same(x), x)


def test_it_learns() -> None:
    torch.manual_seed(0)
    network, images, labels = (
        WideResNet(10, 1, num_classes=3, in_channels=1),
        torch.randn(12, 1, 8, 8),
        torch.arange(12) % 3,
    )
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert network(images).shape == (12, 3)
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(("depth", "width"), [(20, 1), (4, 1), (16, 0)])
def test_sizes_that_are_none(depth: int, width: int) -> None:
    with pytest.raises(ValueError, match=r"is not 6 n|is below 1"):
        WideResNet(depth, width)
