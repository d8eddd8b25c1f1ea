"""95% intervals: each left-out distance against one computed afresh, and how often the intervals hold."""

import numpy as np
import pytest
import torch
from feature_helpers import features

from ddpm_redistill.evaluation import intervals
from ddpm_redistill.evaluation.features import Features
from ddpm_redistill.evaluation.intervals import FEWEST, GROUPS, frechet_interval, kid_interval
from ddpm_redistill.evaluation.metrics import frechet_distance


def without(group: int, dealt: list[torch.Tensor], like: Features) -> Features:
    """The features without one of their groups."""
    return Features(torch.cat([part for index, part in enumerate(dealt) if index != group]), None, like.extractor)


def plain_kid(a: torch.Tensor, b: torch.Tensor) -> float:
    """The unbiased squared MMD of all of a and b (Binkowski et al. 2018, eq. 4) in float64."""
    kernel = lambda x, y: ((x.double() @ y.double().T) / x.shape[1] + 1) ** 3  # noqa: E731
    n, m, aa, bb = len(a), len(b), kernel(a, a), kernel(b, b)
    within = (aa.sum() - aa.trace()) / (n * (n - 1)) + (bb.sum() - bb.trace()) / (m * (m - 1))
    return float(within - 2 * kernel(a, b).mean())


@pytest.mark.parametrize(("count", "dim"), [(207, 12), (45, 60)])  # full rank, and fewer images than features
def test_the_margin_is_that_of_distances_computed_afresh(count: int, dim: int) -> None:
    a, b = features(count, 1, dim=dim), features(count + 40, 2, 0.3, dim=dim)
    for interval, distance in (
        (frechet_interval(5.0, a, b), frechet_distance),
        (kid_interval(5.0, a, b), lambda x, y: plain_kid(x.values, y.values)),
    ):
        variance = 0.0
        for one, other, swap in ((a, b, False), (b, a, True)):
            dealt = intervals._deal(one.values)
            assert [len(part) for part in dealt] == [len(one) // GROUPS] * GROUPS + [len(one) % GROUPS]
            pairs = [(without(group, dealt, one), other) for group in range(GROUPS)]
            found = np.array([distance(*(pair[::-1] if swap else pair)) for pair in pairs])
            n, size = len(one), len(one) // GROUPS
            variance += (n - size) / size * found.var()
        assert interval == pytest.approx([max(5 - 2.093 * variance**0.5, 0), 5 + 2.093 * variance**0.5], rel=1e-4)


def test_every_image_is_dealt_once() -> None:
    dealt = torch.cat(intervals._deal(torch.arange(107)))
    assert sorted(dealt.tolist()) == list(range(107))
    assert dealt.tolist() != list(range(107))


def test_intervals_hold_and_a_bootstrap_would_not() -> None:
    """Of many draws from the same two distributions, about 95% of the intervals must hold the mean figure."""
    figures, found, resampled, generator = [], [], [], torch.Generator().manual_seed(0)
    for draw in range(100):
        a, b = features(60, 1000 + draw, dim=16), features(60, 5000 + draw, 0.2, dim=16)
        figures.append(frechet_distance(a, b))
        found.append(frechet_interval(figures[-1], a, b))
        again = [
            Features(each.values[torch.randint(60, (60,), generator=generator)], None, each.extractor)
            for each in (a, b)
        ]
        resampled.append(frechet_distance(*again))
    figures, found = np.array(figures), np.array(found)
    held = ((found[:, 0] <= figures.mean()) & (figures.mean() <= found[:, 1])).mean()
    assert 0.9 <= held <= 1
    margin = (found[:, 1] - figures).mean() / intervals.STUDENT_T
    assert 0.9 < margin / figures.std() < 1.6
    assert np.mean(resampled) > figures.mean() + 2 * figures.std()  # why it is not the bootstrap


def test_intervals_are_the_same_again_and_narrow_with_more_images() -> None:
    widths = []
    for count in (100, 1600):
        a, b = features(count, 1), features(count, 2, 0.5)
        assert frechet_interval(1.0, a, b) == frechet_interval(1.0, a, b)
        assert kid_interval(1.0, a, b) == kid_interval(1.0, a, b)
        widths.append([float(np.ptp(each)) for each in (frechet_interval(99.0, a, b), kid_interval(99.0, a, b))])
    for few, many in zip(*widths, strict=True):
        assert 2 < few / many < 8  # the square root of 16 is 4


def test_statistics_alone_are_taken_as_exact() -> None:
    a, b = features(100, 1), features(100, 2, 0.5)
    exact, both = frechet_interval(9.0, a, b.statistics), frechet_interval(9.0, a, b)
    assert 0 < np.ptp(exact) < np.ptp(both)


def test_a_frechet_interval_does_not_go_below_zero() -> None:
    a, b = features(60, 1), features(60, 2)
    assert frechet_interval(1e-3, a, b)[0] == 0
    assert kid_interval(0.0, a, b)[0] < 0  # unbiased: may be negative


@pytest.mark.parametrize(("first", "second"), [(FEWEST - 1, 100), (100, FEWEST - 1)])
def test_too_few_images_have_none(first: int, second: int) -> None:
    a, b = features(first, 1), features(second, 2)
    assert frechet_interval(1.0, a, b) is None
    assert kid_interval(1.0, a, b) is None
