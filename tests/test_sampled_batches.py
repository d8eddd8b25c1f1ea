"""Batches as they are handed over: a GPU has begun with the next one, and the seconds are those of sampling."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddpm_redistill.evaluation import sampling
from ddpm_redistill.evaluation.sampling import Begun, SampledBatches, one_ahead, to_pixels

BATCHES = [range(0, 2), range(2, 4), range(4, 5)]


class Sampler:
    """Says what it is told to do, in order."""

    def __init__(self, device: str) -> None:
        self.device, self.said = torch.device(device), []

    def prepare(self) -> None:
        self.said.append("prepare")

    def __call__(self, batch: range, seed: int) -> torch.Tensor:
        self.said.append(f"begin {batch.start}")
        return torch.full((len(batch), 1, 2, 2), batch.start / 255)


def run(sampler: Sampler) -> SampledBatches:
    """Take all batches, and say when each was taken."""
    batches = SampledBatches(sampler, BATCHES, 0, label="", show_progress=False)  # type: ignore[arg-type]
    for images in batches:
        sampler.said.append(f"take {int(images[0, 0, 0, 0])}")
        assert images.dtype == torch.uint8
    return batches


def test_a_cpu_makes_one_after_another() -> None:
    sampler = Sampler("cpu")
    batches = run(sampler)
    assert sampler.said == ["prepare", "begin 0", "take 0", "begin 2", "take 2", "begin 4", "take 4"]
    assert batches.seconds > 0


def test_a_gpu_has_begun_with_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler("cuda")

    def begin(given: Any, batch: range, seed: int) -> Begun:
        ended = SimpleNamespace(synchronize=lambda: sampler.said.append(f"wait {batch.start}"))
        started = SimpleNamespace(elapsed_time=lambda other: 1500.0 if other is ended else None)
        return Begun(to_pixels(given(batch, seed)), started, ended)

    monkeypatch.setattr(sampling, "begin_on_gpu", begin)
    batches = run(sampler)
    told = ["prepare", "begin 0", "begin 2", "wait 0", "take 0", "begin 4", "wait 2", "take 2", "wait 4", "take 4"]
    assert sampler.said == told
    assert batches.seconds == 4.5  # milliseconds


def test_nothing_is_prepared_for_no_batch() -> None:
    sampler = Sampler("cpu")
    assert list(SampledBatches(sampler, [], 0, label="", show_progress=False)) == []  # type: ignore[arg-type]
    assert sampler.said == []


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_one_ahead_gives_all_in_order(count: int) -> None:
    assert list(one_ahead(range(count))) == list(range(count))
