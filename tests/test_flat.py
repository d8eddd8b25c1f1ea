"""Parameters as views of one vector: the same training as tensor by tensor, and memory of their own afterwards."""

import copy

import pytest
import torch
from torch import nn

from ddpm_redistill.core.flat import FlatParameters


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.SiLU(), nn.Conv2d(3, 1, 1))


def flat_of(network: nn.Module) -> FlatParameters:
    return FlatParameters(dict(network.named_parameters()))


def loss_of(network: nn.Module, seed: int) -> torch.Tensor:
    x = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(seed))
    return network(x.to(network[0].weight.dtype)).square().mean()


def test_parameters_keep_their_values_and_share_the_vector() -> None:
    network, before = small_network(), small_network().state_dict()
    flat = flat_of(network)
    assert len(flat.vector) == 1024  # a whole number of pieces of the norm
    assert all(parameter.data_ptr() % 64 == flat.vector.data_ptr() % 64 for parameter in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    with torch.no_grad():
        flat.vector.fill_(0.5)
    assert all((parameter == 0.5).all() for parameter in network.parameters())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_views_are_the_pieces_by_name(layout: torch.memory_format) -> None:
    network = small_network().to(memory_format=layout)
    before = copy.deepcopy(network.state_dict())
    flat = flat_of(network)
    pieces = flat.views(torch.arange(len(flat.vector)))
    for name, parameter in network.named_parameters():
        assert (pieces[name].shape, pieces[name].stride()) == (parameter.shape, parameter.stride())
        assert parameter.stride() == before[name].stride()
        assert torch.equal(parameter, before[name])
    seen = torch.cat([piece.flatten() for piece in pieces.values()])
    assert len(seen.unique()) == sum(parameter.numel() for parameter in network.parameters())
    flat.release()
    assert all(parameter.is_contiguous() for parameter in network.parameters())


def test_backward_passes_add_to_the_vectors_gradient() -> None:
    network, plain = small_network(), small_network()
    flat = flat_of(network)
    for seed in (0, 1):  # two micro-batches
        loss_of(network, seed).backward()
        loss_of(plain, seed).backward()
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    assert all(gradient.abs().max() > 0 for name, gradient in expected.items() if name != "0.bias")  # before a norm
    torch.testing.assert_close(flat.views(flat.vector.grad), expected)


def test_gradients_are_added_at_once() -> None:
    """Those of ``torch.autograd.grad``, of two micro-batches; a parameter that has none keeps what it has."""
    network, plain = small_network(), small_network()
    flat = flat_of(network)
    for seed in (0, 1):
        gradients = torch.autograd.grad(loss_of(network, seed), list(network.parameters()))
        plain[3].bias.requires_grad_(seed == 0)
        loss_of(plain, seed).backward()
        flat.add_gradients([*gradients[:-1], gradients[-1] if seed == 0 else None])
    torch.testing.assert_close(flat.views(flat.vector.grad), {n: p.grad for n, p in plain.named_parameters()})
    flat.add_gradients([None] * len(gradients))


def test_adam_and_clipping_are_those_of_the_tensors() -> None:
    # A bias before a BatchNorm has no gradient but rounding, which Adam makes steps of: in float64 there is too little.
    network, plain = small_network().double(), small_network().double()
    flat = flat_of(network)
    adam = torch.optim.Adam([flat.vector], lr=0.05, fused=True)
    reference = torch.optim.Adam(plain.parameters(), lr=0.05)
    for seed in range(6):
        loss_of(network, seed).backward()
        loss_of(plain, seed).backward()
        norm = flat.clip_gradient(0.02)
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(plain.parameters(), 0.02))
        assert norm > 0.02  # something is clipped
        adam.step()
        reference.step()
        adam.zero_grad(set_to_none=False)
        reference.zero_grad()
        assert not flat.vector.grad.any()
    for (name, value), expected in zip(network.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(value, expected, msg=lambda text, name=name: f"{name}: {text}")


def test_the_norm_of_millions_is_right() -> None:
    flat = FlatParameters({"weight": nn.Parameter(torch.zeros(8_000_000))})
    flat.vector.grad[:8_000_000] = torch.rand(8_000_000, generator=torch.Generator().manual_seed(0))
    expected = flat.vector.grad.double().norm().item()
    assert flat.clip_gradient(2 * expected).item() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(flat.vector.grad.double().norm().item(), expected)  # not longer: not scaled


def test_released_parameters_have_memory_of_their_own() -> None:
    network = small_network()
    flat = flat_of(network)
    before = copy.deepcopy(network.state_dict())
    flat.release()
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.untyped_storage().nbytes() == parameter.nbytes
        assert parameter.grad is None
        assert parameter.requires_grad
    with torch.no_grad():
        flat.vector.zero_()
    assert torch.equal(network.state_dict()["0.weight"], before["0.weight"])


def test_parameters_of_two_dtypes_are_refused() -> None:
    network = small_network()
    network[3].double()
    with pytest.raises(ValueError, match="one dtype"):
        flat_of(network)
