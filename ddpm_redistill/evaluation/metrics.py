"""Distances between two sets of images, by torch-fidelity's own functions on features that are extracted
once.

torch-fidelity's high-level call extracts (or caches, by name alone) the features of both sets for every pair.
Here a set is turned into :class:`Features` once, and each pair costs only the statistics.

The Frechet distance (Heusel et al. 2017, https://arxiv.org/abs/1706.08500) is biased upwards at small n, more
so below the feature size: compare it only at equal n. KID (Binkowski et al. 2018,
https://arxiv.org/abs/1801.01401) is unbiased, so it may be slightly negative.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from tqdm import tqdm

from ..errors import UserError
from .extractors import Extractor

KID_SUBSETS = 100
"""Random subsets KID is averaged over: torch-fidelity's default."""
KID_SUBSET_SIZE = 1000
"""Images in a subset: torch-fidelity's default."""


@dataclass(frozen=True, eq=False)
class Features:
    """Features of one set of images. ``values``: float32 (N, D) on the CPU; ``logits``: float32 (N, 1008) or
    None."""

    values: Tensor
    logits: Tensor | None
    extractor: Extractor

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """Mean ``mu`` (D,) and covariance ``sigma`` (D, D, unbiased) as numpy arrays, computed once."""
        return dict(fid_features_to_statistics(self.values))


def extract_features(
    images: Tensor | Dataset[Tensor], extractor: Extractor, batch_size: int = 64, progress: str | None = None
) -> Features:
    """Run ``extractor`` over every image, in order.

    ``images``: uint8 (N, C, H, W), or a dataset with a length whose items are uint8 (C, H, W); values 0 to
    255; one channel is repeated to three. ``progress``: label of a progress bar on standard error; ``None``
    shows none.

    Raises: :class:`UserError` for no images, other dtypes or shapes, channels other than 1 or 3, or images of
    different sizes in one batch.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    count = len(images)  # type: ignore[arg-type]
    if count == 0:
        raise UserError("there are no images to measure")
    values, logits = [], []
    with tqdm(total=count, desc=progress, unit="image", disable=progress is None) as bar:
        for batch in _batches(images, count, batch_size):
            value, logit = extractor(batch)
            values.append(value.float().cpu())
            if logit is not None:
                logits.append(logit.float().cpu())
            bar.update(len(batch))
    return Features(torch.cat(values), torch.cat(logits) if logits else None, extractor)


def frechet_and_kid(a: Features, b: Features) -> dict[str, float]:
    """Frechet distance and KID between two sets, named by their extractor.

    Keys: ``fid``, ``kid``, ``kid_std`` with Inception; ``fd_efficientnet_lite0``, ``kid_efficientnet_lite0``,
    ``kid_efficientnet_lite0_std`` with EfficientNet-lite0. The Frechet distance is
    ``|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))``. KID is the mean of the unbiased squared maximum
    mean discrepancy with kernel ``(x.y / D + 1)^3`` over 100 random subsets of :func:`kid_subset_size` images
    (fixed seed), ``_std`` its standard deviation over the subsets.

    Raises: :class:`UserError` for fewer than two images in a set, or features of different extractors.
    """
    if not a.extractor.comparable_with(b.extractor):
        raise UserError(
            f"features of different extractors cannot be compared: {_short(a.extractor)} and {_short(b.extractor)}"
        )
    smallest = min(len(a), len(b))
    if smallest < 2:
        raise UserError(f"a distance needs at least 2 images in each set, got {len(a)} and {len(b)}")
    frechet = fid_statistics_to_metric(a.statistics, b.statistics, verbose=False)
    kid = kid_features_to_metric(
        a.values, b.values, kid_subsets=KID_SUBSETS, kid_subset_size=kid_subset_size(smallest), verbose=False
    )
    name = a.extractor
    return {
        name.fid_name: float(frechet[KEY_METRIC_FID]),
        name.kid_name: float(kid[KEY_METRIC_KID_MEAN]),
        f"{name.kid_name}_std": float(kid[KEY_METRIC_KID_STD]),
    }


def inception_score(features: Features) -> dict[str, float]:
    """Inception Score of one set (Salimans et al. 2016, https://arxiv.org/abs/1606.03498) as ``isc`` and
    ``isc_std``, over 10 splits (fewer images: one image a split). Empty when the extractor has no Inception
    logits."""
    if features.logits is None:
        return {}
    score = isc_features_to_metric(features.logits, splits=min(10, len(features)))
    return {"isc": float(score[KEY_METRIC_ISC_MEAN]), "isc_std": float(score[KEY_METRIC_ISC_STD])}


def kid_subset_size(num_images: int) -> int:
    """Images in a KID subset: 1,000 (torch-fidelity's default) where there are as many, else half of the
    images, so that the subsets still differ; never more than ``num_images``, never less than 2."""
    return KID_SUBSET_SIZE if num_images >= KID_SUBSET_SIZE else min(num_images, max(2, num_images // 2))


def _batches(images: Tensor | Dataset[Tensor], count: int, batch_size: int) -> Iterator[Tensor]:
    for start in range(0, count, batch_size):
        stop = min(start + batch_size, count)
        if isinstance(images, Tensor):
            batch = images[start:stop]
        else:
            items = [images[index] for index in range(start, stop)]
            if not all(isinstance(item, Tensor) and item.shape == items[0].shape for item in items):
                raise UserError("a dataset to measure must give uint8 (C, H, W) tensors of one size")
            batch = torch.stack(items)
        if batch.dtype != torch.uint8 or batch.dim() != 4 or batch.shape[1] not in (1, 3):
            raise UserError(
                f"images to measure must be uint8 (N, C, H, W) with 1 or 3 channels, got {batch.dtype} "
                f"{tuple(batch.shape)}"
            )
        yield batch.expand(-1, 3, -1, -1)


def _short(extractor: Extractor) -> str:
    return f"{extractor.name} layer {extractor.layer} ({extractor.weights_sha256[:8]})"
