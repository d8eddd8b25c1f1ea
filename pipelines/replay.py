"""A function of tensors run again and again: as it is, compiled by torch, or captured as a CUDA graph."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("ddpm_redistill")

WARM_UP = 2
"""Calls before a capture: cuBLAS, cuDNN and Triton set themselves up in the first, which a graph must not hold."""

Function = Callable[..., tuple[Tensor, ...]]
Inputs = tuple[Tensor | None, ...]


class Replay:
    """Calls ``function``, which takes tensors or None and gives a tuple of tensors, a function of these alone.

    Args:
        compiled: by torch.compile (inductor), once for each shape of the inputs.
        captured: on CUDA, as one graph for each shape, so that a call launches one thing instead of hundreds. It holds
            the addresses of whatever the function reads beside its inputs (a network's weights): these may be written
            to, but must stay where they are.

    Where torch cannot compile or capture, one line says so, and the function is called as it is, with the same results.
    """

    def __init__(self, function: Function, *, compiled: bool = False, captured: bool = False):
        self.function = function
        self.captured = captured
        self._compiled: Function | None = None
        if compiled:  # whole or not at all, and for one shape: a graph with breaks is no faster
            self._compiled = torch.compile(function, fullgraph=True, dynamic=False)
        self._ready: dict[Any, Function] = {}

    @property
    def is_plain(self) -> bool:
        return self._compiled is None and not self.captured

    def __call__(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        return self.prepare(*inputs)(*inputs)

    def prepare(self, *inputs: Tensor | None) -> Function:
        """Compile and capture for inputs of these shapes, if that is still to be done -> what is called for them."""
        if self.is_plain:
            return self.function
        key = tuple(None if x is None else (x.shape, x.dtype, x.device) for x in inputs)
        if key not in self._ready:
            self._ready[key] = self._make(inputs)
        return self._ready[key]

    def _make(self, inputs: Inputs) -> Function:
        run = self.function
        if self._compiled is not None:
            log.info(
                "compiling the network for sampling takes about a minute; torch keeps the result for later runs"
                " (TORCHINDUCTOR_CACHE_DIR names the folder)"
            )
            try:
                self._compiled(*inputs)
                run = self._compiled
            except Exception as error:  # torch's compilers raise almost any type
                log.warning("sampling goes on without compilation, which failed: %s", first_line(error))
        if self.captured:
            try:
                return Captured(run, inputs)
            except Exception as error:
                log.warning("sampling goes on without a CUDA graph, whose capture failed: %s", first_line(error))
        return run


class Captured:
    """A function captured once in a CUDA graph, for inputs of one shape."""

    def __init__(self, function: Function, inputs: Inputs):
        self.inputs = tuple(None if x is None else x.clone() for x in inputs)
        device = next(x.device for x in self.inputs if x is not None)
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    function(*self.inputs)
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            # thread_local: what another thread asks of the device meanwhile, pinned memory say, is no error
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.outputs = function(*self.inputs)

    def __call__(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        for held, given in zip(self.inputs, inputs, strict=True):
            if held is not None and given is not None:
                held.copy_(given)
        self.graph.replay()
        return tuple(output.clone() for output in self.outputs)


def first_line(error: Exception) -> str:
    """Of what it says, or its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
