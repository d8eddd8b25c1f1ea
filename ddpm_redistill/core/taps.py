"""Read feature maps at named layers of any network, and leave nothing behind."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, NamedTuple

import torch
from torch import nn


class Tap(NamedTuple):
    """One side of one layer, by its module path."""

    path: str
    side: Literal["input", "output"]


Maps = dict[Tap, torch.Tensor]


class Reader:
    """Runs a network and hands out its maps at ``taps``; made by ``reading``.

    Its hooks stay while it is open and do nothing between two runs, so that a compiled function that calls ``run`` is
    traced with them once and holds for all steps.
    """

    def __init__(self, network: nn.Module, taps: Sequence[Tap]):
        self.taps = tuple(dict.fromkeys(taps))
        self._owner = type(network).__name__
        self._maps: Maps | None = None
        self._stops = False

    def run(self, network: Callable[..., Any], *inputs: Any, to_last_tap: bool = False) -> tuple[Any, Maps]:
        """-> (``network(*inputs)``, its map (B, C, H, W) at each tap). The caller's grad mode holds.

        Args:
            network: the one that is read, or what calls it.
            to_last_tap: run it no further than the last of the taps that is met; its output is then None. A compiled
                graph has no such end: there the compiler removes what no result needs.

        Raises:
            KeyError: a layer that is read did not run.
        """
        self._maps, self._stops = {}, to_last_tap
        output = None
        try:
            with suppress(_AllRead):
                output = network(*inputs)
            maps = self._maps
        finally:
            self._maps = None
        for tap in self.taps:
            if tap not in maps:
                raise KeyError(f"layer {tap.path!r} of {self._owner} did not run: cannot read it")
        return (None if to_last_tap else output), maps

    def _keep(self, tap: Tap, value: torch.Tensor) -> None:
        if self._maps is None:
            return
        self._maps[tap] = value
        if self._stops and len(self._maps) == len(self.taps) and not torch.compiler.is_compiling():
            raise _AllRead


class _AllRead(Exception):
    """Ends a forward of which nothing more is needed."""


@contextmanager
def reading(network: nn.Module, taps: Sequence[Tap]) -> Iterator[Reader]:
    """Within the block the reader's hooks are on the network; on leaving they are removed.

    Raises:
        KeyError: a tap names no layer of the network.
    """
    reader = Reader(network, taps)
    layers = [_layer(network, tap.path) for tap in reader.taps]  # all, before the first hook
    handles = []
    for tap, layer in zip(reader.taps, layers, strict=True):

        def before(module: nn.Module, args: tuple, kwargs: dict, tap: Tap = tap) -> None:
            reader._keep(tap, args[0] if args else kwargs["hidden_states"])

        def after(module: nn.Module, args: tuple, output: torch.Tensor, tap: Tap = tap) -> None:
            reader._keep(tap, output)

        if tap.side == "input":
            handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        else:
            handles.append(layer.register_forward_hook(after))
    try:
        yield reader
    finally:
        for handle in handles:
            handle.remove()


def _layer(network: nn.Module, path: str) -> nn.Module:
    try:
        return network.get_submodule(path)
    except AttributeError:
        raise KeyError(f"no layer {path!r} in {type(network).__name__}: cannot read it") from None
