"""Live bytes over a forward pass: what is alive after each operation, and how much of that is long skips.

A RED block is known by its children, as in ``paper_memory.py``. A long skip is known by its use, not by a layer's
class or name: a feature map (a tensor of three or more dimensions) that waits, read by no operation, from its last
use in one part of the network to its next in another, while other feature maps are made. The parts are the network's
direct members and its own ``forward``. So a map that a residual block keeps for its sum is no long skip, nor is one on
its way to the next layer.

No concatenation is looked for, so that a network which never joins its skips whole (lean execution) has the same long
skips, as long as its operations run inside its members. A network of a single member, as a wrapper is, has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from .live_tensors import LiveTensorTracker
from .paper_memory import RED_BLOCK

FEATURE_MAP_DIMENSIONS = 3


@dataclass(frozen=True, kw_only=True)
class TimelinePoint:
    """One operation of a forward pass and the bytes alive just after it.

    index: from 0, in the order of execution.
    operation, module: its name (``aten.silu.default``) and the dotted path of the module it ran in.
    live_bytes: of all tensors that the forward made.
    skip_bytes: of the long skips among them.
    red: it ran inside a RED block.
    """

    index: int
    operation: str
    module: str
    live_bytes: int
    skip_bytes: int
    red: bool


def memory_timeline(tracker: LiveTensorTracker) -> tuple[TimelinePoint, ...]:
    """One point for each operation that the tracker saw; to be called when the forward has ended."""
    red_blocks = tuple(
        path
        for path, module in tracker.module.named_modules(remove_duplicate=False)
        if module._modules.keys() >= set(RED_BLOCK)
    )
    skip_bytes = _waiting_bytes(tracker)
    return tuple(
        TimelinePoint(
            index=index,
            operation=operation.name,
            module=operation.module,
            live_bytes=operation.live_bytes,
            skip_bytes=skip_bytes[index],
            red=any(operation.module == path or operation.module.startswith(f"{path}.") for path in red_blocks),
        )
        for index, operation in enumerate(tracker.timeline)
    )


def _waiting_bytes(tracker: LiveTensorTracker) -> list[int]:
    """Bytes of the long skips that wait during each operation."""
    waiting, made = [0] * len(tracker.timeline), [0] * len(tracker.timeline)
    for tensor in tracker.tensors:
        made[tensor.born] += len(tensor.shape) >= FEATURE_MAP_DIMENSIONS
    made = list(accumulate(made))  # feature maps until now
    last_use = [tensor.born for tensor in tracker.tensors]
    for now, operation in enumerate(tracker.timeline):
        for index in set(operation.reads):
            tensor, before = tracker.tensors[index], last_use[index]
            last_use[index] = now
            if len(tensor.shape) < FEATURE_MAP_DIMENSIONS or before == now or made[now - 1] == made[before]:
                continue
            if _part(tracker.timeline[before].module) != _part(operation.module):
                for between in range(before + 1, now):
                    waiting[between] += tensor.bytes
    return waiting


def _part(module: str) -> str:
    """``down_blocks.0.resnets.1`` -> ``down_blocks``; the network itself stays empty."""
    return module.split(".")[0]
