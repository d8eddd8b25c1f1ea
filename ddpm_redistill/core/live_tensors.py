"""Every tensor of a forward pass from birth to death: live bytes after each operation, exact.

Storages are followed at the dispatcher, so nothing depends on an allocator. What a convolution or a matrix
product takes inside its kernel (im2col, packing) is not a tensor and is not seen; nor is anything an allocator
rounds up. Imports torch only.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, kw_only=True)
class LiveTensor:
    """One storage born during the forward: who made it, the shape it was made with, its size in bytes."""

    module: str
    operation: str
    shape: tuple[int, ...]
    bytes: int
    born: int  # index into LiveTensorTracker.timeline of the operation that made it


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One dispatched operation: the live bytes just after it, and the tracked tensors that it read."""

    name: str
    module: str
    live_bytes: int
    reads: tuple[int, ...]  # indices into LiveTensorTracker.tensors


class LiveTensorTracker(TorchDispatchMode):
    """Follow the exact live bytes of every untyped storage born while the mode is on.

    A storage counts once, however many views it has, from the operation that returns it until its last
    reference is gone; the tracker itself holds weak references only. Measured after each operation, when its
    inputs and outputs are alive together. Works on real and on fake tensors, and knows no architecture.

        with LiveTensorTracker(module, external=[*module.parameters(), *module.buffers(), x]) as tracker:
            module(x)
        tracker.peak_bytes, tracker.peak_operation, tracker.live_at_peak, tracker.timeline

    Args:
        module: its forward hooks name the module that an operation runs in; removed on leaving the `with`.
        external: tensors that exist already and are not counted (parameters, buffers, inputs).
    """

    def __init__(self, module: nn.Module, external: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.module = module
        # Kept alive inside the `with` only, so that an address in it cannot come to mean another storage.
        self._external = {t.untyped_storage()._cdata: t.untyped_storage() for t in external}
        # address of a storage: (index in `tensors`, weak reference)
        self._live: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        self._path: list[str] = []
        self._hooks = ExitStack()
        self.tensors: list[LiveTensor] = []
        self.timeline: list[Operation] = []
        self.live_bytes = 0
        self.peak_bytes = 0
        self.peak_operation = ""
        self.peak_module = ""
        self.live_at_peak: tuple[LiveTensor, ...] = ()

    def __enter__(self) -> LiveTensorTracker:
        paths: dict[nn.Module, list[str]] = {}
        for path, module in self.module.named_modules(remove_duplicate=False):
            paths.setdefault(module, []).append(path)
        for module, its_paths in paths.items():
            pre_hook = module.register_forward_pre_hook(self._entering(its_paths), prepend=True)
            self._hooks.callback(pre_hook.remove)
            self._hooks.callback(module.register_forward_hook(self._leaving, always_call=True).remove)
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        self._hooks.close()
        self._external.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "prim":  # a fake tensor asked for its device, say: a real one answers in silence
            return out
        for t in tensors_in(out):
            self._count(t, str(func))
        read = [self.index_of(t) for t in tensors_in((args, kwargs))]
        reads = tuple(index for index in read if index is not None)
        self.timeline.append(
            Operation(name=str(func), module=self.module_path, live_bytes=self.live_bytes, reads=reads)
        )
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes = self.live_bytes
            self.peak_operation, self.peak_module = str(func), self.module_path
            alive = [self.tensors[index] for index, _ in self._live.values()]
            self.live_at_peak = tuple(sorted(alive, key=lambda tensor: -tensor.bytes))
        return out

    @property
    def module_path(self) -> str:
        """Dotted path of the module whose forward is running; empty for the root, and outside of it."""
        return self._path[-1] if self._path else ""

    def index_of(self, t: Tensor) -> int | None:
        """Index in `tensors` of the storage behind `t`; None when it is external or was never seen."""
        index, _ = self._live.get(t.untyped_storage()._cdata, (None, None))
        return index

    def _entering(self, paths: list[str]) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            # A module registered under several names goes by the one inside the module that calls it.
            here = self.module_path
            self._path.append(next((path for path in paths if path.startswith(f"{here}.")), paths[0]))

        return hook

    def _leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._path:
            self._path.pop()

    def _count(self, t: Tensor, operation: str) -> None:
        storage = t.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._external:
            return
        if key in self._live:  # a view or an in-place result; only a resize_ changes its size
            index, _ = self._live[key]
            if size != self.tensors[index].bytes:
                self.live_bytes += size - self.tensors[index].bytes
                self.tensors[index] = replace(self.tensors[index], bytes=size)
        elif size:
            index = len(self.tensors)

            def died(_: Any) -> None:
                del self._live[key]
                self.live_bytes -= self.tensors[index].bytes

            self._live[key] = (index, weakref.ref(storage, died))
            self.live_bytes += size
            where, shape, born = self.module_path, tuple(t.shape), len(self.timeline)
            self.tensors.append(LiveTensor(module=where, operation=operation, shape=shape, bytes=size, born=born))


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors among the leaves of nested lists, tuples and dictionaries."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
