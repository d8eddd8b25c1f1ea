"""A model -> a file in another format, held against the original before it is put in place."""

import importlib.util
import logging
import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..families.registry import find_family
from ..files import written_aside
from ..sources.image_files import one_line
from ..sources.images import check_data_range
from .classifier import exportable_classifier
from .ddpm import exportable_ddpm
from .exportable import Exportable
from .verify import INPUTS, TOLERANCE

log = logging.getLogger("ddpm_redistill")

FORMATS = {"onnx": ".onnx", "torch_export": ".pt2", "executorch": ".pte"}
"""Names of formats, with the end of their files' names."""
NEEDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "onnx": ("export", ("onnx", "onnx_ir", "onnxscript", "onnxruntime")),
    "torch_export": ("", ()),
    "executorch": ("executorch", ("executorch",)),
}
"""The extra of a format, and its packages."""
QUANTISED = ("int8_weights", "int8")
CALIBRATION_IMAGES = 256
EXPORTABLE: dict[str, Callable[..., Exportable]] = {"denoise": exportable_ddpm, "classify": exportable_classifier}
"""By the task of the model."""


def export_model(
    ref: str,
    output: str | Path,
    *,
    format: str,
    batch_size: int | None = None,
    opset: int | None = None,
    quantise: str | None = None,
    data: str | None = None,
    data_range: float | None = None,
    calibration_images: int | None = None,
) -> Path:
    """Write a teacher or student to ``output``, whole or not at all -> its path.

    Args:
        format: "onnx", "torch_export" or "executorch".
        batch_size: of every call of the file; None for any, which ExecuTorch has not.
        opset: of ONNX, 18 (default) to 25.
        quantise: ONNX as "int8_weights", or as "int8": activations too, calibrated on ``data``.
        data: training images, of which ``calibration_images`` (256) are taken, for a DDPM with noise of timesteps over
            the schedule; of another size or colour they are made the network's, as in training. For a class-conditional
            network they need labels of its classes.
        data_range: of ``data``, as ``open_images``.

    Raises:
        UserError: a mistake in any argument, before any work; or the file does not give the original's outputs.
    """
    path = Path(output)
    check_request(path, format, batch_size, opset)
    check_quantisation(format, quantise, data, calibration_images)
    check_data_range(data_range, images=data is not None)
    count = CALIBRATION_IMAGES if calibration_images is None else calibration_images
    asked: dict[str, Any] = {"batch_size": batch_size, "quantise": quantise, "data": data, "data_range": data_range}
    model = EXPORTABLE[find_family(ref)[1].TASK](ref, **asked, calibration_images=count)
    writer, caller = _format(format, opset, model.output)
    program = model.trace()
    with written_aside(path) as aside:
        writer(program, aside, model.description)
        error = model.error_of(caller(aside))
        if not error <= TOLERANCE:  # NaN is not
            raise UserError(f"the exported network differs from {ref} by {error:.2g}: more than {TOLERANCE:g}")
        if quantise:
            from .quantise import quantise as quantise_file

            quantise_file(aside, quantise, None if model.feeds is None else model.feeds())
            error = model.error_of(caller(aside))
            if not math.isfinite(error):
                raise UserError(f"{ref} gives values that are not finite as {quantise}")
    size = path.stat().st_size
    log.info("%s: %s bytes; outputs within %.1e of the original's, %d inputs", path, f"{size:,}", error, INPUTS)
    return path


def check_request(path: Path, format: str, batch_size: int | None, opset: int | None) -> None:
    """Raises UserError for what can be known to be wrong before a model is looked at."""
    if format not in FORMATS:
        raise UserError(f"unknown format {format!r}: expected one of {', '.join(FORMATS)}")
    if path.suffix != FORMATS[format]:
        raise UserError(f"{path} does not end in {FORMATS[format]}, as a file of format {format} does")
    if path.exists():
        raise UserError(f"{path} exists already: give another --output")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} into")
    try:
        with tempfile.TemporaryFile(dir=path.parent):  # rather now than after the work
            pass
    except OSError as error:
        raise UserError(f"{path.name} cannot be written into {path.parent}: {one_line(error)}") from error
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")
    if batch_size is None and format == "executorch":
        raise UserError("format executorch plans its memory ahead: give --batch_size, images in every call")
    extra, packages = NEEDS[format]
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"format {format} needs {', '.join(missing)}: pip install 'ddpm-redistill[{extra}]'")
    if opset is not None:
        if format != "onnx":
            raise UserError(f"--opset is for ONNX: format {format} has none")
        from .onnx_export import OPSETS

        if opset not in OPSETS:
            raise UserError(f"opset {opset} cannot be written: opsets {OPSETS[0]} to {OPSETS[-1]} can")


def check_quantisation(format: str, quantise: str | None, data: str | None, calibration_images: int | None) -> None:
    """Raises UserError for options that do not go together."""
    if quantise not in (None, *QUANTISED):
        raise UserError(f"unknown quantisation {quantise!r}: expected one of {', '.join(QUANTISED)}")
    if quantise is not None and format != "onnx":
        raise UserError(f"--quantise is for ONNX: format {format} is written in float32")
    if (quantise == "int8") != (data is not None):
        raise UserError("--quantise int8 and --data go together: ranges of activations are measured on training images")
    if calibration_images is not None and quantise != "int8":
        raise UserError("--calibration_images is for --quantise int8: nothing else is calibrated")
    if calibration_images is not None and calibration_images < 1:
        raise UserError(
            f"the calibration set is empty: calibration_images must be at least 1, not {calibration_images}"
        )


def _format(format: str, opset: int | None, output: str) -> tuple[Any, Any]:
    """(how to write, how to call what was written); what a format needs is imported for it alone."""
    if format == "onnx":
        from .onnx_export import DEFAULT_OPSET, call_onnx, write_onnx

        return partial(write_onnx, opset=opset or DEFAULT_OPSET, output=output), call_onnx
    if format == "executorch":
        from .executorch_export import call_executorch, write_executorch

        return write_executorch, call_executorch
    from .torch_export import call_torch_export, write_torch_export

    return write_torch_export, call_torch_export
