"""An exported network against the one that it was made from."""

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from diffusers import UNet2DModel
from torch import Tensor

from ..pipelines.seeds import seeded_generator
from .tracing import image_shape

INPUTS = 20
"""Random inputs, each at a timestep of its own, over the whole schedule."""
TOLERANCE = 1e-4
"""Of the largest difference, relative to the largest value of the original's output."""

SCATTER = 7
"""Shares no factor with ``INPUTS``: multiples of it, taken modulo ``INPUTS``, are all inputs in another order."""

Call = Callable[..., Tensor]
"""sample (B, C, H, W), timestep int64 (B,), of a class-conditional network class_labels int64 (B,) -> prediction
(B, C, H, W)."""


@torch.no_grad()
def difference(unet: UNet2DModel, exported: Call, num_train_timesteps: int, batch_size: int | None = None) -> float:
    """The largest relative difference over ``INPUTS`` inputs, or a whole number of batches of ``batch_size``.

    With ``batch_size`` None batches of 1, 2 and 3 images take turns: a file for any batch must hold for each. Labels of
    a class-conditional network go from the first to the last embedding, the null class where there is one, in another
    order than the timesteps. NaN when an output is not finite.
    """
    worst = 0.0
    shape = (unet.config.in_channels, *image_shape(unet))
    for indices in batches(batch_size):
        generators = [seeded_generator("export", index) for index in indices]
        sample = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        last = num_train_timesteps - 1
        timestep = torch.tensor([min(index * last // (INPUTS - 1), last) for index in indices])
        inputs = [sample, timestep]
        if unet.class_embedding is not None:
            inputs.append(torch.tensor([label_of(index, unet.config.num_class_embeds) for index in indices]))
        expected = unet(*inputs).sample
        error = relative_error(exported(*inputs), expected)
        if math.isnan(error):
            return error
        worst = max(worst, error)
    return worst


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference of an output (B, ...), relative to the largest value of the original's; NaN when one is
    not finite."""
    size = expected.abs().flatten(1).amax(1).clamp(min=torch.finfo(torch.float32).tiny)  # a new head gives zeros
    error = (found - expected).abs().flatten(1).amax(1) / size
    return float(error.max()) if error.isfinite().all() else float("nan")


def label_of(index: int, num_class_embeds: int) -> int:
    """Of input ``index``: any ``INPUTS`` of them in a row have labels spread evenly over all embeddings, both ends
    among them."""
    place = index * SCATTER % INPUTS
    return round(place * (num_class_embeds - 1) / (INPUTS - 1))


def batches(batch_size: int | None) -> Iterator[range]:
    """Indices of inputs, a batch at a time."""
    first = 0
    for size in itertools.cycle((1, 2, 3)):
        if first >= INPUTS:
            return
        count = batch_size or min(size, INPUTS - first)
        yield range(first, first + count)
        first += count
