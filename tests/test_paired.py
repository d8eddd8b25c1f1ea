"""Errors of pairs against an independent implementation, and their summary as a report has it."""

import json

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from ddpm_redistill.errors import UserError
from ddpm_redistill.evaluation.paired import HISTOGRAM_BINS, MAX_PSNR, PairedErrors, image_errors


def pictures(count: int, channels: int = 1, size: int = 16, seed: int = 0) -> Tensor:
    """Smooth shapes on black: flat parts, edges and gradients, as digits have; uint8 (count, channels, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, 4, 4, generator=generator) * 200
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return smooth.clamp(0, 255).to(torch.uint8)


def noisy(images: Tensor, sigma: float, seed: int = 9) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + sigma * noise).clamp(0, 255).round().to(torch.uint8)


def independent_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Of one channel (H, W), uint8 values, by scipy's Gaussian filter of radius 5, its border cut off."""
    blur = lambda x: ndimage.gaussian_filter(x, 1.5, radius=5)[5:-5, 5:-5]  # noqa: E731
    a, b = a.astype(np.float64), b.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a**2) - mean_a**2, blur(b**2) - mean_b**2
    cov = blur(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return float((top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


@pytest.mark.parametrize(("channels", "size"), [(1, 16), (3, 32), (3, 11)])
@pytest.mark.parametrize("sigma", [2, 40])
def test_errors_equal_independent_ones(channels: int, size: int, sigma: float) -> None:
    teacher = pictures(5, channels, size)
    student = noisy(teacher, sigma)
    errors = image_errors(teacher, student)
    a, b = teacher.numpy(), student.numpy()
    mse = ((a / 255 - b / 255) ** 2).mean((1, 2, 3))
    ssim = [np.mean([independent_ssim(x, y) for x, y in zip(*pair, strict=True)]) for pair in zip(a, b, strict=True)]
    assert {name: values.shape for name, values in errors.items()} == {"mse": (5,), "psnr": (5,), "ssim": (5,)}
    np.testing.assert_allclose(errors["mse"], mse, rtol=1e-9)
    np.testing.assert_allclose(errors["psnr"], 10 * np.log10(1 / mse), rtol=1e-9)
    np.testing.assert_allclose(errors["ssim"], ssim, atol=1e-5)


def test_flat_images_by_hand() -> None:
    """102 and 153 of 255 are 0.4 and 0.6: without structure only SSIM's luminance is left."""
    flat = torch.ones(1, 1, 12, 12, dtype=torch.uint8)
    errors = image_errors(flat * 102, flat * 153)
    assert float(errors["mse"]) == pytest.approx(0.04)
    assert float(errors["psnr"]) == pytest.approx(13.9794, abs=1e-4)
    assert float(errors["ssim"]) == pytest.approx((2 * 0.24 + 1e-4) / (0.16 + 0.36 + 1e-4))


def test_identical_images_are_at_the_limits_and_no_pair_is_beyond() -> None:
    images = pictures(3)
    errors = image_errors(images, images.clone())
    assert errors["mse"].tolist() == [0.0] * 3
    assert errors["psnr"].tolist() == [MAX_PSNR] * 3
    assert errors["ssim"].tolist() == pytest.approx([1.0] * 3, abs=1e-12)
    large = torch.zeros(1, 3, 512, 512, dtype=torch.uint8)
    one_level = large.clone()
    one_level[0, 0, 0, 0] = 1
    assert float(image_errors(large, one_level)["psnr"]) == MAX_PSNR


def test_more_noise_is_further_away() -> None:
    images = pictures(20)
    results = [image_errors(images, noisy(images, sigma)) for sigma in (2, 10, 50)]
    for name, sign in (("mse", 1), ("psnr", -1), ("ssim", -1)):
        means = [sign * float(result[name].mean()) for result in results]
        assert means[0] < means[1] < means[2], name


def test_order_of_teacher_and_student_does_not_matter_but_pairing_does() -> None:
    a, b = pictures(4), pictures(4, seed=1)
    forward, backward = image_errors(a, b), image_errors(b, a)
    for name, values in forward.items():
        torch.testing.assert_close(values, backward[name])
    assert image_errors(a, a.flip(0))["mse"].min() > 0


def test_a_summary_is_of_all_batches() -> None:
    teacher = pictures(7)
    student = noisy(teacher, 20)
    collected = PairedErrors()
    collected.add(teacher[:3], student[:3])
    collected.add(teacher[3:], student[3:])
    summary = collected.summary()
    assert summary.keys() == {"num_images", "mse", "psnr", "ssim"}
    assert summary["num_images"] == 7
    for name, values in image_errors(teacher, student).items():
        found, expected = summary[name], values.numpy()
        assert found.keys() == {"mean", "std", "quantiles", "histogram"}
        assert found["mean"] == pytest.approx(expected.mean())
        assert found["std"] == pytest.approx(expected.std())
        levels = {"5": 0.05, "25": 0.25, "50": 0.5, "75": 0.75, "95": 0.95}
        assert found["quantiles"] == pytest.approx({key: np.quantile(expected, q) for key, q in levels.items()})
        edges, counts = found["histogram"]["edges"], found["histogram"]["counts"]
        assert (len(edges), len(counts), sum(counts)) == (HISTOGRAM_BINS + 1, HISTOGRAM_BINS, 7)
        assert (edges[0], edges[-1]) == pytest.approx((expected.min(), expected.max()))


def test_a_summary_is_json_even_of_identical_images() -> None:
    collected = PairedErrors()
    collected.add(pictures(2), pictures(2))
    summary = json.loads(json.dumps(collected.summary(), allow_nan=False))
    assert summary["psnr"]["mean"] == MAX_PSNR
    assert sum(summary["mse"]["histogram"]["counts"]) == 2


def test_images_too_small_for_the_window_have_no_ssim() -> None:
    small = pictures(2, size=10)
    assert image_errors(small, small).keys() == {"mse", "psnr"}
    collected = PairedErrors()
    collected.add(small, small)
    assert collected.summary().keys() == {"num_images", "mse", "psnr"}
    collected.add(pictures(2), pictures(2))
    with pytest.raises(UserError, match="under 11 pixels"):
        collected.summary()


def test_refusals_are_one_line() -> None:
    good = pictures(2)
    cases = [
        lambda: image_errors(good, good[:1]),
        lambda: image_errors(good, pictures(2, 3)),
        lambda: image_errors(good[0], good[0]),
        lambda: image_errors(good[:0], good[:0]),
        lambda: image_errors(good, good.float()),
        lambda: PairedErrors().summary(),
    ]
    for case in cases:
        with pytest.raises(UserError) as caught:
            case()
        assert "\n" not in str(caught.value)
