"""What every sample of a run sees, as a function of the seed and its place, never of the global random state.

Sample order depends on (seed, epoch); noise, timestep and flip on (seed, step, position in the global batch). So a
resumed run, and a run on any number of processes with the same global batch, see the same numbers.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from ..pipelines.pipeline_red_ddpm import seeded_generator


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
) -> Iterator[dict[str, torch.Tensor]]:
    """This process's share of steps [first_step, last_step), ``accumulation`` batches a step, in order.

    A process takes a contiguous share of the positions of each global batch, which ``processes * accumulation``
    must divide (checked before the run starts).
    """
    share = draws.batch_size // processes
    size = share // accumulation

    def indices() -> Iterator[list[int]]:
        for step in range(first_step, last_step):
            start = step * draws.batch_size + rank * share
            for micro in range(accumulation):
                yield list(range(start + micro * size, start + (micro + 1) * size))

    loader = DataLoader(
        draws,
        batch_sampler=indices(),  # type: ignore[arg-type]  # lazily: a long run has very many
        num_workers=num_workers,
        generator=torch.Generator(),  # else making an iterator consumes the global random state
    )
    try:
        yield from loader
    except UserError as error:  # from a worker process it comes with that process's traceback
        raise UserError(str(error).strip().splitlines()[-1].split("UserError: ")[-1]) from None
