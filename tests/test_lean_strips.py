"""Strips of a map against the whole: the split, the convolution, the statistics."""

import pytest
import torch
from torch import nn

from ddpm_redistill.pipelines.lean_strips import Workspace, conv_by_strips, group_affine, moments, plain, pooled, strips


@pytest.mark.parametrize(
    ("height", "row_bytes", "room", "expected"),
    [
        (4, 10, 40, [(0, 4)]),  # whole: no rows around it are needed
        (8, 10, 60, [(0, 4), (4, 8)]),
        (9, 10, 50, [(0, 3), (3, 6), (6, 9)]),
        (3, 10, 5, [(0, 2), (2, 3)]),  # never less than two rows
        (7, 10, 60, [(0, 4), (4, 7)]),
    ],
)
def test_strips(height: int, row_bytes: int, room: int, expected: list[tuple[int, int]]) -> None:
    assert strips(height, row_bytes, Workspace(1, room, 0)) == expected
    assert strips(height, row_bytes, Workspace(height + 1, 0, room)) == expected


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("side", [1, 3])
def test_convolution_by_strips(rows: int, side: int) -> None:
    x = torch.randn(2, 6, 8, 5)
    conv = nn.Conv2d(6, 4, side, padding=side // 2)
    workspace = Workspace(1, rows + 2, 0)
    out = conv_by_strips(conv, plain([x[:, :2], x[:, 2:]]), 8, 1, workspace)
    assert torch.allclose(out, conv(x), atol=1e-5)
    onto = torch.zeros(2, 4, 8, 5)
    out = conv_by_strips(conv, plain([x]), 8, 1, workspace, finish=lambda r, a, b: r.mul_(2), onto=onto)
    assert torch.allclose(out, 2 * conv(x), atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1e4])  # far from zero, a sum of squares would cancel
def test_group_norm_from_moments(offset: float) -> None:
    x = torch.randn(2, 12, 6, 5) + offset
    norm = nn.GroupNorm(3, 12)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    workspace = Workspace(1, 4 * 2 * 6 * 5 * 5, 0)  # five channels at a time
    parts = [moments(x[:, :, :4], workspace), moments(x[:, :, 4:], workspace)]
    for mean, variance, count in (moments(x, workspace), pooled(iter(parts))):
        assert count == 30
        scale, shift = group_affine(norm, mean, variance)
        exact = norm.double()(x.double())
        assert torch.allclose(x.double() * scale.double() + shift.double(), exact, atol=1e-5 + offset * 1e-6)
        norm.float()
