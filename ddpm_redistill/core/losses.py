"""The loss terms on what the networks put out, each a function of tensors. Weights are applied elsewhere, in one line.

Every network's output is first brought to epsilon (the noise), whatever it predicts, so that one set of losses
serves all. abar is the cumulative product of alpha (Ho et al. 2020, arXiv 2006.11239).
"""

import torch


def noisy_of(images: torch.Tensor, noise: torch.Tensor, abar: torch.Tensor) -> torch.Tensor:
    """x_t = sqrt(abar) x_0 + sqrt(1 - abar) epsilon (Ho et al. 2020, eq. 4). All but abar (B,): (B, C, H, W)."""
    abar = abar.to(images.dtype).view(-1, 1, 1, 1)
    return abar.sqrt() * images + (1 - abar).sqrt() * noise


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


def sample_predicted(
    prediction: torch.Tensor, noisy: torch.Tensor, abar: torch.Tensor, prediction_type: str
) -> torch.Tensor:
    """The x_0 that a network's output stands for. All but abar (B,): (B, C, H, W).

    Of "v_prediction", sqrt(abar) x_t - sqrt(1 - abar) v, and of "sample" it is finite where abar is 0 too.

    Raises:
        ValueError: as ``epsilon_of``.
    """
    if prediction_type == "sample":
        return prediction
    if prediction_type == "v_prediction":
        abar = abar.to(noisy.dtype).view(-1, 1, 1, 1)
        return abar.sqrt() * noisy - (1 - abar).sqrt() * prediction
    return sample_of(epsilon_of(prediction, noisy, abar, prediction_type), noisy, abar)


def sample_of(epsilon: torch.Tensor, noisy: torch.Tensor, abar: torch.Tensor) -> torch.Tensor:
    """The x_0 that a noise stands for: the inverse of ``epsilon_of`` for "sample"; not finite where abar is 0."""
    abar = abar.to(noisy.dtype).view(-1, 1, 1, 1)
    return (noisy - (1 - abar).sqrt() * epsilon) / abar.sqrt()


def forgive_clipped(
    epsilon: torch.Tensor,
    target: torch.Tensor,
    target_sample: torch.Tensor,
    noisy: torch.Tensor,
    abar: torch.Tensor,
    limit: float,
) -> torch.Tensor:
    """``epsilon``, with ``target`` in its place where a sampler that clips x_0 to [-limit, limit] sees no difference.

    That is where the target's x_0 is at a limit and the prediction's past the same one: after the clip both are the
    limit. The network need not learn to stop there, as at a black background. Its best prediction is the same as
    without: the mean of x_0 given x_t, which lies inside the range.

    Args:
        target_sample: the target's x_0, within the range. All but abar (B,): (B, C, H, W).
    """
    sample = sample_of(epsilon.detach(), noisy, abar)
    above = (target_sample >= limit) & (sample > limit)
    below = (target_sample <= -limit) & (sample < -limit)
    return torch.where(above | below, target, epsilon)


def timestep_weight(abar: torch.Tensor, weighting: str, gamma: float) -> torch.Tensor | None:
    """Weight (B,) of each sample's squared error in epsilon; None is 1 for all. SNR = abar / (1 - abar).

    An error in epsilon is SNR times the error in x_0. Plain, the timesteps with next to no noise outweigh all others
    for a network that predicts x_0, and those with next to no image count for nothing.

    "none": plain, x_0's error times SNR (Ho et al. 2020, eq. 14). "min_snr": times min(SNR, gamma) (Hang et al. 2023,
    arXiv 2303.09556, section 3.4). "snr_plus_one": times min(SNR + 1, gamma) / gamma, the weighting of Salimans and
    Ho 2022 (arXiv 2202.00512, section 4; plain MSE of v) cut off at gamma.

    Raises:
        ValueError: an unknown weighting.
    """
    if weighting == "none":
        return None
    if weighting == "min_snr":
        return (gamma * (1 - abar) / abar).clamp(max=1)  # finite where abar is 0 too
    if weighting == "snr_plus_one":
        return (1 - abar).clamp(max=1 / gamma) / abar.clamp(min=1e-12)  # abar is 0 at a zero terminal SNR
    raise ValueError(f"unknown weighting {weighting!r}: expected none, min_snr or snr_plus_one")


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
