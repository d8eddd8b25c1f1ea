"""A classifier, as ``export`` takes it."""

import copy
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx.experimental.optimization import fuse

from ..core.augment import normalised
from ..families.classifier_config import ClassifierConfig
from ..families.classifier_files import load_classifier, state_sha256
from ..pipelines.red_block import fold_batch_norms
from ..pipelines.seeds import seeded_generator
from ..sources.image_source import ImageSource
from ..sources.images import open_images
from ..sources.onnx_model import FORMAT
from .exportable import Exportable
from .tracing import EXAMPLES, graph_of
from .verify import Call, batches, relative_error

CALIBRATION_BATCH = 16
"""Images at once where the file takes any number."""


class Classifier(nn.Module):
    """What is exported: images, normalised, (B, C, H, W) -> logits (B, K)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits


def exportable_classifier(
    ref: str,
    *,
    batch_size: int | None,
    quantise: str | None,
    data: str | None,
    data_range: float | None,
    calibration_images: int,
) -> Exportable:
    """Raises UserError as ``export_model``."""
    network, config = load_classifier(ref)
    feeds = None
    if data is not None:
        images = open_images(data, image_size=config.image_size, channels=config.in_channels, data_range=data_range)
        feeds = partial(calibration_feeds, images, config, calibration_images, batch_size)
    return Exportable(
        description=describe_classifier(config, batch_size, state_sha256(network), quantise),
        output="logits",
        trace=lambda: trace_classifier(network, config, batch_size),
        error_of=lambda call: classifier_difference(network, config, call, batch_size),
        feeds=feeds,
    )


def describe_classifier(
    config: ClassifierConfig, batch_size: int | None, sha256: str, quantised: str | None
) -> dict[str, Any]:
    """What travels with the file, as JSON: ``input`` says that a pixel, from 0 (black) to 1 (white), is given as
    (pixel - mean) / std, by channel; ``classes`` names the logits in their order, empty where they have no names."""
    return {
        "format": FORMAT,
        "task": "classify",
        "network": {
            "sample_size": config.image_size,
            "in_channels": config.in_channels,
            "num_classes": config.num_classes,
        },
        "input": {"pixels": [0, 1], "mean": list(config.mean), "std": list(config.std)},
        "classes": list(config.classes),
        "batch_size": batch_size,
        "model_sha256": sha256,
        "made_by": f"ddpm-redistill {version('ddpm-redistill')}",
        "quantised": quantised,
    }


def trace_classifier(network: nn.Module, config: ClassifierConfig, batch_size: int | None) -> ExportedProgram:
    """The graph of a classifier in eval mode, its BatchNorms folded; ``network`` stays as it is.

    Args:
        batch_size: B of the graph; None for any.

    Raises:
        UserError: as ``trace``.
    """
    whole = Classifier(folded(network)).requires_grad_(False).eval()
    shape = (config.in_channels, config.image_size, config.image_size)
    return graph_of(whole, {"images": torch.zeros(batch_size or EXAMPLES, *shape)}, batch_size)


def folded(network: nn.Module) -> nn.Module:
    """A copy whose BatchNorms are folded into the convolutions before them: those of RED blocks, and where the network
    can be traced symbolically those of its own that directly follow one."""
    network = copy.deepcopy(network).eval()
    fold_batch_norms(network)
    try:
        with torch.no_grad():
            return fuse(network).eval()
    except Exception:  # the tracer's many types: a forward that branches on its input
        return network


@torch.no_grad()
def classifier_difference(
    network: nn.Module, config: ClassifierConfig, exported: Call, batch_size: int | None
) -> float:
    """The largest relative difference of logits over ``INPUTS`` random images, as ``difference``."""
    worst, shape = 0.0, (config.in_channels, config.image_size, config.image_size)
    for indices in batches(batch_size):
        pixels = [torch.rand(shape, generator=seeded_generator("export", index)) for index in indices]
        images = _normalised(torch.stack(pixels), config)
        error = relative_error(exported(images), network(images))
        if error != error:
            return error
        worst = max(worst, error)
    return worst


def calibration_feeds(
    images: ImageSource, config: ClassifierConfig, count: int, batch_size: int | None
) -> Iterator[dict[str, Any]]:
    """``count`` images that are drawn by a fixed seed, batch by batch, as input of the file. A file of one batch size
    gets whole batches."""
    order = torch.randint(len(images), (count,), generator=seeded_generator("calibration")).tolist()
    size = batch_size or CALIBRATION_BATCH
    for first in range(0, count, size):
        places = range(first, first + size if batch_size else min(first + size, count))
        batch = torch.stack([images[order[place % count]] for place in places])
        yield {"images": normalised(batch, config.mean, config.std).numpy()}


def _normalised(pixels: Tensor, config: ClassifierConfig) -> Tensor:
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (config.mean, config.std))
    return (pixels - mean) / std
