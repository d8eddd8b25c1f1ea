"""A model -> a file in another format, held against the original before it is put in place."""

import importlib.util
import logging
import math
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..files import written_aside
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline
from ..sources.class_labels import conditioned
from ..sources.image_files import one_line
from ..sources.image_source import ImageSource
from ..sources.images import check_data_range, open_images
from ..sources.model_config import check_own_size
from ..sources.teacher import find_model, load_pipeline, sha256_of
from .description import describe
from .tracing import image_shape, trace
from .verify import INPUTS, TOLERANCE, difference

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
        data: training images, of which ``calibration_images`` (256) are taken, with noise of timesteps over the
            schedule; of another size or colour they are made the network's, as in training. For a class-conditional
            network they need labels of its classes.
        data_range: of ``data``, as ``open_images``.

    Raises:
        UserError: a mistake in any argument, before any work; or the file does not give the original's outputs.
    """
    path = Path(output)
    check_request(path, format, batch_size, opset)
    check_quantisation(format, quantise, data, calibration_images)
    check_data_range(data_range, images=data is not None)
    pipeline = load_pipeline(ref)
    check_own_size(ref, pipeline.unet.config)
    if pipeline.vqvae is not None:
        raise UserError(f"{ref} denoises latents, which its autoencoder decodes: only models of pixels are exported")
    images = None if data is None else _images(data, data_range, pipeline)
    labels = None if images is None else _labels(images, pipeline, ref)
    description = describe(pipeline, batch_size, sha256_of(*find_model(ref).weights), quantised=quantise)
    program = trace(pipeline.unet, batch_size)
    writer, caller = _format(format, opset)
    with written_aside(path) as aside:
        writer(program, aside, description)
        timesteps = pipeline.scheduler.config.num_train_timesteps
        error = difference(pipeline.unet, caller(aside), timesteps, batch_size)
        if not error <= TOLERANCE:  # NaN is not
            raise UserError(f"the exported network differs from {ref} by {error:.2g}: more than {TOLERANCE:g}")
        if quantise:
            from .quantise import calibration_feeds
            from .quantise import quantise as quantise_file

            scheduler, count = pipeline.scheduler, calibration_images or CALIBRATION_IMAGES
            feeds = None
            if images is not None:
                null = _null(pipeline)
                feeds = calibration_feeds(
                    images, scheduler, count=count, batch_size=batch_size, labels=labels, null=null
                )
            quantise_file(aside, quantise, feeds)
            error = difference(pipeline.unet, caller(aside), timesteps, batch_size)
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


def _images(data: str, data_range: float | None, pipeline: RedDDPMPipeline) -> ImageSource:
    """Of the network's own size and channels."""
    height, width = image_shape(pipeline.unet)
    if height != width:
        raise UserError(f"calibration takes square images, and this network makes {width} x {height}")
    channels = pipeline.unet.config.in_channels
    return open_images(data, image_size=height, channels=channels, data_range=data_range)


def _labels(images: ImageSource, pipeline: RedDDPMPipeline, ref: str) -> Tensor | None:
    """Of the images, int64 (N,), in the numbers of a class-conditional network; None of one without classes."""
    if pipeline.conditioning is None:
        return None
    return conditioned(images, pipeline.unet.config.num_class_embeds, find_model(ref).id2label, ref)[0]


def _null(pipeline: RedDDPMPipeline) -> int | None:
    """The null class of a network that guidance may run with it."""
    classes = pipeline.conditioning
    return classes.null if classes is not None and classes.guidable else None


def _format(format: str, opset: int | None) -> tuple[Any, Any]:
    """(how to write, how to call what was written); what a format needs is imported for it alone."""
    if format == "onnx":
        from .onnx_export import DEFAULT_OPSET, call_onnx, write_onnx

        return partial(write_onnx, opset=opset or DEFAULT_OPSET), call_onnx
    if format == "executorch":
        from .executorch_export import call_executorch, write_executorch

        return write_executorch, call_executorch
    from .torch_export import call_torch_export, write_torch_export

    return write_torch_export, call_torch_export
