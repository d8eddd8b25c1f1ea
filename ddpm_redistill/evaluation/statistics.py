"""Statistics of a set of images in an .npz file, so that a reference need not be measured again.

Ours holds ``mu`` (D,), ``sigma`` (D, D) in float64, ``num_images``, ``images_sha256``, the extractor's identity
(``extractor_name``, ``_layer``, ``_resize``, ``_weights_sha256``) and the ``features`` (N, D) in float32, for KID,
precision and recall: 8 D^2 + 4 N D bytes, 23 MB for 2,000 images of 1,280 features, 443 MB for 50,000 of 2,048.

The field's hold ``mu`` and ``sigma`` alone (pytorch-fid, and the reference statistics many repositories publish).
Their extractor is not known: they are taken for Inception's, with a warning. Other programs read ours the same way.
"""

from __future__ import annotations

import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from ..files import written_aside
from ..sources.image_files import one_line
from .extractors import INCEPTION, Extractor
from .features import Features, Statistics

log = logging.getLogger("ddpm_redistill")

IDENTITY = ("name", "layer", "resize", "weights_sha256")
OURS = ("num_images", "images_sha256", "features", *(f"extractor_{key}" for key in IDENTITY))
KEYS = ("mu", "sigma", *OURS)


def save_statistics(path: Path, features: Features) -> None:
    """Write them whole or not at all; a file of that name is replaced."""
    statistics = features.statistics
    arrays: dict[str, Any] = {
        "mu": statistics.mu,
        "sigma": statistics.sigma,
        "num_images": np.int64(len(features)),
        "images_sha256": np.str_(features.images_sha256 or ""),
        "features": features.values.numpy(),
        **{f"extractor_{key}": np.str_(features.extractor.identity[key]) for key in IDENTITY},
    }
    with written_aside(path) as aside, aside.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def holds_statistics(path: str | os.PathLike[str]) -> bool:
    """Whether a file is an .npz with ``mu`` or ``sigma``, that is, statistics and not images."""
    try:
        with zipfile.ZipFile(path) as archive:
            return not {"mu.npy", "sigma.npy"}.isdisjoint(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def load_statistics(path: str | os.PathLike[str], extractor: Extractor) -> Features | Statistics:
    """Read statistics that ``extractor`` made: :class:`Features` where the file has them, else :class:`Statistics`.

    Arrays of Python objects are never loaded.

    Raises: :class:`UserError`, one line, for a file that is missing, damaged or no .npz; keys that are missing; wrong
    shapes or values; another extractor's statistics; and statistics that name none when ``extractor`` is not Inception.
    """
    arrays = _read(path)
    missing = [key for key in ("mu", "sigma") if key not in arrays]
    ours = [key for key in OURS if key in arrays]
    if not missing and ours:
        missing = [key for key in OURS if key not in arrays]
    if missing:
        raise UserError(f"{path} is no file of statistics: {', '.join(missing)} missing, there is {_names(arrays)}")
    mu, sigma = _checked(path, arrays["mu"], arrays["sigma"])
    if not ours:
        if extractor.name != INCEPTION or len(mu) != extractor.feature_size:
            raise UserError(
                f"{path} names no extractor and has {len(mu)} features; such files are taken for Inception's 2048, and "
                f"the extractor here is {extractor.name} ({extractor.feature_size}): give --inception_weights, or "
                "make the file by ddpm-redistill statistics"
            )
        log.warning("%s does not name its extractor: taken for Inception's, which cannot be checked", path)
        return Statistics(mu, sigma, None, None)
    identity = {key: str(arrays[f"extractor_{key}"]) for key in IDENTITY}
    if identity != extractor.identity:
        differ = [f"{key} {identity[key]}, not {extractor.identity[key]}" for key in IDENTITY]
        differ = [text for text, key in zip(differ, IDENTITY, strict=True) if identity[key] != extractor.identity[key]]
        raise UserError(
            f"{path} holds statistics of another extractor ({'; '.join(differ)}): make them again with this"
        )
    values = arrays["features"]
    shape = (int(arrays["num_images"]) if arrays["num_images"].ndim == 0 else -1, len(mu))
    if values.dtype != np.float32 or values.shape != shape or not np.isfinite(values).all():
        raise UserError(f"{path}: features must be finite float32 {shape}, got {values.dtype} {values.shape}")
    if not np.allclose(values.mean(0, dtype=np.float64), mu, rtol=1e-6, atol=1e-6 * np.abs(mu).max(initial=0)):
        raise UserError(f"{path}: mu is not the mean of its features; make the file again")
    return Features(torch.from_numpy(values), None, extractor, str(arrays["images_sha256"]) or None)


def _read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    if not os.path.isfile(path):
        raise UserError(f"there is no file {path}")
    try:
        if not zipfile.is_zipfile(path):  # np.load would take a .npy or a pickle under this name
            raise ValueError("it is not an archive as numpy.savez writes")
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in KEYS if key in file.files}
    except Exception as error:  # zip, zlib, numpy and memory errors alike: the file is the cause
        reason = one_line(error)
        if "allow_pickle" in reason:
            reason = "it holds Python objects, which are never loaded"
        raise UserError(f"{path} cannot be read as statistics: {reason}") from error


def _checked(path: str | os.PathLike[str], mu: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not len(mu):
        raise UserError(f"{path}: mu must be (D,) and sigma (D, D), got {mu.shape} and {sigma.shape}")
    if mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise UserError(f"{path}: mu and sigma must be floating-point, got {mu.dtype} and {sigma.dtype}")
    mu, sigma = mu.astype(np.float64), sigma.astype(np.float64)
    if not np.isfinite(mu).all() or not np.isfinite(sigma).all():
        raise UserError(f"{path}: mu or sigma holds values that are not finite")
    if not np.allclose(sigma, sigma.T, rtol=1e-5, atol=1e-6 * np.abs(sigma).max()) or (np.diag(sigma) < 0).any():
        raise UserError(f"{path}: sigma is no covariance: it is not symmetric, or its diagonal has negative values")
    return mu, sigma


def _names(arrays: dict[str, np.ndarray]) -> str:
    return ", ".join(arrays) or "none of its keys"
