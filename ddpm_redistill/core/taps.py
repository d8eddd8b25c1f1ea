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


@contextmanager
def reading(network: nn.Module, taps: Sequence[Tap]) -> Iterator[dict[Tap, torch.Tensor]]:
    """Within the block every forward fills the dict with the map (B, C, H, W) at each tap.

    On leaving, the hooks are removed and the dict is emptied, so that no map outlives the step.

    Raises:
        KeyError: a tap names no layer of the network.
    """
    maps: dict[Tap, torch.Tensor] = {}
    with _hooked(network, taps, maps.__setitem__):
        try:
            yield maps
        finally:
            maps.clear()


def read_taps(network: nn.Module, taps: Sequence[Tap], *inputs: Any) -> dict[Tap, torch.Tensor]:
    """The map (B, C, H, W) at each tap of ``network(*inputs)``, which is run no further than the last of them.

    The caller's grad mode holds. Hooks are removed whatever happens.

    Raises:
        KeyError: a tap names no layer of the network, or one that does not run.
    """
    maps: dict[Tap, torch.Tensor] = {}

    def keep(tap: Tap, value: torch.Tensor) -> None:
        maps[tap] = value
        if len(maps) == len(set(taps)):
            raise _AllRead

    with _hooked(network, taps, keep), suppress(_AllRead):
        network(*inputs)
    silent = [tap for tap in taps if tap not in maps]
    if silent:
        raise KeyError(f"layer {silent[0].path!r} of {type(network).__name__} did not run: cannot read it")
    return maps


class _AllRead(Exception):
    """Ends a forward of which nothing more is needed."""


@contextmanager
def _hooked(network: nn.Module, taps: Sequence[Tap], keep: Callable[[Tap, torch.Tensor], None]) -> Iterator[None]:
    """Within the block every forward calls ``keep(tap, map)``: before a layer for its input, after for its output."""
    modules = dict(network.named_modules()) if taps else {}  # the listing costs a small network 1% of its step
    missing = [tap.path for tap in taps if tap.path not in modules]
    if missing:
        raise KeyError(f"no layer {missing[0]!r} in {type(network).__name__}: cannot read it")
    handles = []
    for tap in taps:

        def before(module: nn.Module, args: tuple, kwargs: dict, tap: Tap = tap) -> None:
            keep(tap, args[0] if args else kwargs["hidden_states"])

        def after(module: nn.Module, args: tuple, output: torch.Tensor, tap: Tap = tap) -> None:
            keep(tap, output)

        layer = modules[tap.path]
        if tap.side == "input":
            handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        else:
            handles.append(layer.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
