"""A sample's image, noise, timestep and flip are functions of the seed and its place in the run, of nothing else."""

import hashlib
import os
import random
import signal
from collections import Counter

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch.utils.data import Dataset

from ddpm_redistill.errors import UserError
from ddpm_redistill.sources.image_source import ImageSource
from ddpm_redistill.training.denoise import Denoise
from ddpm_redistill.training.draws import STREAM, Draws, epoch_order, micro_batches

IMAGES, BATCH, STEPS = 5, 4, 8  # every batch but each fifth straddles two epochs


class Numbered(Dataset[torch.Tensor]):
    """Image i has i in its left column and 100 + i in its right one."""

    def __init__(self, count: int = IMAGES):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.tensor([[[i, 100 + i]]], dtype=torch.uint8)


class Wide(Numbered):
    """Of 16 pixels, each for a draw of its own."""

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.full((1, 4, 4), i, dtype=torch.uint8)


class Broken(Numbered):
    def __getitem__(self, i: int) -> torch.Tensor:
        raise UserError("image seven.png can no longer be read")


def make_draws(seed: int = 0, batch: int = BATCH, images: Dataset = Numbered(), flip: bool = True) -> Draws:  # noqa: B008
    return Draws(images, Denoise(scheduler=DDPMScheduler(), horizontal_flip=flip), seed=seed, batch_size=batch)


def share(draws: Draws, **changes: int) -> list[dict[str, torch.Tensor]]:
    whole = {"first_step": 0, "last_step": STEPS, "rank": 0, "processes": 1, "accumulation": 1, "num_workers": 0}
    return list(micro_batches(draws, **{**whole, **changes}, device=torch.device("cpu")))


def run(draws: Draws, processes: int = 1, accumulation: int = 1, **changes: int) -> dict[str, torch.Tensor]:
    """All samples of a run, (steps, batch, ...), the micro-batches' and ranks' shares in the order of positions."""
    shares = [share(draws, rank=r, processes=processes, accumulation=accumulation, **changes) for r in range(processes)]
    steps = len(shares[0]) // accumulation
    assert all(len(one) == steps * accumulation for one in shares)
    rows = []
    for step in range(steps):
        parts = [one[step * accumulation + micro] for micro in range(accumulation) for one in shares]
        rows.append({key: torch.cat([part[key] for part in parts]) for key in parts[0]})
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys() == {"images", "noise", "timesteps"}
    return all(torch.equal(one[key], other[key]) for key in one)


def shown(images: torch.Tensor) -> list[int]:
    """Which image each sample is, flipped or not."""
    return [round(pixel) for pixel in ((images.flatten(0, -4).amin((1, 2, 3)) + 1) * 127.5).tolist()]


def test_shapes_and_ranges():
    found = run(make_draws())
    assert found["images"].shape == found["noise"].shape == (STEPS, BATCH, 1, 1, 2)
    assert found["timesteps"].shape == (STEPS, BATCH)
    assert found["images"].min() == -1  # pixel 0 of image 0
    assert torch.allclose((found["images"] + 1) * 127.5, ((found["images"] + 1) * 127.5).round(), atol=1e-4)
    assert found["timesteps"].min() >= 0
    assert found["timesteps"].max() < 1000


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_ranks_and_micro_batches_share_one_run(processes, accumulation):
    draws = make_draws(batch=8)
    assert same(run(draws, processes, accumulation), run(draws))


@pytest.mark.parametrize("processes", [2, 4])
def test_a_micro_batch_is_the_same_samples_on_any_number_of_processes(processes):
    draws = make_draws(batch=8)
    shares = [share(draws, rank=rank, processes=processes, accumulation=2) for rank in range(processes)]
    for whole, *parts in zip(share(draws, accumulation=2), *shares, strict=True):
        assert same({key: torch.cat([part[key] for part in parts]) for key in whole}, whole)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_also_where_a_batch_straddles_epochs(processes, accumulation):
    assert same(run(make_draws(), processes, accumulation), run(make_draws()))


def test_loading_processes_change_nothing():
    assert same(run(make_draws(), num_workers=2), run(make_draws()))


@pytest.mark.parametrize("first", [1, 3, STEPS - 1])
def test_a_later_start_sees_the_rest(first):
    rest = {key: value[first:] for key, value in run(make_draws()).items()}
    assert same(run(make_draws(), first_step=first), rest)


def test_a_finished_run_draws_nothing():
    assert share(make_draws(), first_step=STEPS) == []


@pytest.mark.parametrize(("count", "batch"), [(5, 4), (5, 8), (4, 4), (3, 12)])
def test_each_epoch_visits_every_image_once(count, batch):
    order = shown(run(make_draws(batch=batch, images=Numbered(count)), last_step=count)["images"])
    assert len(order) == count * batch
    for epoch in range(batch):
        assert sorted(order[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_differ_in_order():
    orders = {tuple(epoch_order(20, seed, epoch).tolist()) for seed in range(2) for epoch in range(3)}
    assert len(orders) == 6


def test_the_stream_is_pinned():
    """Another stream is another run for whoever resumes one: give it another name."""
    assert STREAM == "one generator a step"
    seed = int.from_bytes(hashlib.blake2b(b"3/one generator a step/7", digest_size=8).digest(), "big") >> 1
    generator = torch.Generator().manual_seed(seed)
    timesteps = torch.randint(1000, (BATCH,), generator=generator)
    flips = torch.rand(BATCH, generator=generator) < 0.5
    noise = torch.randn(BATCH, 1, 1, 2, generator=generator)
    images = torch.stack([Numbered()[i] for i in epoch_order_of(7, seed=3)]) / 127.5 - 1
    found = {key: value[0] for key, value in run(make_draws(seed=3), first_step=7).items()}
    expected = {"noise": noise, "timesteps": timesteps}
    expected["images"] = torch.where(flips[:, None, None, None], images.flip(-1), images)
    assert same(found, expected)


def epoch_order_of(step: int, seed: int) -> list[int]:
    places = [divmod(step * BATCH + position, IMAGES) for position in range(BATCH)]
    return [int(epoch_order(IMAGES, seed, epoch)[place]) for epoch, place in places]


def test_images_in_memory_are_served_as_those_that_are_read():
    pixels = torch.stack([Numbered()[i] for i in range(IMAGES)])
    held = ImageSource(IMAGES, pixels, "held", "")
    read = ImageSource(IMAGES, Numbered().__getitem__, "read", "")
    assert (held.held is None, read.held is None) == (False, True)
    assert same(run(make_draws(images=held)), run(make_draws(images=read)))
    assert torch.equal(pixels, torch.stack([Numbered()[i] for i in range(IMAGES)]))


@pytest.mark.parametrize("key", ["noise", "timesteps"])
def test_no_two_places_share_a_draw(key):
    draws = run(make_draws(batch=2), last_step=6)[key].flatten(0, 1)
    other = run(make_draws(seed=1, batch=2), last_step=6)[key].flatten(0, 1)
    distinct = {tuple(value.flatten().tolist()) for value in torch.cat([draws, other])}
    assert len(distinct) == 24 if key == "noise" else len(distinct) > 20


@pytest.fixture(scope="module")
def many() -> dict[str, torch.Tensor]:
    """256 steps of 64 samples."""
    return run(make_draws(batch=64, images=Wide()), last_step=256)


def test_noise_is_standard_normal(many):
    """Kolmogorov-Smirnov: with n values, sqrt(n) D is above 1.95 once in 1,000 seeds."""
    values = many["noise"].flatten().double().sort().values
    n = len(values)
    normal = torch.special.ndtr(values)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((normal - steps[:-1]).max(), (steps[1:] - normal).max())
    assert n == 256 * 64 * 16
    assert n**0.5 * distance < 1.95


def test_timesteps_are_uniform(many):
    """Chi-square over 50 cells of 20 timesteps: 49 degrees of freedom, above 85.4 once in 1,000 seeds."""
    counts = torch.bincount(many["timesteps"].flatten() // 20, minlength=50).double()
    expected = counts.sum() / 50
    assert len(counts) == 50
    assert ((counts - expected).square() / expected).sum() < 85.4


@pytest.mark.parametrize("neighbours", ["position", "step", "seed", "pixel"])
def test_neighbours_are_uncorrelated(many, neighbours):
    """Of noise and of timesteps; a correlation of n independent pairs has a sigma of 1 / sqrt(n)."""
    if neighbours == "seed":
        other = run(make_draws(seed=1, batch=64, images=Wide()), last_step=256)
        pairs = [(many[key], other[key]) for key in ("noise", "timesteps")]
    elif neighbours == "pixel":
        pairs = [(many["noise"][..., 1:], many["noise"][..., :-1])]
    else:
        dim = ("step", "position").index(neighbours)
        lengths = (255, 63)[dim]
        pairs = [
            (many[key].narrow(dim, 1, lengths), many[key].narrow(dim, 0, lengths)) for key in ("noise", "timesteps")
        ]
    for one, other in pairs:
        both = torch.stack([one.flatten().double(), other.flatten().double()])
        assert abs(torch.corrcoef(both)[0, 1]) < 4 / both.shape[1] ** 0.5


def test_half_of_the_images_are_flipped_and_only_the_image():
    flipping, plain = run(make_draws(batch=64), last_step=16), run(make_draws(batch=64, flip=False), last_step=16)
    left, right = flipping["images"][..., 0], flipping["images"][..., 1]
    assert 0.44 < (left > right).float().mean() < 0.56  # 1024 flips: sigma 0.016
    assert not (plain["images"][..., 0] > plain["images"][..., 1]).any()
    assert shown(flipping["images"]) == shown(plain["images"])
    assert torch.equal(flipping["noise"], plain["noise"])
    assert torch.equal(flipping["timesteps"], plain["timesteps"])


def test_flips_do_not_follow_the_image():
    images = run(make_draws(batch=64), last_step=4)["images"]
    flipped = (images[..., 0] > images[..., 1]).flatten().tolist()
    assert len(Counter(zip(shown(images), flipped, strict=True))) == 2 * IMAGES


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_random_state_is_neither_read_nor_moved(workers):
    torch.manual_seed(1)
    one = run(make_draws(), num_workers=workers)
    torch.manual_seed(2)
    random.seed(2)
    np.random.seed(2)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    other = run(make_draws(), num_workers=workers)
    assert same(one, other)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_fails_later_is_one_line(workers):
    with pytest.raises(UserError) as failed:
        share(make_draws(images=Broken()), num_workers=workers)
    assert str(failed.value) == "image seven.png can no longer be read"


class Signalling(Numbered):
    """The process that reads an image gets a signal."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def __getitem__(self, i: int) -> torch.Tensor:
        os.kill(os.getpid(), self.number)
        return super().__getitem__(i)


def test_a_worker_that_dies_is_one_line():
    with pytest.raises(UserError, match=r"loads the images died \(DataLoader worker .*fewer training.num_workers"):
        share(make_draws(images=Signalling(signal.SIGKILL)), num_workers=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_leaves_it_to_its_run_when_to_end(number):
    """A terminal sends Ctrl-C to all of its processes."""
    assert same(run(make_draws(images=Signalling(number)), num_workers=1), run(make_draws()))
