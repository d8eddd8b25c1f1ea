"""Checkpoints that are complete or absent: safetensors and JSON, written aside, flushed, renamed, and told from damage.

checkpoints/step-000500/  model.safetensors  ema.safetensors  optimizer.safetensors  state.json
                          manifest.json: bytes and sha256 of each of these, written last
"""

import hashlib
import json
import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import UserError
from ..files import flush
from .disk import written

log = logging.getLogger("ddpm_redistill")

TENSORS = ("model", "ema", "optimizer")
MANIFEST = "manifest.json"
FILES = (*(f"{name}.safetensors" for name in TENSORS), "state.json", MANIFEST)


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on: two network states by name, the optimizer's, and counters as JSON."""

    model: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write ``folder/step-NNNNNN``, N the checkpoint's step, then drop all but the newest ``keep`` (0: drop none).

    Raises:
        UserError: a value is NaN or infinite, or the disk refused it; those that were there before still are, and
            nothing is left of this one.
    """
    for part in TENSORS:
        for name, value in getattr(checkpoint, part).items():
            if not value.isfinite().all():
                what = f"{name} of the {part} is not finite after step {checkpoint.state['step']}"
                raise UserError(f"{what}; {last_good(folder)}: lower training.learning_rate")
    final = folder / f"step-{checkpoint.state['step']:06d}"
    aside = folder / f".writing-{final.name}"
    tensors = {part: getattr(checkpoint, part) for part in TENSORS}
    need = sum(value.nbytes for part in tensors.values() for value in part.values())
    hint = f"{last_good(folder)}: make room, then go on with --resume"
    with written(final, need, hint):
        for left in folder.glob(".*-step-*"):  # by a kill
            shutil.rmtree(left, ignore_errors=True)
        try:
            _write(aside, tensors, checkpoint.state)
            _remove(final)  # of an earlier try that turned out damaged
            aside.rename(final)
            flush(folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        if keep:
            _prune(folder, final, keep)
    return final


def _write(aside: Path, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any]) -> None:
    aside.mkdir(parents=True)
    for part, values in tensors.items():
        own = {key: value.detach().cpu().contiguous() for key, value in values.items()}
        save_file(own, aside / f"{part}.safetensors")
    (aside / "state.json").write_text(json.dumps(state, indent=2))
    manifest = {path.name: _identity(path) for path in sorted(aside.iterdir())}
    (aside / MANIFEST).write_text(json.dumps(manifest, indent=2))
    for path in (*aside.iterdir(), aside):
        flush(path)


def _prune(folder: Path, newest: Path, keep: int) -> None:
    """Leave ``newest``, just written, and the ``keep - 1`` before it. One of a later step is none to go on from: the
    run went back behind it because it was damaged."""
    others = [path for path in _folders(folder) if path != newest]
    before = [path for path in others if _step(path) < _step(newest)]
    for old in others:
        if old not in before[len(before) - (keep - 1) :]:
            _remove(old)


def list_checkpoints(folder: Path) -> list[Path]:
    """Those with all their files, oldest first; whether these are intact, ``damage`` says."""
    return [path for path in _folders(folder) if all((path / name).is_file() for name in FILES)]


def last_good(folder: Path) -> str:
    """For people: the newest checkpoint, all of which are finite, or that there is none."""
    checkpoints = list_checkpoints(folder)
    return f"last good checkpoint {checkpoints[-1]}" if checkpoints else "no checkpoint yet"


def newest_step(folder: Path) -> int:
    """Of the checkpoints that have all their files, 0 if there is none."""
    return max(map(_step, list_checkpoints(folder)), default=0)


def newest_intact(folder: Path) -> Path | None:
    """The checkpoint to go on from, or None if there never was one. Each damaged one that is newer is logged.

    Raises:
        UserError: there are some, and all are damaged.
    """
    found = _folders(folder)
    for path in reversed(found):
        wrong = damage(path)
        if wrong is None:
            return path
        log.warning("checkpoint %s is damaged and passed over: %s", path, wrong)
    if found:
        raise UserError(
            f"no checkpoint in {folder} is intact, of {len(found)} that are there: delete {folder} to start the run"
            " from its beginning with --resume"
        )
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, in words, or None: every file must have the bytes that its manifest says."""
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        wanted = {name: (manifest[name]["bytes"], manifest[name]["sha256"]) for name in FILES if name != MANIFEST}
    except (ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
    for name, (size, digest) in wanted.items():
        try:
            found = _identity(path / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found["bytes"] != size:
            return f"{name} has {found['bytes']} bytes, not {size}"
        if found["sha256"] != digest:
            return f"{name} is not what was written (its sha256 differs)"
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Raises UserError when a file cannot be read."""
    try:
        model, ema, optimizer = (load_file(path / f"{part}.safetensors") for part in TENSORS)
        return Checkpoint(model, ema, optimizer, json.loads((path / "state.json").read_text()))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from error


def _identity(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _folders(folder: Path) -> list[Path]:
    """Of every checkpoint, damaged or not, by step."""
    named = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name) and path.is_dir()]
    return sorted(named, key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _remove(path: Path) -> None:
    """Whole or not at all: renamed first, so that a kill leaves no half of it under its name."""
    if path.exists():
        aside = path.with_name(f".deleting-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside)
