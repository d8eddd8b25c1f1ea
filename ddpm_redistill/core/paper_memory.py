"""The theoretical peak memory of ReDistill (Chen et al., TMLR 2025, arXiv 2406.03744), measured by structure.

A residual block is a module with children `conv1` and `conv2`, a RED block one with children `gate_conv` and
`residual_conv`; no class is known by name. For one call of a residual block, in bytes of the tensors seen:

    max(conv1 in + conv1 out + time_emb_proj out, conv2 in + conv2 out) + block input

and the network's peak is the maximum over all calls. A RED block counts its three maps: input, and input and
output of `residual_conv`. The authors' code leaves out the long skip connections that are alive meanwhile;
`peak(with_skips=True)` adds them: tensors made before the block is entered that a concatenation after it has
left still reads (directly or as a view), each storage once and the block's own input not again.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from .live_tensors import LiveTensorTracker

RESIDUAL_BLOCK = ("conv1", "conv2")
RED_BLOCK = ("gate_conv", "residual_conv")
TIME_EMBEDDING = "time_emb_proj"
CONCATENATION = "aten.cat."


@dataclass(kw_only=True)
class BlockCall:
    """One call of a block, sizes in bytes."""

    path: str
    red: bool
    input_bytes: int
    input_index: int | None  # of the block's input in tracker.tensors; None for an input of the network
    entered: int  # operations dispatched before the call
    left: int = 0  # and when it returned
    child_bytes: dict[str, tuple[int, int]] = field(default_factory=dict)  # child's name: (in, out)

    def paper_bytes(self) -> int:
        """The block's theoretical memory: three maps of a RED block, the formula above for a residual one."""
        if self.red:
            return sum(self.child_bytes["residual_conv"]) + self.input_bytes
        _, time_embedding = self.child_bytes.get(TIME_EMBEDDING, (0, 0))
        first = sum(self.child_bytes["conv1"]) + time_embedding
        second = sum(self.child_bytes["conv2"])
        return max(first, second) + self.input_bytes


class ResidualBlockRecorder:
    """Record the maps of every residual and RED block that runs inside the `with`; its hooks end there.

    Args:
        module: the network.
        tracker: the tracker of the same forward, entered before; its timeline tells which skips are alive.
    """

    def __init__(self, module: nn.Module, tracker: LiveTensorTracker) -> None:
        self._module = module
        self._tracker = tracker
        self._hooks = ExitStack()
        self.calls: list[BlockCall] = []

    def __enter__(self) -> ResidualBlockRecorder:
        for path, module in self._module.named_modules():
            children = {name for name, child in module._modules.items() if child is not None}
            for kind in (RESIDUAL_BLOCK, RED_BLOCK):
                if children.issuperset(kind):
                    self._watch(path, module, kind)
        return self

    def __exit__(self, *exc: Any) -> None:
        self._hooks.close()

    def peak(self, with_skips: bool = False) -> int | None:
        """Paper's peak over the residual blocks, in bytes; None when none ran."""
        calls = [call for call in self.calls if not call.red]
        return max((c.paper_bytes() + (self.skip_bytes(c) if with_skips else 0) for c in calls), default=None)

    def red_peak(self) -> int:
        """Largest three maps of a RED block, in bytes; 0 when none ran."""
        return max((call.paper_bytes() for call in self.calls if call.red), default=0)

    def skip_bytes(self, call: BlockCall) -> int:
        """Bytes of the long skips alive during `call`, its own input aside."""
        skips = {
            index
            for operation in self._tracker.timeline[call.left :]
            if operation.name.startswith(CONCATENATION)
            for index in operation.reads
            if self._tracker.tensors[index].born < call.entered
        }
        return sum(self._tracker.tensors[index].bytes for index in skips - {call.input_index})

    def _watch(self, path: str, block: nn.Module, kind: tuple[str, str]) -> None:
        running: list[BlockCall] = []

        def enter(_: nn.Module, args: Any, kwargs: Any) -> None:
            block_input = _first_tensor(args, kwargs)
            running.append(
                BlockCall(
                    path=path,
                    red=kind == RED_BLOCK,
                    input_bytes=block_input.nbytes,
                    input_index=self._tracker.index_of(block_input),
                    entered=len(self._tracker.timeline),
                )
            )

        def leave(_: nn.Module, args: Any, output: Any) -> None:
            call = running.pop()
            call.left = len(self._tracker.timeline)
            if call.child_bytes.keys() >= set(kind):
                self.calls.append(call)

        def watch_child(name: str, child: nn.Module) -> None:
            def record(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                if running:
                    sizes = _first_tensor(args, kwargs).nbytes, _first_tensor(output).nbytes
                    running[-1].child_bytes[name] = sizes

            self._hooks.callback(child.register_forward_hook(record, with_kwargs=True).remove)

        self._hooks.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
        self._hooks.callback(block.register_forward_hook(leave).remove)
        for name in (*kind, TIME_EMBEDDING):
            child = block._modules.get(name)
            if child is not None:
                watch_child(name, child)


def _first_tensor(*values: Any) -> Tensor:
    return next(value for value in tree_leaves(values) if isinstance(value, Tensor))
