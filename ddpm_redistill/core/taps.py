"""Read feature maps at named layers of any network, inside a ``with``, and leave nothing behind."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

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
    modules = dict(network.named_modules())
    missing = [tap.path for tap in taps if tap.path not in modules]
    if missing:
        raise KeyError(f"no layer {missing[0]!r} in {type(network).__name__}: cannot read it")
    maps: dict[Tap, torch.Tensor] = {}
    handles = []
    for tap in taps:

        def keep(module: nn.Module, args: tuple, kwargs: dict, output: torch.Tensor, tap: Tap = tap) -> None:
            maps[tap] = output if tap.side == "output" else args[0] if args else kwargs["hidden_states"]

        handles.append(modules[tap.path].register_forward_hook(keep, with_kwargs=True))
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
        maps.clear()
