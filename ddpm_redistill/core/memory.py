"""Peak memory of one forward pass, by named definitions, with no compute.

Every figure is in bytes and exact: storages are followed from birth to death at the dispatcher, so nothing
depends on an allocator. What a convolution or a matrix product takes inside its kernel (im2col, packing) is
not a tensor and is not seen; nor is anything an allocator rounds up. Imports torch only.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from .paper_memory import ResidualBlockRecorder


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
        self._module = module
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
        for path, module in self._module.named_modules(remove_duplicate=False):
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
        for t in _tensors(out):
            self._count(t, str(func))
        read = [self.index_of(t) for t in _tensors((args, kwargs))]
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


@dataclass(frozen=True, kw_only=True)
class MemoryProfile:
    """Memory of one forward pass under no_grad in eval mode, each definition by its name; bytes throughout.

    paper_peak: ReDistill's theoretical peak (see paper_memory.py); None without a residual block.
    paper_peak_with_skips: the same with the long skip connections that are alive meanwhile.
    red_paper_peak: the largest three maps of a RED block, 0 without one.
    tensor_peak: most bytes of tensors alive at once that the forward itself made.
    tensor_peak_with_input: tensor_peak plus all input tensors, which the caller holds throughout
        (number of elements x element size, each tensor once).
    weights: bytes of parameters and buffers; parameters: number of parameter elements.
    macs: multiply-accumulates of convolutions, matrix products and attention (half of torch's flop count).
    peak_operation, peak_module, live_at_peak: where tensor_peak occurs, and what lives there, largest first.
    """

    paper_peak: int | None
    red_paper_peak: int
    paper_peak_with_skips: int | None
    tensor_peak: int
    tensor_peak_with_input: int
    weights: int
    parameters: int
    macs: int
    peak_operation: str
    peak_module: str
    live_at_peak: tuple[LiveTensor, ...]

    def to_dict(self) -> dict[str, Any]:
        """The profile as plain dictionaries, lists and numbers, ready for JSON."""
        tensors = [{**asdict(t), "shape": list(t.shape)} for t in self.live_at_peak]
        return {**asdict(self), "live_at_peak": tensors}


def profile_memory(module: nn.Module, *inputs: Any, fake: bool = True, **kwargs: Any) -> MemoryProfile:
    """Measure one forward pass `module(*inputs, **kwargs)` by every definition of `MemoryProfile`, in bytes.

    Args:
        module: any module; its training flags, parameters and hooks are afterwards what they were.
        inputs, kwargs: arguments of the forward, of any shapes, e.g. sample (B, C, H, W) and timestep () or
            int. With `fake`, tensors may be meta, fake or real: only shape, stride and dtype are read.
        fake: True runs on fake CPU tensors: nothing is computed, no memory is taken, at any resolution, and
            the module may be on the meta device. False runs `module` for real, where it is.

    Raises:
        ValueError: `fake=False` with a tensor or a module that holds no data (meta or fake).
        Whatever the forward raises; with `fake`, torch's own error if it reads a value out of a tensor.
    """
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    given = _tensors((inputs, kwargs))
    if not fake and any(t.is_meta or isinstance(t, FakeTensor) for t in [*given, *state.values()]):
        raise ValueError("profile_memory(fake=False) computes for real: give real tensors, or use fake=True")

    training = {m: m.training for m in module.modules()}
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext()
    try:
        module.eval()
        with torch.no_grad(), fake_mode:
            if fake:
                inputs, kwargs = tree_map_only(Tensor, _empty_on_cpu, (inputs, kwargs))
                state = {name: _empty_on_cpu(t) for name, t in state.items()}
            external = [*state.values(), *_tensors((inputs, kwargs))]
            # The tracker is entered last, so it sees each operation first, before the counter takes it apart.
            with (
                FlopCounterMode(display=False) as flops,
                LiveTensorTracker(module, external) as tracker,
                ResidualBlockRecorder(module, tracker) as blocks,
            ):
                functional_call(module, state, inputs, kwargs) if fake else module(*inputs, **kwargs)
    finally:
        for m, flag in training.items():
            m.training = flag

    return MemoryProfile(
        paper_peak=blocks.peak(),
        red_paper_peak=blocks.red_peak(),
        paper_peak_with_skips=blocks.peak(with_skips=True),
        tensor_peak=tracker.peak_bytes,
        tensor_peak_with_input=tracker.peak_bytes + sum(t.nbytes for t in {id(t): t for t in given}.values()),
        weights=sum(t.nbytes for t in state.values()),
        parameters=sum(p.numel() for p in module.parameters()),
        macs=flops.get_total_flops() // 2,
        peak_operation=tracker.peak_operation,
        peak_module=tracker.peak_module,
        live_at_peak=tracker.live_at_peak,
    )


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _empty_on_cpu(t: Tensor) -> Tensor:
    """Called under FakeTensorMode: a fake CPU tensor of the shape, stride and dtype of `t`.

    And of its requires_grad: even under no_grad, torch.matmul chooses by it between mm and bmm.
    """
    fake = torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device="cpu")
    return fake.requires_grad_(t.requires_grad)
