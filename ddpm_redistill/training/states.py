"""The states of a run's modules and of its optimizer, flat, by the names of the parameters: what a checkpoint holds."""

import torch
from torch import nn

from ..core.flat import FlatParameters

MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam
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


def adam_state(optimizer: torch.optim.Optimizer, flat: FlatParameters) -> dict[str, torch.Tensor]:
    """Adam's moments and step count of every parameter: ``exp_avg/NAME`` and so on. Empty before the first step."""
    entry = optimizer.state.get(flat.vector)
    if not entry:
        return {}
    moments = {f"{key}/{name}": piece for key in MOMENTS for name, piece in flat.views(entry[key]).items()}
    return moments | {f"step/{name}": entry["step"].clone() for name in flat.parameters}


def restore_adam_state(optimizer: torch.optim.Optimizer, flat: FlatParameters, state: dict[str, torch.Tensor]) -> None:
    """The inverse of ``adam_state``. Raises KeyError or RuntimeError when names or shapes differ."""
    if not state:
        return
    entry = {"step": torch.stack([state[f"step/{name}"] for name in flat.parameters]).max()}
    for key in MOMENTS:
        entry[key] = torch.zeros_like(flat.vector.detach())
        for name, piece in flat.views(entry[key]).items():
            piece.copy_(state[f"{key}/{name}"].view(piece.shape))
    optimizer.load_state_dict({"state": {0: entry}, "param_groups": optimizer.state_dict()["param_groups"]})
