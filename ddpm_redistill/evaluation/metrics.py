"""Distances between two sets of images, by torch-fidelity's own functions on features that are extracted once.

torch-fidelity's high-level call extracts (or caches, by name alone) the features of both sets for every pair. Here a
set is turned into :class:`Features` once, and each pair costs only the statistics.

The Frechet distance (Heusel et al. 2017, https://arxiv.org/abs/1706.08500) is biased upwards at small n, more so below
the feature size: compare it only at equal n. KID (Binkowski et al. 2018, https://arxiv.org/abs/1801.01401) is unbiased,
so it may be slightly negative.
"""

from __future__ import annotations

from typing import Any

from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from ..errors import UserError
from .features import FeatureAccumulator, Features, Statistics, extract_features
from .intervals import frechet_interval, kid_interval

__all__ = [
    "FeatureAccumulator",
    "Features",
    "Statistics",
    "compare",
    "distance_warnings",
    "extract_features",
    "inception_score",
]

KID_SUBSETS = 100
"""Random subsets KID is averaged over: torch-fidelity's default."""
KID_SUBSET_SIZE = 1000
"""Images in a subset: torch-fidelity's default."""
NEIGHBOURS = 3
"""Of precision and recall: the published choice, and torch-fidelity's default."""
PRC_ROWS = 1000
"""Images whose distances to all others are held at once for precision and recall."""
FEW_IMAGES = 10_000
"""Below this many, a Frechet distance comes with a warning; the field's figures are of 50,000."""


def compare(a: Features, b: Features | Statistics) -> dict[str, Any]:
    """Every distance from ``a``, the images in question, to ``b``, the reference.

    Keys, with ``fid`` and ``kid`` as the extractor calls them (``Extractor.fid_name``, ``kid_name``):

    - ``fid``: ``|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))``.
    - ``kid``, ``kid_std``: mean and standard deviation, over 100 random subsets (fixed seed) of
      :func:`kid_subset_size` images, of the unbiased squared maximum mean discrepancy with kernel ``(x.y / D + 1)^3``.
    - ``fid_interval``, ``kid_interval``: [low, high], 95%, see ``intervals.py``. From 40 images a set.
    - ``precision``: the share of ``a`` within the reach of ``b``, that is no further from an image of ``b`` than its
      third nearest neighbour in ``b`` is (quality); ``recall``: the share of ``b`` within the reach of ``a``
      (diversity); ``f_score``: their harmonic mean. From 4 images a set. Kynkaanniemi et al. 2019,
      https://arxiv.org/abs/1904.06991, there on VGG-16 features: only figures of one extractor and equal n compare.

    On one thread 2,000 images of 1,280 features take a quarter of a minute, 10,000 of 2,048 three minutes; precision,
    recall and KID's interval grow with the square of the number. 50,000 of 2,048 need 2 GB beside their features.

    What cannot be had is absent: with statistics that have no features, all but ``fid`` and its interval.

    Raises: :class:`UserError` for fewer than two images in a set, or features of different extractors.
    """
    check_comparable(a, b)
    found = frechet_with_interval(a, b)
    return found | kid_and_precision(a, b) if isinstance(b, Features) else found


def frechet_with_interval(a: Features, b: Features | Statistics) -> dict[str, Any]:
    """``fid`` and ``fid_interval`` of :func:`compare`, of one extractor."""
    name, distance = a.extractor.fid_name, frechet_distance(a, b)
    return _there({name: distance, f"{name}_interval": frechet_interval(distance, a, b)})


def kid_and_precision(a: Features, b: Features) -> dict[str, Any]:
    """The other figures of :func:`compare`, of one extractor: those that need few images."""
    name, kid = a.extractor.kid_name, kernel_distance(a, b)
    found = {name: kid["mean"], f"{name}_std": kid["std"], f"{name}_interval": kid_interval(kid["mean"], a, b)}
    if min(len(a), len(b)) > NEIGHBOURS:
        found |= prc_features_to_metric(
            a.values,
            b.values,
            prc_neighborhood=NEIGHBOURS,
            prc_batch_size=PRC_ROWS,
            save_cpu_ram=True,  # distances of PRC_ROWS images at once: all of 50,000 would be 10 GB, three times
            verbose=False,
        )
    return _there(found)


def _there(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if value is not None}


def frechet_and_kid(a: Features, b: Features) -> dict[str, float]:
    """Only ``fid``, ``kid`` and ``kid_std`` of :func:`compare`, in seconds. Raises as that."""
    check_comparable(a, b)
    names, kid = a.extractor, kernel_distance(a, b)
    return {names.fid_name: frechet_distance(a, b), names.kid_name: kid["mean"], f"{names.kid_name}_std": kid["std"]}


def frechet_distance(a: Features, b: Features | Statistics) -> float:
    """``fid`` of :func:`compare`, whatever the extractors."""
    pair = (a.statistics, b.statistics if isinstance(b, Features) else b)
    found = fid_statistics_to_metric(*({"mu": each.mu, "sigma": each.sigma} for each in pair), verbose=False)
    return float(found[KEY_METRIC_FID])


def kernel_distance(a: Features, b: Features) -> dict[str, float]:
    """``mean`` and ``std`` of KID as in :func:`compare`, whatever the extractors."""
    size = kid_subset_size(min(len(a), len(b)))
    found = kid_features_to_metric(a.values, b.values, kid_subsets=KID_SUBSETS, kid_subset_size=size, verbose=False)
    return {"mean": float(found[KEY_METRIC_KID_MEAN]), "std": float(found[KEY_METRIC_KID_STD])}


def kid_subset_size(num_images: int) -> int:
    """Images in a KID subset: 1,000 (torch-fidelity's default) where there are as many, else half of the images, so
    that the subsets still differ; never more than ``num_images``, never less than 2."""
    return KID_SUBSET_SIZE if num_images >= KID_SUBSET_SIZE else min(num_images, max(2, num_images // 2))


def inception_score(features: Features) -> dict[str, float]:
    """Inception Score of one set (Salimans et al. 2016, https://arxiv.org/abs/1606.03498) as ``isc`` and ``isc_std``,
    over 10 splits (fewer images: one image a split). Empty when the extractor has no Inception logits."""
    if features.logits is None:
        return {}
    score = isc_features_to_metric(features.logits, splits=min(10, len(features)))
    return {"isc": float(score[KEY_METRIC_ISC_MEAN]), "isc_std": float(score[KEY_METRIC_ISC_STD])}


def check_comparable(a: Features, b: Features | Statistics) -> None:
    """Raises: :class:`UserError` for fewer than two images in a set, or features of different extractors."""
    theirs = b.extractor.identity if isinstance(b, Features) else b.extractor
    if theirs is not None and theirs != a.extractor.identity:
        raise UserError(
            f"features of different extractors cannot be compared: {describe(a.extractor.identity)} and "
            f"{describe(theirs)}"
        )
    size = b.values.shape[1] if isinstance(b, Features) else len(b.mu)
    if size != a.values.shape[1]:
        raise UserError(f"features of {a.values.shape[1]} and {size} values cannot be compared")
    if len(a) < 2 or (b.num_images is not None and b.num_images < 2):
        raise UserError(f"a distance needs at least 2 images in each set, got {len(a)} and {b.num_images}")


def distance_warnings(*sets: Features | Statistics) -> list[str]:
    """What a reader of the Frechet distances between these sets must know, one sentence each; at least one of the sets
    must be features."""
    extractor = next(each.extractor for each in sets if isinstance(each, Features))
    fid, kid = extractor.fid_name, extractor.kid_name
    found = []
    known = [each.num_images for each in sets if each.num_images is not None]
    fewest = min(known)
    if fewest < FEW_IMAGES:
        found.append(
            f"{fid} of {fewest:,} images is biased upwards (markedly below {FEW_IMAGES:,}): compare it only with "
            f"figures of as many images; {kid} has no such bias"
        )
    if fewest <= extractor.feature_size:
        found.append(
            f"the covariance of {fewest:,} images in {extractor.feature_size:,} features has not full rank: {fid} says "
            f"more about the number of images than about the model; go by {kid}"
        )
    if len(set(known)) > 1:
        counts = ", ".join(f"{count:,}" for count in sorted(set(known)))
        found.append(f"the sets are of different size ({counts} images): the bias of {fid} differs from pair to pair")
    if any(each.num_images is None for each in sets):
        found.append(f"statistics that do not say how many images they are of: nothing is known of their bias in {fid}")
    if any(isinstance(each, Statistics) and each.extractor is None for each in sets):
        found.append("statistics that do not name their extractor are taken for Inception's, which cannot be checked")
    if any(isinstance(each, Statistics) for each in sets):
        found.append(f"statistics without features give neither {kid} nor precision and recall")
    return found


def describe(identity: dict[str, str]) -> str:
    """An extractor for people: name, layer, first digits of its weights' sha256."""
    return f"{identity['name']} layer {identity['layer']} ({identity['weights_sha256'][:8]})"
