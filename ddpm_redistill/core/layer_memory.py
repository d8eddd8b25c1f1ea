"""The theoretical memory of each layer of a classifier, as ReDistill counts it (Chen et al., TMLR 2025, arXiv
2406.03744), found by running the network: no class and no name of a layer is known.

A plain layer (convolution, pooling, linear layer) counts its input and its output, at batch 1 in bytes and without
weights; a product of two maps (squeeze and excitation) its two inputs and its output. Norms and activations are not
counted. A residual block counts as one:

    largest of its layers + output of its shortcut's own layers, where it has some + block input

As in the authors' figures, a residual block that follows another in a sequence and changes no shape counts the input
of that one for its own. RED blocks are left out: ``paper_memory.py`` counts them. The peak is the largest entry.
Imports torch only.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .paper_memory import RED_BLOCK

LAYERS = ("conv1d", "conv2d", "linear", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d")
SUMS = ("add", "iadd", "radd")
PRODUCTS = ("mul", "imul", "rmul")


def layer_memory(network: nn.Module, *inputs: Tensor) -> list[tuple[str, int]]:
    """-> (path, bytes) of each plain layer and residual block that ran, in the order of the forward.

    Args:
        network: in eval mode; the meta device is enough, since no value is looked at.
        inputs: batch 1, on the network's device.
    """
    recorder = _Recorder(network, inputs)
    with torch.no_grad(), recorder:
        network(*inputs)
    entries: dict[str, int] = {}
    for running, size in recorder.layers:
        block = next((path for path in reversed(running) if path in recorder.shortcuts), None)
        path = running[-1] if block is None else block
        entries[path] = max(entries.get(path, 0), size)
    counted: dict[str, int] = {}  # each block's input
    for path, shortcut in recorder.shortcuts.items():
        before = _item_before(path)
        follows = before in counted and shortcut == 0
        counted[path] = counted[before] if follows else recorder.inputs[path]
    return [(path, size + recorder.shortcuts.get(path, 0) + counted.get(path, 0)) for path, size in entries.items()]


def _item_before(path: str) -> str:
    """In a sequence, whose items have numbers; "" of the first."""
    parent, _, name = path.rpartition(".")
    return f"{parent}.{int(name) - 1}" if name.isdecimal() and int(name) else ""


class _Recorder(TorchFunctionMode):
    """Every layer, and the modules that ran around it, outermost first; of every residual block the bytes of its
    input, and of what its shortcut makes: 0 where that is the input itself.

    A sum of two maps makes a block residual. Its shortcut is the one of the two that fewer layers lie behind.
    """

    def __init__(self, network: nn.Module, inputs: Iterable[Tensor]):
        super().__init__()
        self.layers: list[tuple[tuple[str, ...], int]] = []
        self.shortcuts: dict[str, int] = {}
        self.inputs: dict[str, int] = {}
        self._network = network
        self._hooks = ExitStack()
        self._running: list[tuple[str, Tensor | None]] = [("", None)]
        self._paused = False
        self._kept: list[Tensor] = []  # so that no other tensor gets the id of one that is gone
        self._depths: dict[int, int] = {}  # layers behind each map, by its id
        for value in inputs:
            self._keep(value, 0)

    def __enter__(self) -> "_Recorder":
        for path, module in self._network.named_modules():
            if {name for name, _ in module.named_children()}.issuperset(RED_BLOCK):
                self._hooks.callback(module.register_forward_pre_hook(self._pause).remove)
                self._hooks.callback(module.register_forward_hook(self._go_on).remove)
            if path:
                self._hooks.callback(module.register_forward_pre_hook(self._enter(path)).remove)
                self._hooks.callback(module.register_forward_hook(self._leave).remove)
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        self._hooks.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").strip("_")
        maps = [value for value in tree_leaves((args, kwargs)) if id(value) in self._depths]
        depths = [self._depths[id(value)] for value in maps]
        before = sum(value.nbytes for value in maps)
        out = func(*args, **(kwargs or {}))
        if not maps or not isinstance(out, Tensor):
            for value in tree_leaves(out) if maps else ():
                if isinstance(value, Tensor):
                    self._keep(value, max(depths))
            return out
        is_layer = name in LAYERS
        self._keep(out, max(depths) + is_layer)
        if self._paused:
            return out
        if is_layer or (name in PRODUCTS and len(maps) == 2 and out.dim() == 4):
            self.layers.append((tuple(path for path, _ in self._running), before + out.nbytes))
        if name in SUMS and [value.shape for value in maps] == [out.shape] * 2 and out.dim() == 4:
            self._add_shortcut(maps[depths.index(min(depths))])
        return out

    def _add_shortcut(self, shortcut: Tensor) -> None:
        path, block_input = self._running[-1]
        if block_input is None:
            return
        self.inputs[path] = block_input.nbytes
        own = 0 if shortcut is block_input else shortcut.nbytes
        self.shortcuts[path] = self.shortcuts.get(path, 0) + own

    def _keep(self, value: Tensor, depth: int) -> None:
        self._kept.append(value)
        self._depths[id(value)] = depth

    def _leave(self, *_: Any) -> None:
        self._running.pop()

    def _pause(self, *_: Any) -> None:
        self._paused = True

    def _go_on(self, *_: Any) -> None:
        self._paused = False

    def _enter(self, path: str) -> Callable[..., None]:
        def enter(_: nn.Module, args: Any) -> None:
            self._running.append((path, args[0] if args and isinstance(args[0], Tensor) else None))

        return enter
