"""ONNX: one file that onnxruntime and other runtimes read, written by torch's dynamo exporter."""

import logging
import warnings
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from torch import Tensor
from torch.export import ExportedProgram

from ..errors import UserError
from ..sources.image_files import one_line
from ..sources.onnx_model import open_session
from .description import as_properties
from .verify import Call

OPSETS = range(18, 26)
"""What the exporter writes; other runtimes may stop earlier."""
DEFAULT_OPSET = 18
"""The lowest: the most runtimes read it. From 21 on group norms are one node, which onnxruntime takes apart again."""
LARGEST = 2**31
"""Bytes that one ONNX file can have, a limit of protobuf."""


def write_onnx(
    program: ExportedProgram,
    path: Path,
    description: dict[str, Any],
    opset: int = DEFAULT_OPSET,
    output: str = "prediction",
) -> None:
    """Inputs as the program's, one ``output``. Of a DDPM ``sample`` float32 (B, C, H, W), ``timestep`` int64 (B,) and
    with classes ``class_labels`` int64 (B,), output ``prediction`` (B, C, H, W); of a classifier ``images`` float32 (B,
    C, H, W), output ``logits`` (B, K).

    Raises:
        UserError: the exporter cannot express the network in this opset, or it is too large for one file.
    """
    size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    if size >= LARGEST:
        raise UserError(f"the weights take {size:,} bytes: an ONNX file ends at {LARGEST:,}")
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own classes
            exported = torch.onnx.export(
                program,
                input_names=list(program.graph_signature.user_inputs),
                output_names=[output],
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter's many types
        raise UserError(f"torch cannot export this network to ONNX: {one_line(error)}") from error
    assert exported is not None
    model = exported.model
    if model.opset_imports[""] != opset:  # the exporter goes on with another one
        raise UserError(f"torch cannot express this network in opset {opset}: it takes {model.opset_imports['']}")
    strip(model)
    model.metadata_props.update(as_properties(description))
    onnx_ir.save(model, path)


def strip(model: onnx_ir.Model) -> None:
    """Drop the exporter's notes on where each node came from: paths of this machine, a fifth of a small file."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


def call_onnx(path: Path) -> Call:
    """The network in a file, by onnxruntime."""
    session = open_session(str(path))
    names = [each.name for each in session.get_inputs()]

    def call(*inputs: Tensor) -> Tensor:
        given = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return call
