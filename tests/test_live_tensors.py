"""The tracker by itself: births and deaths, module paths, views and resizes."""

import torch
from torch import Tensor, nn

from ddpm_redistill.core.live_tensors import LiveTensorTracker


def test_tracker_timeline_and_deaths() -> None:
    network, x = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.ReLU()), torch.zeros(100)
    with torch.no_grad(), LiveTensorTracker(network, [x]) as tracker:
        y = network(x)
        assert tracker.live_bytes == 400
        del y
        assert tracker.live_bytes == 0
    assert [(op.module, op.live_bytes) for op in tracker.timeline] == [("0", 400), ("1", 800), ("2", 800)]
    assert [op.reads for op in tracker.timeline] == [(), (0,), (1,)]
    assert tracker.peak_bytes == 800
    assert tracker.peak_module == "1"  # the first to reach it


def test_module_path_survives_a_failure_that_the_forward_catches() -> None:
    class Fallback(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            try:
                y: Tensor = self.linear(x)
            except RuntimeError:
                y = x.relu()
            return y

    module = nn.Sequential(Fallback())
    with LiveTensorTracker(module) as tracker:
        module(torch.zeros(3))
    assert (tracker.timeline[-1].name, tracker.timeline[-1].module) == ("aten.relu.default", "0")


def test_shared_module_goes_by_the_path_of_its_caller() -> None:
    shared = nn.ReLU()
    network = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.Sequential(shared)})
    x = torch.zeros(4)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = network

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.part["b"](self.part["a"](x))
            return y

    module = Both()
    with LiveTensorTracker(module, [x]) as tracker:
        module(x)
    assert [op.module for op in tracker.timeline] == ["part.a.0", "part.b.0"]


def test_resized_storage_is_counted_anew() -> None:
    with LiveTensorTracker(nn.Identity()) as tracker:
        t = torch.zeros(10)
        t.resize_(1000)
        assert tracker.live_bytes == tracker.peak_bytes == 4000
