"""How many images a second classifiers take."""

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from torch import nn

from ..sources.image_source import ImageSource

WARMING, TIMED = 2, 10
"""Batches of each network, the timed ones in turn, so that other work on the machine slows all of them alike."""


@torch.no_grad()
def images_per_second(
    networks: Mapping[str, nn.Module], images: ImageSource, batch_size: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Of each network, on ``device`` and in evaluation mode: ``images_per_second``, by the median of the seconds of
    ``TIMED`` batches, which hold the first images, over again where there are fewer; ``seconds``, of all of them;
    ``num_images`` and ``batch_size``."""
    batch = torch.stack([images[i % len(images)] for i in range(batch_size)]).to(device).float() / 255
    for network in networks.values():
        for _ in range(WARMING):
            network(batch)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(TIMED):
        for name, network in networks.items():
            _finished(device)
            started = time.perf_counter()
            network(batch)
            _finished(device)
            seconds[name].append(time.perf_counter() - started)
    return {
        name: {
            "images_per_second": batch_size / median(each),
            "seconds": sum(each),
            "num_images": TIMED * batch_size,
            "batch_size": batch_size,
        }
        for name, each in seconds.items()
    }


def _finished(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
