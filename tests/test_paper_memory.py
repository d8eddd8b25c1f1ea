"""The paper's theoretical peak, by structure: blocks small enough to count by hand."""

from collections.abc import Callable

import pytest
import torch
from memory_helpers import GatedBlock, ResidualBlock, SkipNetwork, image
from torch import Tensor, nn

from ddpm_redistill.core.memory import profile_memory


@pytest.mark.parametrize("time_embedding", [False, True])
def test_paper_peak_of_one_block(time_embedding: bool) -> None:
    profile = profile_memory(ResidualBlock(4, 6, time_embedding), torch.zeros(1, 4, 8, 8))
    assert profile.paper_peak == 4 * (64 * (4 + 6) + 6 * time_embedding + 64 * 4)


def test_paper_peak_of_a_block_whose_second_convolution_is_larger() -> None:
    block = ResidualBlock(4, 6)
    block.conv2 = nn.Conv2d(6, 4 * 5, 3, padding=1)
    block.forward = lambda x: block.conv2(block.conv1(x))  # type: ignore[method-assign]
    assert profile_memory(block, torch.zeros(1, 4, 8, 8)).paper_peak == 4 * 64 * (6 + 20 + 4)


@pytest.mark.parametrize(
    ("layers", "join", "skips"),
    [
        (2, lambda h, skip: torch.cat([h, skip], 1), 1),
        (2, lambda h, skip: torch.cat([h, skip.view_as(skip)], 1), 1),
        (2, lambda h, skip: torch.cat([h, skip, skip], 1), 1),  # one storage read twice
        (1, lambda h, skip: torch.cat([h, skip], 1), 0),  # the block's own input: counted already
        (2, lambda h, skip: h + skip, 0),
        (2, lambda h, skip: torch.cat([h, h], 1), 0),
    ],
    ids=["cat", "cat of a view", "twice", "block input", "sum", "dead"],
)
def test_long_skips(layers: int, join: Callable[[Tensor, Tensor], Tensor], skips: int) -> None:
    profile = profile_memory(SkipNetwork(layers, join), torch.zeros(1, 3, 8, 8))
    feature_map = 4 * 64 * 4
    assert profile.paper_peak == 3 * feature_map
    assert profile.paper_peak_with_skips == (3 + skips) * feature_map


def test_red_paper_peak() -> None:
    # The widest RED blocks of the x2 CIFAR-10 student at 16 px: 128 channels of 2 blocks, 256 of 10.
    assert profile_memory(GatedBlock(128), image(1, 16, 128)).red_paper_peak == 393_216
    network = nn.Sequential(GatedBlock(128), nn.Conv2d(128, 256, 1), GatedBlock(256), nn.AvgPool2d(2))
    profile = profile_memory(network, image(1, 16, 128))
    assert profile.red_paper_peak == 786_432
    assert profile.paper_peak is None
