"""Features of a set of images, gathered batch by batch: what every distance is computed from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.metric_fid import fid_features_to_statistics
from tqdm import tqdm

from ..errors import UserError
from .extractors import Extractor

CHUNK = 32
"""Images the extractor sees at once. Always as many: a network's last digits depend on the size of its batch."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and covariance of a set's features: all that a Frechet distance needs.

    ``mu``: float64 (D,); ``sigma``: float64 (D, D), unbiased. ``num_images`` and ``images_sha256`` are None when not
    known; ``extractor`` is ``Extractor.identity``, None when not known.
    """

    mu: np.ndarray
    sigma: np.ndarray
    num_images: int | None
    extractor: dict[str, str] | None
    images_sha256: str | None = None


@dataclass(frozen=True, eq=False)
class Features:
    """Features of one set of images.

    ``values``: float32 (N, D) on the CPU. ``logits``: float32 (N, 1008) or None. ``images_sha256``: of the images'
    shapes and pixels in order (:func:`hash_images`), None when not known.
    """

    values: Tensor
    logits: Tensor | None
    extractor: Extractor
    images_sha256: str | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def num_images(self) -> int:
        return len(self.values)

    @cached_property
    def statistics(self) -> Statistics:
        """By torch-fidelity, in float64; computed once."""
        found = fid_features_to_statistics(self.values.double())
        return Statistics(found["mu"], found["sigma"], len(self), self.extractor.identity, self.images_sha256)


class FeatureAccumulator:
    """Takes images in batches of any size and keeps their features: N x D x 4 bytes (and N x 1,008 x 4 of logits with
    Inception), never more than ``CHUNK`` of the images.

    The extractor always sees ``CHUNK`` images at once, in order, the last time fewer: features, and every figure made
    of them, are the same to the last digit whatever batches the images came in.
    """

    def __init__(self, extractor: Extractor) -> None:
        self._extractor = extractor
        self._digest = hashlib.sha256()
        self._pending: Tensor | None = None
        self._values: list[Tensor] = []
        self._logits: list[Tensor] = []

    def add(self, images: Tensor) -> None:
        """uint8 (B, C, H, W), values 0 to 255, one channel or three, all batches of one C, H and W.

        Raises: :class:`UserError` for any other.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
            raise UserError(
                f"images to measure must be uint8 (N, C, H, W) with 1 or 3 channels, got {images.dtype} "
                f"{tuple(images.shape)}"
            )
        images = images.cpu()
        if self._pending is None:
            self._pending = images[:0]
        if self._pending.shape[1:] != images.shape[1:]:
            before, now = tuple(self._pending.shape[1:]), tuple(images.shape[1:])
            raise UserError(f"images to measure must be of one shape (C, H, W), got {before} and then {now}")
        for image in images:
            _hash_image(self._digest, image)
        waiting = torch.cat([self._pending, images])
        whole = len(waiting) // CHUNK * CHUNK
        for start in range(0, whole, CHUNK):
            self._run(waiting[start : start + CHUNK])
        self._pending = waiting[whole:].clone()  # not a view of what is done with

    def finish(self) -> Features:
        """The features of all that was added; the accumulator is empty then.

        Raises: :class:`UserError` when there were no images.
        """
        if self._pending is not None and len(self._pending):
            self._run(self._pending)
        if not self._values:
            raise UserError("there are no images to measure")
        logits = _join(self._logits) if self._logits else None
        return Features(_join(self._values), logits, self._extractor, self._digest.hexdigest())

    def _run(self, images: Tensor) -> None:
        values, logits = self._extractor(images.expand(-1, 3, -1, -1))
        self._values.append(values.float().cpu())
        if logits is not None:
            self._logits.append(logits.float().cpu())


def extract_features(
    images: Tensor | Dataset[Tensor], extractor: Extractor, *, progress: str | None = None
) -> Features:
    """Run ``extractor`` over every image, in order, as :class:`FeatureAccumulator` does.

    ``images``: uint8 (N, C, H, W), or a dataset with a length whose items are uint8 (C, H, W). ``progress``: label of a
    progress bar on standard error; ``None`` shows none.

    Raises: :class:`UserError` for no images, other dtypes, channels or shapes.
    """
    found = FeatureAccumulator(extractor)
    with tqdm(total=_count(images), desc=progress, unit="image", disable=progress is None) as bar:
        for batch in _batches(images):
            found.add(batch)
            bar.update(len(batch))
    return found.finish()


def hash_images(images: Tensor | Dataset[Tensor]) -> str:
    """sha256 of each image's shape and pixels in order: ``images_sha256`` of the features of these images."""
    digest = hashlib.sha256()
    for batch in _batches(images):
        for image in batch.cpu():
            _hash_image(digest, image)
    return digest.hexdigest()


def _hash_image(digest: hashlib._Hash, image: Tensor) -> None:
    digest.update(str(tuple(image.shape)).encode())
    digest.update(image.contiguous().numpy().data)


def _count(images: Tensor | Dataset[Tensor]) -> int:
    return len(images)  # type: ignore[arg-type]


def _batches(images: Tensor | Dataset[Tensor]) -> Iterator[Tensor]:
    count = _count(images)
    for start in range(0, count, CHUNK):
        stop = min(start + CHUNK, count)
        if isinstance(images, Tensor):
            yield images[start:stop]
            continue
        items = [images[index] for index in range(start, stop)]
        if not all(isinstance(item, Tensor) and item.shape == items[0].shape for item in items):
            raise UserError("a dataset to measure must give uint8 (C, H, W) tensors of one size")
        yield torch.stack(items)


def _join(parts: list[Tensor]) -> Tensor:
    """torch.cat that lets go of each part as it is copied, so that the whole is not held twice."""
    whole = torch.empty(sum(map(len, parts)), *parts[0].shape[1:])
    end = len(whole)
    while parts:
        part = parts.pop()
        whole[end - len(part) : end] = part
        end -= len(part)
    return whole
