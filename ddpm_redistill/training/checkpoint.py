"""Checkpoints that are complete or absent: safetensors and JSON, written aside, flushed, renamed.

checkpoints/step-000500/  model.safetensors  ema.safetensors  optimizer.safetensors  state.json
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import UserError

LOSS_PREFIX = "loss."  # of the names of what is trained with the network and is no part of it
FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on: two network states by name, Adam's state, and counters as JSON."""

    model: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write ``folder/step-NNNNNN``, N the checkpoint's step, then drop all but the newest ``keep`` (0: drop none).

    Raises:
        UserError: a value is NaN or infinite; nothing is written.
    """
    for part in ("model", "ema", "optimizer"):
        for name, value in getattr(checkpoint, part).items():
            if not value.isfinite().all():
                what = f"{name} of the {part} is not finite after step {checkpoint.state['step']}"
                raise UserError(f"{what}; {last_good(folder)}: lower training.learning_rate")
    final = folder / f"step-{checkpoint.state['step']:06d}"
    aside = folder / f".writing-{final.name}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name in ("model", "ema", "optimizer"):
        tensors = {key: value.detach().cpu().contiguous() for key, value in getattr(checkpoint, name).items()}
        save_file(tensors, aside / f"{name}.safetensors")
    (aside / "state.json").write_text(json.dumps(checkpoint.state, indent=2))
    for path in aside.iterdir():
        _flush(path)
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    _flush(folder)
    if keep:
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    complete = [path for path in folder.glob("step-*") if all((path / name).is_file() for name in FILES)]
    return sorted(complete, key=lambda path: (len(path.name), path.name))  # by number: step-1000000 is past six digits


def last_good(folder: Path) -> str:
    """For people: the newest checkpoint, all of which are finite, or that there is none."""
    checkpoints = list_checkpoints(folder)
    return f"last good checkpoint {checkpoints[-1]}" if checkpoints else "no checkpoint yet"


def load_checkpoint(path: Path) -> Checkpoint:
    """Raises UserError when a file cannot be read."""
    try:
        model, ema, optimizer = (load_file(path / name) for name in FILES[:3])
        return Checkpoint(model, ema, optimizer, json.loads((path / "state.json").read_text()))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"checkpoint {path} cannot be read ({error}): delete it to resume from an older one") from error


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


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
