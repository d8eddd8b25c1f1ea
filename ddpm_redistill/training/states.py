"""The states of a run's modules and of its optimizer, flat, by the names of the parameters: what a checkpoint holds."""

import torch
from torch import nn

from ..core.flat import FlatParameters

KINDS = {"Adam": ("exp_avg", "exp_avg_sq", "step"), "SGD": ("momentum_buffer",)}
"""What an optimizer keeps, by its class in torch: vectors, and of Adam the number of its steps."""
LOSS_PREFIX = "loss."  # of the names of what is trained with the network and is no part of it


def named_parameters(network: nn.Module, loss_modules: nn.Module | None) -> dict[str, nn.Parameter]:
    """All that is trained: the network's parameters by their own names, those of the loss under ``loss.``."""
    extra = () if loss_modules is None else loss_modules.named_parameters(LOSS_PREFIX.rstrip("."))
    return {**dict(network.named_parameters()), **dict(extra)}


def joined_state(network: nn.Module, loss_modules: nn.Module | None) -> dict[str, torch.Tensor]:
    """Both state dicts as one, under the names of ``named_parameters``."""
    state = network.state_dict()
    return state if loss_modules is None else loss_modules.state_dict(destination=state, prefix=LOSS_PREFIX)


def load_joined_state(network: nn.Module, loss_modules: nn.Module | None, state: dict[str, torch.Tensor]) -> None:
    """The inverse of ``joined_state``. Raises RuntimeError when names or shapes differ."""
    own = dict(state)
    if loss_modules is not None:
        extra = {name: own.pop(name) for name in state if name.startswith(LOSS_PREFIX)}
        loss_modules.load_state_dict({name.removeprefix(LOSS_PREFIX): value for name, value in extra.items()})
    network.load_state_dict(own)


def optimizer_state(optimizer: torch.optim.Optimizer, flat: FlatParameters) -> dict[str, torch.Tensor]:
    """What the optimizer keeps of every parameter: ``exp_avg/NAME`` and so on. Empty before the first step."""
    entry = optimizer.state.get(flat.vector)
    if not entry:
        return {}
    state: dict[str, torch.Tensor] = {}
    for kind in KINDS[type(optimizer).__name__]:
        value = entry[kind]
        pieces = flat.views(value) if value.dim() else {name: value.clone() for name in flat.parameters}
        state |= {f"{kind}/{name}": piece for name, piece in pieces.items()}
    return state


def restore_optimizer_state(
    optimizer: torch.optim.Optimizer, flat: FlatParameters, state: dict[str, torch.Tensor]
) -> None:
    """The inverse of ``optimizer_state``. Raises KeyError or RuntimeError when names or shapes differ."""
    if not state:
        return
    entry = {}
    for kind in KINDS[type(optimizer).__name__]:
        if kind == "step":
            entry[kind] = torch.stack([state[f"step/{name}"] for name in flat.parameters]).max()
            continue
        entry[kind] = torch.zeros_like(flat.vector.detach())
        for name, piece in flat.views(entry[kind]).items():
            piece.copy_(state[f"{kind}/{name}"].view(piece.shape))
    optimizer.load_state_dict({"state": {0: entry}, "param_groups": optimizer.state_dict()["param_groups"]})
