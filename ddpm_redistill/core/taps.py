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
    layers = [_layer(network, tap.path) for tap in taps]  # all, before the first hook
    handles = []
    for tap, layer in zip(taps, layers, strict=True):

        def before(module: nn.Module, args: tuple, kwargs: dict, tap: Tap = tap) -> None:
            keep(tap, args[0] if args else kwargs["hidden_states"])

        def after(module: nn.Module, args: tuple, output: torch.Tensor, tap: Tap = tap) -> None:
            keep(tap, output)

        if tap.side == "input":
            handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        else:
            handles.append(layer.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layer(network: nn.Module, path: str) -> nn.Module:
    try:
        return network.get_submodule(path)
    except AttributeError:
        raise KeyError(f"no layer {path!r} in {type(network).__name__}: cannot read it") from None
