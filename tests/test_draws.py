"""A sample's image, noise, timestep and flip are functions of the seed and its place in the run, of nothing else."""

import os
import random
import signal
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from ddpm_redistill.errors import UserError
from ddpm_redistill.training.draws import Draws, epoch_order, micro_batches

IMAGES, BATCH, STEPS = 5, 4, 8  # every batch but each fifth straddles two epochs


class Numbered(Dataset[torch.Tensor]):
    """Image i has i in its left column and 100 + i in its right one."""

    def __init__(self, count: int = IMAGES):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.tensor([[[i, 100 + i]]], dtype=torch.uint8)


class Broken(Numbered):
    def __getitem__(self, i: int) -> torch.Tensor:
        raise UserError("image seven.png can no longer be read")


def make_draws(seed: int = 0, batch: int = BATCH, images: Dataset = Numbered(), flip: bool = True) -> Draws:  # noqa: B008
    return Draws(images, seed=seed, batch_size=batch, num_train_timesteps=1000, horizontal_flip=flip)


def share(draws: Draws, **changes: int) -> list[dict[str, torch.Tensor]]:
    whole = {"first_step": 0, "last_step": STEPS, "rank": 0, "processes": 1, "accumulation": 1, "num_workers": 0}
    return list(micro_batches(draws, **{**whole, **changes}))


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


@pytest.mark.parametrize("key", ["noise", "timesteps"])
def test_no_two_places_share_a_draw(key):
    draws = run(make_draws(batch=2), last_step=6)[key].flatten(0, 1)
    other = run(make_draws(seed=1, batch=2), last_step=6)[key].flatten(0, 1)
    distinct = {tuple(value.flatten().tolist()) for value in torch.cat([draws, other])}
    assert len(distinct) == 24 if key == "noise" else len(distinct) > 20


def test_noise_is_standard_normal_and_timesteps_are_uniform():
    found = run(make_draws(batch=64), last_step=32)
    assert abs(found["noise"].mean()) < 0.06  # 4096 values: sigma of the mean is 0.016
    assert abs(found["noise"].std() - 1) < 0.05
    assert abs(found["timesteps"].float().mean() - 499.5) < 26  # 2048 values: 6.4
    assert found["timesteps"].min() < 20
    assert found["timesteps"].max() > 980


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
