"""Taps leave nothing behind; the moving average is its formula, buffers included."""

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_redistill.core.ema import EMA
from ddpm_redistill.core.taps import Tap, reading


class Layer(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * 2


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"first": Layer(), "second": Layer()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body["second"](hidden_states=self.body["first"](x))  # by position, then by keyword


TAPS = [Tap(f"body.{layer}", side) for layer in ("first", "second") for side in ("input", "output")]  # type: ignore[arg-type]


def hooks_of(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


def test_reading_keeps_each_side_of_each_layer_of_the_last_forward() -> None:
    network = Network()
    with reading(network, TAPS) as maps:
        network(torch.ones(1))
        network(torch.full((1,), 3.0))
        assert [maps[tap].item() for tap in TAPS] == [3, 6, 6, 12]
    assert hooks_of(network) == 0
    assert maps == {}
    network(torch.ones(1))
    assert maps == {}


def test_reading_cleans_up_after_an_exception() -> None:
    network = Network()
    seen = {}

    def fail() -> None:
        with reading(network, TAPS) as maps:
            seen["maps"] = maps
            network(torch.ones(1))
            assert len(maps) == 4
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert hooks_of(network) == 0
    assert seen["maps"] == {}


def test_reading_a_layer_that_is_not_there() -> None:
    network = Network()
    with (
        pytest.raises(KeyError, match=r"no layer 'body\.third' in Network"),
        reading(network, [*TAPS, Tap("body.third", "input")]),
    ):
        pass
    assert hooks_of(network) == 0


def norm_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))


def test_ema_is_its_formula_for_parameters_and_buffers() -> None:
    torch.manual_seed(0)
    network = norm_network().double()
    ema = EMA(network, decay=0.2)  # the start's 0.1 and 2/11, then the decay itself
    expected = {name: value.numpy().copy() for name, value in network.state_dict().items()}
    for decay in (1 / 10, 2 / 11, 0.2, 0.2):
        network(torch.randn(4, 2, 3, 3, dtype=torch.float64) + 1)  # moves the statistics
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_()
        ema.update(network)
        for name, value in network.state_dict().items():
            new = value.numpy()
            expected[name] = decay * expected[name] + (1 - decay) * new if new.dtype.kind == "f" else new.copy()
    assert {"1.running_mean", "1.running_var", "1.num_batches_tracked", "0.weight"} <= expected.keys()
    assert expected["1.num_batches_tracked"] == 4

    averaged = norm_network().double()
    ema.copy_to(averaged)
    for name, value in averaged.state_dict().items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-12, err_msg=name)


def test_ema_owns_its_values() -> None:
    network, other = norm_network(), norm_network()
    ema = EMA(network, decay=0.9)
    before = {name: value.clone() for name, value in ema.shadow.items()}
    with torch.no_grad():
        network[0].weight += 1
    ema.copy_to(other)
    with torch.no_grad():
        other[0].weight += 1
    assert all(torch.equal(ema.shadow[name], before[name]) for name in before)
    assert not any(value.requires_grad for value in ema.shadow.values())


def test_ema_of_another_network() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        EMA(norm_network(), decay=0.9).copy_to(nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)))
