"""The states of a run's modules and of its optimizer, flat, by the names of the parameters: what a checkpoint holds."""

import torch
from torch import nn

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


def adam_state(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, torch.Tensor]:
    """Adam's moments and step counts, flat, by parameter name; ``names`` in the order of the parameters."""
    state = optimizer.state_dict()["state"]
    return {f"{key}/{names[i]}": value for i, entry in state.items() for key, value in entry.items()}


def restore_adam_state(optimizer: torch.optim.Optimizer, names: list[str], flat: dict[str, torch.Tensor]) -> None:
    """The inverse of ``adam_state``."""
    entries: dict[int, dict[str, torch.Tensor]] = {}
    positions = {name: i for i, name in enumerate(names)}
    for key, value in flat.items():
        kind, name = key.split("/", 1)
        entries.setdefault(positions[name], {})[kind] = value.clone()  # off the mapped file, and aligned
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
