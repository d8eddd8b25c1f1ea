"""Taps leave nothing behind and run no further than they must; the moving average is its formula, buffers included."""

import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_redistill.core.ema import EMA
from ddpm_redistill.core.flat import FlatParameters
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


def test_a_reader_hands_out_each_side_of_each_layer_and_keeps_nothing() -> None:
    network = Network()
    with reading(network, TAPS) as reader:
        for value in (1.0, 3.0):
            output, maps = reader.run(network, torch.full((1,), value))
            assert output.item() == 4 * value
            assert [maps[tap].item() / value for tap in TAPS] == [1, 2, 2, 4]
        network(torch.ones(1))  # not by the reader: nobody would fetch its maps
        assert reader._maps is None
    assert hooks_of(network) == 0


def test_reading_cleans_up_after_an_exception() -> None:
    network = Network()

    def fail() -> None:
        with reading(network, TAPS) as reader:
            reader.run(network, torch.ones(1))
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert hooks_of(network) == 0


def test_reading_a_layer_that_is_not_there() -> None:
    network = Network()
    with (
        pytest.raises(KeyError, match=r"no layer 'body\.third' in Network"),
        reading(network, [*TAPS, Tap("body.third", "input")]),
    ):
        pass
    assert hooks_of(network) == 0


class Deep(nn.Module):
    """Four layers, of which the last must not run."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        self.unused = nn.Linear(3, 3)
        self.ran: list[int] = []
        self.seen: list[weakref.ref] = []

    def forward(self, x: torch.Tensor, times: float) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x) * times
            self.ran.append(i)
            self.seen.append(weakref.ref(x))
        return x


@pytest.mark.parametrize(
    ("last", "ran"),
    [(Tap("layers.0", "output"), []), (Tap("layers.2", "input"), [0, 1]), (Tap("layers.2", "output"), [0, 1])],
)
def test_to_the_last_tap_is_a_full_forward_that_stops_there(last: Tap, ran: list[int]) -> None:
    torch.manual_seed(0)
    network, x = Deep(), torch.randn(2, 3)
    taps = [Tap("layers.0", "input"), last]
    calls: list[int] = []
    network.layers[2].register_forward_hook(lambda *args: calls.append(2))
    before = hooks_of(network)
    with reading(network, taps) as reader:
        wanted = reader.run(network, x, 2.0)[1]
        network.ran = []
        calls.clear()
        output, found = reader.run(network, x, 2.0, to_last_tap=True)
    assert output is None
    assert network.ran == ran
    assert bool(calls) == (last == Tap("layers.2", "output"))
    assert found.keys() == set(taps)
    assert all(torch.equal(found[tap], wanted[tap]) for tap in taps)
    assert hooks_of(network) == before
    network(x, 2.0)
    assert network.ran[-3:] == [0, 1, 2]


def read_to(network: nn.Module, taps: list[Tap], *inputs: object) -> dict[Tap, torch.Tensor]:
    with reading(network, taps) as reader:
        return reader.run(network, *inputs, to_last_tap=True)[1]


def test_a_reader_is_under_the_callers_grad_mode_and_keeps_nothing_else() -> None:
    network, tap = Deep(), Tap("layers.2", "input")
    assert read_to(network, [tap], torch.ones(1, 3), 2.0)[tap].requires_grad
    network.seen.clear()
    gc.disable()  # no cycle may hold what was computed on the way
    try:
        with torch.no_grad():
            maps = read_to(network, [tap], torch.ones(1, 3), 2.0)
        assert not maps[tap].requires_grad
        assert [one() is None for one in network.seen] == [True, False]
        assert network.seen[1]() is maps[tap]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("taps", "inputs", "error", "message"),
    [
        (["layers.0", "layers.9"], (2.0,), KeyError, r"no layer 'layers\.9' in Deep"),
        (["layers.0", "unused"], (2.0,), KeyError, "layer 'unused' of Deep did not run"),
        (["layers.0", "layers.1"], ("wrong",), TypeError, "."),
    ],
)
def test_a_reader_cleans_up_after_an_error(taps: list[str], inputs: tuple, error: type, message: str) -> None:
    network = Deep()
    with pytest.raises(error, match=message):
        read_to(network, [Tap(path, "output") for path in taps], torch.ones(1, 3), *inputs)
    assert hooks_of(network) == 0


def norm_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))


def ema_of(network: nn.Module, decay: float) -> EMA:
    return EMA(network, FlatParameters(dict(network.named_parameters())), decay)


def test_ema_is_its_formula_for_parameters_and_buffers() -> None:
    torch.manual_seed(0)
    network = norm_network().double()
    ema = ema_of(network, decay=0.2)  # the start's 0.1 and 2/11, then the decay itself
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
    ema = ema_of(network, decay=0.9)
    before = {name: value.clone() for name, value in ema.shadow.items()}
    with torch.no_grad():
        network[0].weight += 1
    ema.copy_to(other)
    with torch.no_grad():
        other[0].weight += 1
    assert all(torch.equal(ema.shadow[name], before[name]) for name in before)
    assert not any(value.requires_grad for value in ema.shadow.values())


def test_ema_leaves_out_what_is_trained_beside_the_network() -> None:
    network, beside = norm_network(), nn.Linear(2, 2)
    parameters = {**dict(network.named_parameters()), **dict(beside.named_parameters("loss"))}
    ema = EMA(network, FlatParameters(parameters), decay=0.5)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter += 1
    before = {name: value.clone() for name, value in ema.shadow.items()}
    ema.update(network)  # at the start's decay of 0.1
    assert list(ema.shadow) == list(network.state_dict())
    torch.testing.assert_close(ema.shadow["0.weight"], before["0.weight"] + 0.9)


def test_ema_of_another_network() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        ema_of(norm_network(), decay=0.9).copy_to(nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)))
