"""An ONNX file with int8 weights, or with int8 activations too; the latter by onnxruntime's static quantisation.

For static activations each layer's input range must be known. It is measured on what the network sees in sampling:
training images with the noise of timesteps over the whole schedule.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from diffusers import DDPMScheduler
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import Tensor

from ..errors import UserError
from ..pipelines.seeds import seeded_generator
from ..sources.image_files import one_line
from ..sources.image_source import ImageSource
from .weights_int8 import LAYERS, quantise_weights

CALIBRATION_BATCH = 16
"""Images at once where the file takes any number."""
NULL_EVERY = 10
"""One of so many calibration images has the null class, which guidance runs a network with; in training it is one of
ten labels too."""

Feed = dict[str, np.ndarray]


def quantise(path: Path, kind: str, calibration: Iterator[Feed] | None) -> None:
    """Rewrite an ONNX file: ``kind`` "int8_weights", or "int8", which needs ``calibration``.

    Raises:
        UserError: onnxruntime cannot quantise it.
    """
    if calibration is None:
        quantise_weights(path)
        return
    model = onnx.load(path)
    weights = {each.name for each in model.graph.initializer}
    layers = [node.name for node in model.graph.node if node.op_type in LAYERS and node.input[1] in weights]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # advice of onnxruntime's that does not apply: the graph is optimised already
    try:
        quantize_static(
            model,
            path,
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(LAYERS),
            nodes_to_quantize=layers,  # products of two activations, in attention, stay float
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
    except UserError:  # an image that cannot be read
        raise
    except Exception as error:  # onnxruntime's errors share no class but this
        raise UserError(f"onnxruntime cannot quantise this network: {one_line(error)}") from error
    finally:
        logging.disable(before)
    model = onnx.load(path)
    del model.graph.value_info[:]  # shapes of what lies between: every runtime finds them by itself
    onnx.save(model, path)


def calibration_feeds(
    images: ImageSource,
    scheduler: DDPMScheduler,
    *,
    count: int,
    batch_size: int | None,
    seed: int = 0,
    labels: Tensor | None = None,
    null: int | None = None,
) -> Iterator[Feed]:
    """``count`` noisy images, batch by batch, as inputs of the file: timestep k of ``count`` even ones over the
    schedule meets an image and noise that are functions of (seed, k). A file of one batch size gets whole batches.

    Args:
        labels: of a class-conditional network, the images', int64 (N,) in its own numbers.
        null: the label that every tenth image has in the place of its own; None for no image.
    """
    last = scheduler.config.num_train_timesteps - 1
    size = batch_size or CALIBRATION_BATCH
    for first in range(0, count, size):
        samples, timesteps, classes = [], [], []
        for k in range(first, first + size if batch_size else min(first + size, count)):
            generator = seeded_generator(seed, "calibration", k)
            index = int(torch.randint(len(images), (), generator=generator))
            image = images[index].float() / 127.5 - 1
            timestep = torch.tensor([k % count * last // max(1, count - 1)])
            noise = torch.randn(image.shape, generator=generator)
            samples.append(scheduler.add_noise(image[None], noise[None], timestep))
            timesteps.append(timestep)
            if labels is not None:
                is_null = null is not None and k % NULL_EVERY == NULL_EVERY - 1
                classes.append(null if is_null else int(labels[index]))
        feed = {"sample": torch.cat(samples).numpy(), "timestep": torch.cat(timesteps).numpy()}
        yield feed if labels is None else {**feed, "class_labels": np.array(classes, dtype=np.int64)}


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """An iterator as onnxruntime wants it."""

    def __init__(self, feeds: Iterator[Feed]):
        self.feeds = feeds

    def get_next(self) -> Any:
        return next(self.feeds, None)
