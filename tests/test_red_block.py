"""The RED block against an independent computation in numpy, and its two starts."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_redistill.pipelines.red_block import RedAround, REDBlock

BATCH, SIZE = 3, 5


def conv(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Zero-padded to the same size: sum over the kernel's offsets."""
    side, half = kernel.shape[-1], kernel.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (half, half), (half, half)))
    out = np.zeros((x.shape[0], kernel.shape[0], *x.shape[2:]))
    for row in range(side):
        for column in range(side):
            window = padded[:, :, row : row + x.shape[2], column : column + x.shape[3]]
            out += np.einsum("bchw,oc->bohw", window, kernel[:, :, row, column])
    return out


def norm(x: np.ndarray, layer: Any, training: bool) -> np.ndarray:
    if isinstance(layer, nn.GroupNorm):
        grouped = x.reshape(len(x), 8 if x.shape[1] % 8 == 0 else 1, -1)
        scaled = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + 1e-5)
        scaled = scaled.reshape(x.shape)
    elif training:
        scaled = (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)
    else:
        mean, variance = (value.numpy()[:, None, None] for value in (layer.running_mean, layer.running_var))
        scaled = (x - mean) / np.sqrt(variance + 1e-5)
    weight, bias = (value.detach().numpy()[:, None, None] for value in (layer.weight, layer.bias))
    return scaled * weight + bias


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize(("kind", "training"), [("batch", False), ("batch", True), ("group", False), ("group", True)])
def test_block_is_its_equation(kind: str, training: bool, channels: int) -> None:
    torch.manual_seed(0)
    block = REDBlock(channels, norm=kind).double().train(training)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_()
        block.residual_norm.weight *= 4  # wide enough to meet both ends of relu6
        for layer in (block.gate_norm, block.residual_norm):
            if kind == "batch":
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
    x = torch.randn(BATCH, channels, SIZE, SIZE, dtype=torch.float64)

    gate_map = norm(conv(x.numpy(), block.gate_conv.weight.detach().numpy()), block.gate_norm, training)
    residual_map = norm(conv(x.numpy(), block.residual_conv.weight.detach().numpy()), block.residual_norm, training)
    assert residual_map.min() < 0
    assert residual_map.max() > 6
    expected = x.numpy() / (1 + np.exp(-gate_map)) + np.clip(residual_map, 0, 6)

    np.testing.assert_allclose(block(x).detach().numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_block_has_the_gradients_of_its_equation(kind: str) -> None:
    """What it does in place takes no gradient away."""
    torch.manual_seed(0)
    block = REDBlock(4, norm=kind).double()
    x = torch.randn(2, 4, SIZE, SIZE, dtype=torch.float64, requires_grad=True)
    inputs = (x, *block.parameters())
    gate = torch.sigmoid(block.gate_norm(block.gate_conv(x)))
    residual = torch.clamp(block.residual_norm(block.residual_conv(x)), 0, 6)
    found = torch.autograd.grad(block(x).square().sum(), inputs)
    torch.testing.assert_close(found, torch.autograd.grad((x * gate + residual).square().sum(), inputs))


def test_block_leaves_its_input_alone() -> None:
    x = torch.randn(2, 8, 4, 4)
    before = x.clone()
    REDBlock(8)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["batch", "group"])
def test_identity_start_is_near_identity(kind: str, training: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 4, 4)
    y = REDBlock(8, norm=kind, start="identity").train(training)(x)
    torch.testing.assert_close(y, x, rtol=0.02, atol=0.011)
    paper = REDBlock(8, norm=kind, start="paper").train(training)(x)
    assert (paper - x).abs().max() > 0.5


@pytest.mark.parametrize("start", ["paper", "identity"])
@pytest.mark.parametrize("kind", ["batch", "group"])
def test_every_parameter_learns_within_two_steps(kind: str, start: str) -> None:
    torch.manual_seed(0)
    block = REDBlock(8, norm=kind, start=start)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    x, target = torch.randn(2, 4, 8, 6, 6)
    alive: set[str] = set()
    for _ in range(2):
        optimizer.zero_grad()
        (block(x) - target).square().mean().backward()
        alive |= {name for name, value in block.named_parameters() if (value.grad != 0).any()}
        optimizer.step()
    assert alive == {name for name, _ in block.named_parameters()}


def test_paper_start_is_the_default_initialisation() -> None:
    torch.manual_seed(0)
    block = REDBlock(8)
    torch.manual_seed(0)
    gate, residual = nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 3, bias=False)
    assert torch.equal(block.gate_conv.weight, gate.weight)
    assert torch.equal(block.residual_conv.weight, residual.weight)
    for layer in (block.gate_norm, block.residual_norm):
        assert isinstance(layer, nn.BatchNorm2d)
        assert (layer.weight == 1).all()
        assert (layer.bias == 0).all()


@pytest.mark.parametrize(("option", "message"), [("norm", "unknown RED norm 'x'"), ("start", "unknown RED start 'x'")])
def test_unknown_option(option: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REDBlock(8, **{option: "x"})


def test_red_around_wraps_both_sides_and_passes_arguments_on() -> None:
    class Affine(nn.Module):
        def forward(self, x: torch.Tensor, plus: float, *, times: float) -> torch.Tensor:
            return x * times + plus

    around = RedAround(Affine())
    x = torch.ones(1, 2, 3, 3)
    assert torch.equal(around(x, 1.0, times=2.0), x * 2 + 1)  # no block: the layer itself
    around.red_in, around.red_out = nn.Threshold(5.0, 10.0), nn.Softplus()
    assert torch.equal(around(x, 1.0, times=2.0), nn.functional.softplus(x * 10 * 2 + 1))
