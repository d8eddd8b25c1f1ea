"""How many predictions of a classifier are right, and an interval of their share."""

import math

import torch

NORMAL_95 = 1.959964
"""97.5% quantile of the standard normal distribution."""


def correct_in_top(logits: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    """Whether fewer than ``k`` classes have a larger logit than the label's: (N, K), int64 (N,) -> bool (N,).

    Of equal logits the class of the smaller number comes first, as in ``argmax``, so that k = 1 agrees with it. A row
    with a NaN is wrong.
    """
    own = logits.gather(1, labels[:, None])
    numbers = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > own) | ((logits == own) & (numbers < labels[:, None]))
    return (ahead.sum(1) < k) & ~logits.isnan().any(1)


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """95% interval of a share of which ``right`` of ``count`` were seen (Wilson 1927; Brown et al. 2001,
    https://doi.org/10.1214/ss/1009213286)."""
    share, z2 = right / count, NORMAL_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    margin = NORMAL_95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, centre - margin), min(1.0, centre + margin)
