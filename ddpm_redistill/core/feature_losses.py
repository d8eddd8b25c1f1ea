"""Distances between feature maps of student and teacher, and FitNet's regressors.

Each distance is a function of a student map (B, C_s, H, W) and a teacher map (B, C_t, H, W) -> scalar, in float32
whatever the maps are, and a mean over the batch; constant factors of the papers are left to the weights.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

FeatureLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor]  # student map, teacher map


def mean_over_pairs(term: FeatureLoss, pairs: Sequence[Pair]) -> torch.Tensor:
    """Mean of a distance over (student map, teacher map) pairs -> scalar."""
    return torch.stack([term(student_map, teacher_map) for student_map, teacher_map in pairs]).mean()


def red_distance(student_map: torch.Tensor, teacher_map: torch.Tensor, distance: str) -> torch.Tensor:
    """RED alignment (Chen et al. 2025, arXiv 2406.03744, section 3); channel counts need not agree.

    Each map is averaged over its channels to (B, H, W) and flattened per sample; "mse" is the mean squared
    difference, "cosine" 1 - cos.

    Raises:
        ValueError: an unknown distance, or maps of different resolution.
    """
    _check_resolution(student_map, teacher_map)
    student_vector = student_map.float().mean(1).flatten(1)  # (B, H*W)
    teacher_vector = teacher_map.float().mean(1).flatten(1)
    if distance == "mse":
        return F.mse_loss(student_vector, teacher_vector)
    if distance == "cosine":
        return (1 - F.cosine_similarity(student_vector, teacher_vector, dim=1)).mean()
    raise ValueError(f"unknown RED distance {distance!r}: expected mse or cosine")


def feature_mse(student_map: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
    """Mean squared difference over (B, C, H, W); of regressed maps it is FitNet's hint loss (arXiv 1412.6550, eq. 3).

    Raises:
        ValueError: maps of different shape.
    """
    if student_map.shape != teacher_map.shape:
        raise ValueError(f"maps of {tuple(student_map.shape)} and {tuple(teacher_map.shape)} differ in shape")
    return F.mse_loss(student_map.float(), teacher_map.float())


def attention_norm(student_map: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
    """Attention transfer as its paper has it: L2 norm of the difference of normalised attention maps.

    Zagoruyko and Komodakis 2017, arXiv 1612.03928, eq. 2 with p = 2, without its beta / 2; channel counts need not
    agree.

    Raises:
        ValueError: maps of different resolution.
    """
    _check_resolution(student_map, teacher_map)
    return torch.linalg.vector_norm(_attention(student_map) - _attention(teacher_map), dim=1).mean()


def attention_mean_square(student_map: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
    """Attention transfer as its authors' code has it: mean square of the difference of normalised attention maps.

    For each sample the square of ``attention_norm`` over H*W (github.com/szagoruyko/attention-transfer, ``at_loss``).
    The code averages over channels where the paper sums, which the normalisation undoes.

    Raises:
        ValueError: maps of different resolution.
    """
    _check_resolution(student_map, teacher_map)
    return F.mse_loss(_attention(student_map), _attention(teacher_map))


def similarity(student_map: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
    """Similarity-preserving distillation: which samples of the batch are alike. Neither channels nor sizes need agree.

    Mean squared difference of the two (B, B) matrices G = Q Q^T with rows of L2 norm 1, Q the map as (B, C*H*W) (Tung
    and Mori 2019, arXiv 1907.09682, eq. 1 to 4). Always 0 for a batch of one.
    """
    return F.mse_loss(_gram(student_map), _gram(teacher_map))


class Regressors(nn.Module):
    """FitNet's regressors (Romero et al. 2015, arXiv 1412.6550, section 2.2), a trainable 1x1 convolution per tap.

    All maps in one forward, as DistributedDataParallel needs it: [(B, C_s, H, W), ...] -> [(B, C_t, H, W), ...].

    Args:
        channels: (C_s, C_t) of each tap.
    """

    def __init__(self, channels: Sequence[tuple[int, int]]):
        super().__init__()
        self.taps = nn.ModuleList(nn.Conv2d(student, teacher, 1) for student, teacher in channels)

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [regressor(student_map) for regressor, student_map in zip(self.taps, maps, strict=True)]


def _attention(feature_map: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, H*W): squares summed over channels, each sample with L2 norm 1."""
    return F.normalize(feature_map.float().square().sum(1).flatten(1), dim=1)


def _gram(feature_map: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, B), rows with L2 norm 1."""
    with torch.autocast(feature_map.device.type, enabled=False):  # it would take the product in half precision
        flat = feature_map.float().flatten(1)
        return F.normalize(flat @ flat.T, dim=1)


def _check_resolution(student_map: torch.Tensor, teacher_map: torch.Tensor) -> None:
    if student_map.shape[-2:] != teacher_map.shape[-2:]:
        raise ValueError(f"maps of {tuple(student_map.shape)} and {tuple(teacher_map.shape)} differ in resolution")
