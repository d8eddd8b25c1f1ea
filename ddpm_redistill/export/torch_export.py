"""A ``torch.export`` archive, ``.pt2``: torch runs it with neither this package nor diffusers."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from .description import as_properties
from .verify import Call


def write_torch_export(program: ExportedProgram, path: Path, description: dict[str, Any]) -> None:
    """The description is the archive's extra file ``ddpm_redistill.json``."""
    extra = {f"{name}.json": text for name, text in as_properties(description).items()}
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files=extra)


def call_torch_export(path: Path) -> Call:
    """The network in an archive that this process has just written: an archive of a stranger is not to be trusted."""
    logging.getLogger("torch.export").setLevel(logging.ERROR)
    with path.open("rb") as file:
        network = torch.export.load(file).module()

    def call(*inputs: Tensor) -> Tensor:
        prediction: Tensor = network(*inputs)
        return prediction

    return call
