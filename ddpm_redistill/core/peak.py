"""The exact peak of live tensors of whatever runs, backward passes included; of a forward also whether it is above a
limit only: a pass that is past it stops there."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .live_tensors import LiveTensorTracker, tensors_in
from .meta import as_on_cpu, meta_as_cpu, without_data


class _PastLimit(Exception):
    """Live tensors take more than the limit."""


class PeakTracker(LiveTensorTracker):
    """Live bytes and their peak alone, quicker: neither what was read nor which module ran."""

    def __init__(self, external: Iterable[Tensor] = (), limit: float = float("inf")) -> None:
        super().__init__(nn.Identity(), external)
        self._limit = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = self._result(func, args, kwargs or {})
        if func.namespace != "prim":
            for t in (out,) if isinstance(out, Tensor) else tensors_in(out):
                self._count(t, "")
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
            if self.live_bytes > self._limit:
                raise _PastLimit
        return out

    @staticmethod
    def _result(func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)


class _OnMeta(PeakTracker):
    _result = staticmethod(as_on_cpu)


def tensor_peak_within(module: nn.Module, inputs: tuple[Any, ...], limit: float) -> tuple[int, bool]:
    """``profile_memory(module, *inputs).tensor_peak`` and True, or a lower bound above ``limit`` and False.

    On the meta device (``meta.py``), without the other figures of a profile, and stopped by the first operation after
    which more than ``limit`` bytes are alive: a network that is far too large is seen to be in its first layers.

    Args:
        module: a network in eval mode that chooses no device itself, with weights or on the meta device; it is not
            changed.
        inputs: arguments of its forward; of tensors shape and dtype are read.
    """
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state = {name: without_data(t, "meta") for name, t in state.items()}
    inputs = tuple(without_data(given, "meta") if isinstance(given, Tensor) else given for given in inputs)
    tracker = _OnMeta([*state.values(), *tensors_in(inputs)], limit)
    try:
        with torch.no_grad(), meta_as_cpu(tracker):
            functional_call(module, state, inputs)
    except _PastLimit:
        return tracker.peak_bytes, False
    return tracker.peak_bytes, True
