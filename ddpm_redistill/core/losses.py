"""The terms of the distillation loss, each a function of tensors. Weights are applied elsewhere, in one line.

Every network's output is first brought to epsilon (the noise), whatever it predicts, so that one set of losses
serves all. abar is the cumulative product of alpha (Ho et al. 2020, arXiv 2006.11239).
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def epsilon_of(prediction: torch.Tensor, noisy: torch.Tensor, abar: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """The noise that a network's output stands for. All but abar (B,): (B, C, H, W).

    "epsilon": itself. "v_prediction": sqrt(1 - abar) x_t + sqrt(abar) v (Salimans and Ho 2022, arXiv
    2202.00512, from v = sqrt(abar) epsilon - sqrt(1 - abar) x_0). "sample": (x_t - sqrt(abar) x_0) / sqrt(1 - abar).

    Raises:
        ValueError: an unknown prediction type.
    """
    abar = abar.to(noisy.dtype).view(-1, 1, 1, 1)
    if prediction_type == "epsilon":
        return prediction
    if prediction_type == "v_prediction":
        return (1 - abar).sqrt() * noisy + abar.sqrt() * prediction
    if prediction_type == "sample":
        return (noisy - abar.sqrt() * prediction) / (1 - abar).sqrt()
    raise ValueError(f"unknown prediction type {prediction_type!r}: expected epsilon, v_prediction or sample")


def min_snr_weight(abar: torch.Tensor, gamma: float) -> torch.Tensor:
    """Weight (B,) of each sample's squared error in epsilon, min(SNR, gamma) / SNR with SNR = abar / (1 - abar).

    Hang et al. 2023, arXiv 2303.09556, section 3.4. An error in epsilon is SNR times the error in x_0, so that
    without it the timesteps with next to no noise outweigh all others for a network that predicts the sample.
    """
    return (gamma * (1 - abar) / abar).clamp(max=1)  # finite where abar is 0 too


def task_loss(epsilon: torch.Tensor, noise: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Noise prediction, mean of (epsilon - noise)^2 over (B, C, H, W) (Ho et al. 2020, eq. 14) -> scalar.

    weight: (B,), multiplies each sample's error.
    """
    error = (epsilon - noise).square().flatten(1).mean(1)  # (B,)
    return error.mean() if weight is None else (weight * error).mean()


def output_loss(
    epsilon: torch.Tensor, teacher_epsilon: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """``task_loss`` with the teacher's epsilon in the place of the noise."""
    return task_loss(epsilon, teacher_epsilon, weight)


def red_distance(student_map: torch.Tensor, teacher_map: torch.Tensor, distance: str) -> torch.Tensor:
    """Distance of two maps (B, C_s, H, W) and (B, C_t, H, W) -> scalar; channel counts need not agree.

    Each map is averaged over its channels to (B, H, W) and flattened per sample; "mse" is the mean squared
    difference, "cosine" 1 - cos; mean over the batch (ReDistill, arXiv 2406.03744, section 3).

    Raises:
        ValueError: an unknown distance, or maps of different resolution.
    """
    if student_map.shape[-2:] != teacher_map.shape[-2:]:
        raise ValueError(f"maps of {tuple(student_map.shape)} and {tuple(teacher_map.shape)} differ in resolution")
    student_vector = student_map.float().mean(1).flatten(1)  # (B, H*W)
    teacher_vector = teacher_map.float().mean(1).flatten(1)
    if distance == "mse":
        return F.mse_loss(student_vector, teacher_vector)
    if distance == "cosine":
        return (1 - F.cosine_similarity(student_vector, teacher_vector, dim=1)).mean()
    raise ValueError(f"unknown RED distance {distance!r}: expected mse or cosine")


def red_loss(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], distance: str) -> torch.Tensor:
    """Mean of ``red_distance`` over the (student map, teacher map) pairs of all RED blocks -> scalar."""
    return torch.stack([red_distance(student, teacher, distance) for student, teacher in pairs]).mean()
