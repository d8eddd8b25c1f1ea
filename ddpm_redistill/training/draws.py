"""What every sample of a run sees, as a function of the seed and its place, never of the global random state.

Sample order depends on (seed, epoch); noise, timestep and flip on (seed, step, position in the global batch). So a
resumed run, and a run on any number of processes with the same global batch, see the same numbers.
"""

from collections.abc import Generator, Iterator
from functools import lru_cache

import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from ..pipelines.pipeline_red_ddpm import seeded_generator
from .shutdown import in_worker


class Draws(Dataset[dict[str, torch.Tensor]]):
    """Item n = step * batch_size + position: ``images`` (C, H, W) in [-1, 1], ``noise`` (C, H, W), ``timesteps`` ()."""

    def __init__(
        self,
        images: Dataset[torch.Tensor],
        *,
        seed: int,
        batch_size: int,
        num_train_timesteps: int,
        horizontal_flip: bool,
    ):
        self.images = images
        self.seed = seed
        self.batch_size = batch_size
        self.num_train_timesteps = num_train_timesteps
        self.horizontal_flip = horizontal_flip

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        step, position = divmod(n, self.batch_size)
        epoch, place = divmod(n, len(self.images))  # type: ignore[arg-type]
        index = epoch_order(len(self.images), self.seed, epoch)[place]  # type: ignore[arg-type]
        image = self.images[int(index)].float() / 127.5 - 1
        generator = seeded_generator(self.seed, "draw", step, position)
        timestep = torch.randint(self.num_train_timesteps, (), generator=generator)
        flip = bool(torch.rand((), generator=generator) < 0.5)
        noise = torch.randn(image.shape, generator=generator)
        if self.horizontal_flip and flip:
            image = image.flip(-1)
        return {"images": image, "noise": noise, "timesteps": timestep}


@lru_cache(maxsize=4)
def epoch_order(length: int, seed: int, epoch: int) -> torch.Tensor:
    """The order (length,) in which an epoch visits the images. A batch may straddle two epochs."""
    return torch.randperm(length, generator=seeded_generator(seed, "order", epoch))


def micro_batches(
    draws: Draws, *, first_step: int, last_step: int, rank: int, processes: int, accumulation: int, num_workers: int
) -> Generator[dict[str, torch.Tensor]]:
    """This process's share of steps [first_step, last_step), ``accumulation`` batches a step, in order.

    A micro-batch is the same contiguous positions of the global batch whatever the number of processes, and a process
    takes a contiguous share of each: what is computed over a micro-batch, as the statistics of a BatchNorm, does not
    depend on their number. ``processes * accumulation`` must divide the batch (checked before the run starts).

    Raises:
        UserError: an image can no longer be read, or a worker process died.
    """
    size = draws.batch_size // (processes * accumulation)

    def indices() -> Iterator[list[int]]:
        for step in range(first_step, last_step):
            for micro in range(accumulation):
                start = step * draws.batch_size + (micro * processes + rank) * size
                yield list(range(start, start + size))

    loader = DataLoader(
        draws,
        batch_sampler=indices(),  # type: ignore[arg-type]  # lazily: a long run has very many
        num_workers=num_workers,
        worker_init_fn=in_worker,
        generator=torch.Generator(),  # else making an iterator consumes the global random state
    )
    problem = ""
    try:
        yield from loader
    except UserError as error:  # from a worker process it comes with that process's traceback
        problem = str(error).strip().splitlines()[-1].split("UserError: ")[-1]
    except RuntimeError as error:  # torch has no class of its own for a worker that is gone
        if "DataLoader worker" not in str(error):
            raise
        hint = "as a rule the memory ran out: go on with --resume, with fewer training.num_workers"
        problem = f"a process that loads the images died ({' '.join(str(error).split())}); {hint}"
    if problem:  # raised here, it does not hold on to the loader, whose workers end with it
        raise UserError(problem)
