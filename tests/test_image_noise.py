"""The noise of sampled images: which numbers an image gets, and that they are independent standard normal ones."""

import hashlib
import math

import pytest
import torch
from torch import Tensor

from ddpm_redistill.pipelines.image_noise import BLOCK, NOISE, ImageNoise

SHAPE = (1, 8, 8)
DRAWS = 3
PINNED = [0.87056, 0.922127, 0.05562]
"""The first values of image 0 of seed 0."""


def noise(indices: range, seed: int = 0, draws: int = DRAWS) -> Tensor:
    """(draws, len(indices), C, H, W)"""
    found = ImageNoise(seed, indices, SHAPE, "cpu")
    return torch.stack([found.draw() for _ in range(draws)])


def test_the_stream_is_the_one_that_this_version_promises() -> None:
    """Another stream has to have another name, so that a run of before it is not resumed."""
    assert (NOISE, BLOCK) == ("blocks of 16", 16)
    for seed, k in ((0, 0), (0, 15), (7, 16), (7, 1000)):
        digest = hashlib.blake2b(f"{seed}/images/{k // 16}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        expected = torch.stack([torch.randn(16, *SHAPE, generator=generator)[k % 16] for _ in range(DRAWS)])
        assert torch.equal(noise(range(k, k + 1), seed)[:, 0], expected)
    assert noise(range(1))[0].flatten()[:3].tolist() == pytest.approx(PINNED, abs=1e-6)


@pytest.mark.parametrize("splits", [[1] * 50, [16, 16, 18], [7, 20, 1, 22], [49, 1]])
@pytest.mark.parametrize("first", [0, 5, 16])
def test_any_split_of_the_images_gives_the_same(splits: list[int], first: int) -> None:
    whole, start = noise(range(first, first + 50)), first
    for count in splits:
        part = noise(range(start, start + count))
        assert torch.equal(part, whole[:, start - first : start - first + count])
        start += count


def test_nothing_but_its_rows_is_kept() -> None:
    drawn = ImageNoise(0, range(3, 5), SHAPE, "cpu").draw()
    assert drawn.untyped_storage().nbytes() == 2 * math.prod(SHAPE) * 4


def correlation(a: Tensor, b: Tensor) -> float:
    """In standard deviations of its estimate, for independent values."""
    a, b = a.flatten().double(), b.flatten().double()
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1] * math.sqrt(len(a)))


def test_standard_normal_by_kolmogorov_and_smirnov() -> None:
    values = torch.cat([noise(range(64), seed).flatten() for seed in range(4)]).double().sort().values
    expected = torch.special.ndtr(values)
    steps = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    distance = torch.maximum((steps[1:] - expected).max(), (expected - steps[:-1]).max())
    assert distance < 1.63 / math.sqrt(len(values))  # 1% of such samples are further away
    shifted = torch.special.ndtr(values + 0.02)  # the test can tell
    assert (steps[1:] - shifted).abs().max() > 1.63 / math.sqrt(len(values))


def test_neighbours_are_not_correlated() -> None:
    found, other = noise(range(256)), noise(range(256), seed=1)
    pairs = {
        "index": (found[:, :-1], found[:, 1:]),
        "block": (found[:, :-BLOCK], found[:, BLOCK:]),
        "step": (found[:-1], found[1:]),
        "seed": (found, other),
    }
    assert {name: abs(correlation(*pair)) < 4 for name, pair in pairs.items()} == dict.fromkeys(pairs, True)
    assert correlation(found, found + other) > 100
