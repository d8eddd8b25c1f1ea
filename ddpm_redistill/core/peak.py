"""The exact tensor peak of a forward, or only that it is above a limit: a pass that is past it stops there."""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from .live_tensors import LiveTensorTracker, tensors_in
from .meta import as_on_cpu, meta_as_cpu, without_data


class _PastLimit(Exception):
    """Live tensors take more than the limit."""


class _LimitedTracker(LiveTensorTracker):
    """Live bytes and their peak alone: neither what was read nor which module ran."""

    def __init__(self, module: nn.Module, external: list[Tensor], limit: float) -> None:
        super().__init__(module, external)
        self._limit = limit

    def __enter__(self) -> Self:
        TorchDispatchMode.__enter__(self)
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = as_on_cpu(func, args, kwargs or {})
        if func.namespace != "prim":
            for t in (out,) if isinstance(out, Tensor) else tensors_in(out):
                self._count(t, "")
            self.peak_bytes = max(self.peak_bytes, self.live_bytes)
            if self.live_bytes > self._limit:
                raise _PastLimit
        return out


def tensor_peak_within(
    module: nn.Module, sample: Tensor, timestep: int, limit: float, labels: Tensor | None = None
) -> tuple[int, bool]:
    """``profile_memory(module, sample, timestep, labels).tensor_peak`` and True, or a lower bound above ``limit`` and
    False.

    On the meta device (``meta.py``), without the other figures of a profile, and stopped by the first operation after
    which more than ``limit`` bytes are alive: a network that is far too large is seen to be in its first layers.

    Args:
        module: a network in eval mode that chooses no device itself, with weights or on the meta device; it is not
            changed.
        sample: (B, C, H, W), of which shape and dtype are read; labels: (B,) of a network with classes.
    """
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state = {name: without_data(t, "meta") for name, t in state.items()}
    inputs = [without_data(tensor, "meta") for tensor in (sample, labels) if tensor is not None]
    tracker = _LimitedTracker(module, [*state.values(), *inputs], limit)
    try:
        with torch.no_grad(), meta_as_cpu(tracker):
            functional_call(module, state, (inputs[0], timestep, *inputs[1:]))
    except _PastLimit:
        return tracker.peak_bytes, False
    return tracker.peak_bytes, True
