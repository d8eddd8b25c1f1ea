"""How many images are sampled at once where nobody says: what a GPU's memory takes, and 64 on a CPU."""

from collections.abc import Sequence

import torch

from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline
from ..students.footprint import network_memory
from ..units import MIB

ON_A_CPU = 64
LARGEST = 512
"""On a GPU. A batch of it fills the card's arithmetic for networks of 32 px and more; larger ones are not measured."""
SHARE = 0.5
"""Of the free memory. The rest is for convolutions' workspaces, the allocator's rounding and whoever else is there."""


def choose_batch_size(pipelines: Sequence[RedDDPMPipeline], num_images: int, passes: int = 1) -> tuple[int, str | None]:
    """The size, and for a GPU why it is this one, for the log.

    ``pipelines``: sampled in turns on one device, where each keeps the memory that it took. ``passes``: in one batch,
    of each image and step.
    """
    gpu = next((pipeline.device for pipeline in pipelines if pipeline.device.type == "cuda"), None)
    if gpu is None:
        return ON_A_CPU, None
    free, _ = torch.cuda.mem_get_info(gpu)
    peak = passes * sum(
        network_memory(pipeline.unet, dtype=pipeline.unet.dtype, lean=pipeline.lean).tensor_peak
        for pipeline in pipelines
    )
    size = fitting_batch_size(peak, int(free * SHARE), num_images)
    return (
        size,
        f"an image takes {peak / MIB:.2f} MiB, and half of the GPU's {free / MIB:,.0f} MiB of free memory is used",
    )


def fitting_batch_size(peak: int, memory: int, num_images: int) -> int:
    """The largest power of two up to ``LARGEST`` whose images, ``peak`` bytes each, fit into ``memory`` bytes: at least
    1, and no more than ``num_images`` need. The peak of a batch is that of one image times its size."""
    size = 1
    while size < min(LARGEST, num_images) and 2 * size * peak <= memory:
        size *= 2
    return size
