"""What a stranger's folder is spoilt with, and that it is refused without a trace."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import UNET_WEIGHTS

from ddpm_redistill import UserError, load_pipeline, load_teacher
from ddpm_redistill.cli import main

Spoil = Callable[[Path, Path], None]
"""What is done to a folder; the second path is one that its code would make."""


class Payload:
    """Pickled, it is a call that makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def pickled_weights(folder: Path, marker: Path) -> None:
    (folder / UNET_WEIGHTS).unlink()
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "model.ckpt"):
        torch.save(Payload(marker), folder / "unet" / name)


def snapshot(place: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in place.rglob("*")}


def assert_refused(folder: Path, words: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By Python and by the command line, and nothing in ``place`` changes."""
    before = snapshot(place)
    for load in (load_teacher, load_pipeline):
        with pytest.raises(UserError) as raised:
            load(str(folder))
        assert words in str(raised.value)
    with pytest.raises(SystemExit) as ended:
        main(["sample", str(folder), "--output", str(place / "out"), "--num_images", "1", "--steps", "1"])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    assert snapshot(place) == before
