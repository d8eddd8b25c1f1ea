"""What every sample of a run sees, as a function of the seed and its place, never of the global random state.

Sample order is a function of (seed, epoch); what a task draws (noise, timesteps, flips, crops) of (seed, step) and the
position in the global batch. One generator a step, on the device that trains, draws it for the whole global batch, and
every process and micro-batch takes its share: so a resumed run, and a run on any number of processes with the same
global batch, see the same numbers. A CPU and a GPU draw other numbers of the same distribution.
"""

from collections.abc import Generator, Iterator
from functools import lru_cache

import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from ..pipelines.seeds import seeded_generator
from ..sources.image_source import ImageSource
from .gradient import Batch
from .shutdown import in_worker
from .tasks import Task

STREAM = "one generator a step"
"""The name of this way to draw, in a run's provenance."""
FIRST_STREAM = "one generator an image"
"""That of runs whose provenance names none: they were begun before 28 November 2026."""
HELD_SHARE = 0.25
"""Of a GPU's free memory, how much the images of a run may take to be kept there."""


class Draws:
    """The images of a run, and for each step what is drawn for its global batch."""

    def __init__(self, images: Dataset[torch.Tensor], task: Task, *, seed: int, batch_size: int):
        """``images``: uint8 (C, H, W) each, or latents in float32."""
        self.images = images
        self.task = task
        self.seed = seed
        self.batch_size = batch_size

    def order(self, step: int) -> torch.Tensor:
        """Which images a step sees, int64 (batch_size,); a batch may straddle epochs."""
        length = len(self.images)  # type: ignore[arg-type]
        first, parts = step * self.batch_size, []
        while first < (step + 1) * self.batch_size:
            epoch, place = divmod(first, length)
            parts.append(epoch_order(length, self.seed, epoch)[place : place + (step + 1) * self.batch_size - first])
            first += len(parts[-1])
        return torch.cat(parts)

    def drawn(self, step: int, shape: tuple[int, ...], device: torch.device) -> Batch:
        """What the task draws for a step's global batch of images of ``shape`` (C, H, W): (B, ...) by name."""
        generator = seeded_generator(self.seed, STREAM, step, device=device)
        return self.task.draw(self.order(step), shape, generator, device)


@lru_cache(maxsize=4)
def epoch_order(length: int, seed: int, epoch: int) -> torch.Tensor:
    """The order (length,) in which an epoch visits the images, on any device."""
    return torch.randperm(length, generator=seeded_generator(seed, "order", epoch))


def micro_batches(
    draws: Draws,
    *,
    first_step: int,
    last_step: int,
    rank: int,
    processes: int,
    accumulation: int,
    num_workers: int,
    device: torch.device,
) -> Generator[Batch]:
    """This process's share of steps [first_step, last_step), ``accumulation`` batches a step, in order, on ``device``:
    what the task makes of ``images`` (b, C, H, W) and of what it drew for them.

    A micro-batch is the same contiguous positions of the global batch whatever the number of processes, and a process
    takes a contiguous share of each: what is computed over a micro-batch, as the statistics of a BatchNorm, does not
    depend on their number. ``processes * accumulation`` must divide the batch (checked before the run starts).

    Raises:
        UserError: an image can no longer be read, or a worker process died.
    """
    size = draws.batch_size // (processes * accumulation)
    shares = [slice(start, start + size) for start in range(rank * size, draws.batch_size, processes * size)]
    steps = range(first_step, last_step)
    orders = (draws.order(step)[share] for step in steps for share in shares)
    pixels = _pixels(draws.images, orders, num_workers, device)
    for step in steps:
        drawn: Batch = {}
        for share in shares:
            images = next(pixels)
            drawn = drawn or draws.drawn(step, images.shape[1:], device)
            yield draws.task.batch(images, {name: value[share] for name, value in drawn.items()})


def _pixels(
    images: Dataset[torch.Tensor], orders: Iterator[torch.Tensor], num_workers: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """The images of each of ``orders``, (b, C, H, W) on ``device``, in the dtype that they are held in."""
    held = images.held if isinstance(images, ImageSource) else None
    if held is None:
        yield from _loaded(images, orders, num_workers, device)
        return
    if device.type == "cuda" and held.nbytes <= HELD_SHARE * torch.cuda.mem_get_info(device)[0]:
        held = held.to(device)
    for order in orders:
        yield held.index_select(0, order.to(held.device)).to(device)


def _loaded(
    images: Dataset[torch.Tensor], orders: Iterator[torch.Tensor], num_workers: int, device: torch.device
) -> Iterator[torch.Tensor]:
    """``_pixels`` of images that are read when they are needed, ahead of it by ``num_workers`` processes."""
    loader = DataLoader(
        images,
        batch_sampler=(order.tolist() for order in orders),  # type: ignore[arg-type]  # lazily: a long run has many
        num_workers=num_workers,
        worker_init_fn=in_worker,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else making an iterator consumes the global random state
    )
    problem = ""
    try:
        for batch in loader:
            yield batch.to(device, non_blocking=True)
    except UserError as error:  # from a worker process it comes with that process's traceback
        problem = str(error).strip().splitlines()[-1].split("UserError: ")[-1]
    except RuntimeError as error:  # torch has no class of its own for a worker that is gone
        if "DataLoader worker" not in str(error):
            raise
        hint = "as a rule the memory ran out: go on with --resume, with fewer training.num_workers"
        problem = f"a process that loads the images died ({' '.join(str(error).split())}); {hint}"
    if problem:  # raised here, it does not hold on to the loader, whose workers end with it
        raise UserError(problem)
