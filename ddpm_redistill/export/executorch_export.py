"""An ExecuTorch program, ``.pte``, for phones and microcontrollers, with all of its memory planned ahead.

Portable kernels, no delegate: every activation is then a place in one arena whose size is known before anything runs.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torch import Tensor
from torch.export import ExportedProgram

from ..errors import UserError
from ..sources.image_files import one_line
from .description import as_properties
from .program_file import open_program
from .verify import Call

log = logging.getLogger("ddpm_redistill")


def write_executorch(program: ExportedProgram, path: Path, description: dict[str, Any]) -> None:
    """Method ``forward``; the description is the constant method ``ddpm_redistill``, a text.

    Raises:
        UserError: ExecuTorch has no portable kernel for something in the network.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its own classes
            lowered = to_edge_transform_and_lower(program, constant_methods=as_properties(description))
            made = lowered.to_executorch()
    except Exception as error:  # the compiler's many types
        raise UserError(f"ExecuTorch cannot take this network: {one_line(error)}") from error
    path.write_bytes(made.buffer)
    arena = open_program(str(path)).memory["planned_arena"]
    log.info("planned arena: %s bytes, for inputs, output and every activation of a call", f"{arena:,}")


def call_executorch(path: Path) -> Call:
    """The network in a program, by ExecuTorch's own runtime."""
    method = Runtime.get().load_program(path).load_method("forward")

    def call(*inputs: Tensor) -> Tensor:
        prediction: Tensor = method.execute([each.contiguous() for each in inputs])[0]
        return prediction

    return call
