"""Sets of images measured as they are made, in step with each other: no set is ever held as images."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .extractors import Extractor
from .features import FeatureAccumulator, Features
from .paired import PairedErrors


@dataclass(frozen=True, eq=False)
class Measured:
    """What is kept of a set: its features, and its first images, uint8 (<= shown, C, H, W)."""

    features: Features
    first: Tensor


def measure_together(
    sets: Mapping[str, Iterator[Tensor]], extractor: Extractor, *, num_images: int, shown: int, label: str
) -> tuple[dict[str, Measured], dict[str, Any] | None]:
    """Measure sets of ``num_images`` images, given as batches, uint8 (b, C, H, W), of equal sizes in all sets.

    Returns:
        Each set's features, and the paired errors of student against teacher if both are there: image k of one must
        then have started from the same noise as image k of the other.
    """
    accumulators = {name: FeatureAccumulator(extractor) for name in sets}
    first: dict[str, list[Tensor]] = {name: [] for name in sets}
    pairs = PairedErrors() if {"teacher", "student"} <= sets.keys() else None
    done = 0
    with tqdm(total=num_images, desc=label, unit="image") as bar:
        while done < num_images:
            batches = {name: next(images) for name, images in sets.items()}
            if pairs is not None:  # first, since features wait for a GPU that is busy with the next batch
                pairs.add(batches["teacher"], batches["student"])
            for name, batch in batches.items():
                accumulators[name].add(batch)
                first[name].append(batch[: max(0, shown - done)].clone())
            done += len(batch)
            bar.update(len(batch))
    measured = {name: Measured(accumulators[name].finish(), torch.cat(first[name])) for name in sets}
    return measured, pairs.summary() if pairs is not None else None
