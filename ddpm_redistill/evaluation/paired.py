"""How far each image of the student is from the teacher's image that started from the same noise.

Distances between sets say whether two models make the same kind of images; these say whether they make the same ones.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

MAX_PSNR = 100.0
"""dB. Identical images, whose PSNR is infinite, count as this, and nothing counts as more."""
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
"""SSIM's Gaussian window (pixels a side, standard deviation) and constants, as published."""
QUANTILES = (5, 25, 50, 75, 95)
HISTOGRAM_BINS = 30


def image_errors(teacher: Tensor, student: Tensor) -> dict[str, Tensor]:
    """``mse``, ``psnr`` and ``ssim`` of each pair, float64 (B,) on the CPU.

    ``teacher``, ``student``: uint8 (B, C, H, W), pair k from the same noise. All are taken on pixels in [0, 1]:
    ``mse`` over channels and pixels, ``psnr`` = -10 log10(mse) in dB, at most 100, which identical images get;
    ``ssim`` as :func:`structural_similarity`, absent for images under 11 pixels a side, where its window does not fit.

    Raises: :class:`UserError` for tensors of another kind, different shapes, or no images.
    """
    shape = tuple(teacher.shape)
    if shape != tuple(student.shape) or len(shape) != 4 or 0 in shape:
        raise UserError(f"pairs must be two (B, C, H, W) of one shape, got {shape} and {tuple(student.shape)}")
    if teacher.dtype != torch.uint8 or student.dtype != torch.uint8:
        raise UserError(f"pairs must be uint8, got {teacher.dtype} and {student.dtype}")
    # float64: SSIM's variances are small differences of large means
    a, b = teacher.cpu().double() / 255, student.cpu().double() / 255
    mse = (a - b).square().flatten(1).mean(1)
    errors = {"mse": mse, "psnr": (-10 * mse.log10()).clamp(max=MAX_PSNR)}
    if min(shape[2:]) >= WINDOW:
        # one by one: the maps that it needs are many times larger than an image
        errors["ssim"] = torch.stack([structural_similarity(x, y) for x, y in zip(a, b, strict=True)])
    return errors


def structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of two images (C, H, W) with values in [0, 1], H and W at least 11 -> scalar; 1 where equal.

    Wang et al. 2004 (doi 10.1109/TIP.2003.819861), eq. 13 and section III-C: local means, variances and covariance
    under an 11x11 Gaussian window of standard deviation 1.5, only where it lies inside the image; C1 = 0.01^2,
    C2 = 0.03^2. The map is averaged over positions, for each channel, then over channels. Images are not shrunk first,
    as some programs do with large ones.
    """
    mean_a, mean_b, square_a, square_b, product = (_blurred(each) for each in (a, b, a * a, b * b, a * b))
    variance_a, variance_b, covariance = square_a - mean_a**2, square_b - mean_b**2, product - mean_a * mean_b
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    contrast_structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return (luminance * contrast_structure).mean()


class PairedErrors:
    """Collects pairs batch by batch; keeps three numbers an image."""

    def __init__(self) -> None:
        self._batches: list[dict[str, Tensor]] = []

    def add(self, teacher: Tensor, student: Tensor) -> None:
        """uint8 (B, C, H, W) each, pair k from the same noise. Raises as :func:`image_errors`."""
        self._batches.append(image_errors(teacher, student))

    def summary(self) -> dict[str, Any]:
        """``num_images``, and for each of ``mse``, ``psnr``, ``ssim`` (absent as in :func:`image_errors`) over images:
        ``mean``, ``std`` (of all, not a sample's estimate), ``quantiles`` by percent, and a ``histogram`` of 30 equal
        bins from the smallest to the largest value (``edges`` 31, ``counts`` 30). JSON values, all finite.

        Raises: :class:`UserError` when nothing was added, or images both under and over 11 pixels were.
        """
        if not self._batches:
            raise UserError("there are no pairs of images to compare")
        names = self._batches[0].keys()
        if any(batch.keys() != names for batch in self._batches):
            raise UserError("pairs of images under 11 pixels a side cannot be summarised with larger ones")
        columns = {name: torch.cat([batch[name] for batch in self._batches]).numpy() for name in names}
        return {"num_images": len(columns["mse"]), **{name: _spread(values) for name, values in columns.items()}}


def quantiles(values: np.ndarray) -> dict[str, float]:
    """{"5": ..., "25": ..., "50": ..., "75": ..., "95": ...} of values (N,), interpolated linearly."""
    return {str(q): float(value) for q, value in zip(QUANTILES, np.percentile(values, QUANTILES), strict=True)}


def _spread(values: np.ndarray) -> dict[str, Any]:
    counts, edges = np.histogram(values, HISTOGRAM_BINS)
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "quantiles": quantiles(values),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _blurred(maps: Tensor) -> Tensor:
    """Gaussian means of maps (C, H, W) -> (C, H - 10, W - 10). The window is a product: rows, then columns."""
    offsets = torch.arange(WINDOW, dtype=maps.dtype) - WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    window /= window.sum()
    for dim in (1, 2):  # as sums of shifted maps: conv2d in float64 takes seven times as long
        size = maps.shape[dim] - WINDOW + 1
        shifted = [maps.narrow(dim, shift, size) for shift in range(WINDOW)]
        maps = shifted[0] * window[0]
        for each, weight in zip(shifted[1:], window[1:].tolist(), strict=True):
            maps.add_(each, alpha=weight)
    return maps
