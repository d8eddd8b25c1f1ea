"""CUDA graphs on a CPU: what is captured is recorded operation by operation, and replayed into the same memory.

It has what makes a graph different from a function: numbers of Python are those of the capture, inputs are read where
they lay then, and results are written where they were. What a capture forbids is an error: to wait for a number, and to
make a tensor of Python's numbers, which is a copy to the device that is waited for.
"""

from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ddpm_redistill import RedDDPMPipeline

aten = torch.ops.aten
FORBIDDEN = {aten._local_scalar_dense.default, aten.lift_fresh.default, aten.nonzero.default}
WITHOUT_VALUES = {"aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided"}


class FakeGraph:
    """As ``torch.cuda.CUDAGraph``."""

    made: list["FakeGraph"]

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.replays = 0
        FakeGraph.made.append(self)

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for function, args, kwargs, outputs in self.calls:
            schema = function._schema
            if torch.Tag.inplace_view in function.tags:
                continue
            if schema.is_mutable:
                function(*args, **kwargs)
            elif schema.name not in WITHOUT_VALUES and not any(value.alias_info for value in schema.returns):  # no view
                for held, new in zip(tree_leaves(outputs), tree_leaves(function(*args, **kwargs)), strict=True):
                    if isinstance(held, torch.Tensor):
                        held.copy_(new)


class Recording(TorchDispatchMode):
    def __init__(self, graph: FakeGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in FORBIDDEN:
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}\nand more lines")
        given = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs or {}))  # of the shapes of now
        outputs = function(*args, **(kwargs or {}))
        held = tree_map_only(torch.Tensor, torch.Tensor.detach, outputs)
        self.graph.calls.append((function, *given, held))
        return outputs


class FakeStream:
    def wait_stream(self, other: Any) -> None:
        pass


@contextmanager
def fake_capture(graph: FakeGraph, capture_error_mode: str) -> Any:
    assert capture_error_mode == "thread_local"
    with Recording(graph):
        yield


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[FakeGraph]:
    """Every pipeline captures, as on a GPU -> the graphs that are made."""
    FakeGraph.made = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", fake_capture)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(RedDDPMPipeline, "_captures", property(lambda self: self.compile is not False))
    return FakeGraph.made
