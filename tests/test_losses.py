"""The loss terms on outputs against numpy, and epsilon against diffusers' own noise schedule."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from ddpm_redistill.core.losses import (
    epsilon_of,
    forgive_clipped,
    output_loss,
    sample_of,
    task_loss,
    timestep_weight,
)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_epsilon_of_recovers_the_noise(prediction_type: str, schedule: str) -> None:
    torch.manual_seed(0)
    scheduler = DDPMScheduler(beta_schedule=schedule, prediction_type=prediction_type)
    timesteps = torch.tensor([0, 1, 500, 998])
    clean, noise = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    noisy = scheduler.add_noise(clean, noise, timesteps)
    velocity = scheduler.get_velocity(clean, noise, timesteps)
    prediction = {"epsilon": noise, "v_prediction": velocity, "sample": clean}[prediction_type]
    found = epsilon_of(prediction, noisy, scheduler.alphas_cumprod[timesteps], prediction_type)
    torch.testing.assert_close(found, noise, rtol=1e-6, atol=1e-6)


def test_epsilon_of_unknown_prediction() -> None:
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="unknown prediction type 'flow'"):
        epsilon_of(x, x, torch.tensor([0.5]), "flow")


@pytest.mark.parametrize("loss", [task_loss, output_loss])
def test_output_terms_are_mean_squares(loss) -> None:
    generator = np.random.default_rng(0)
    student, target = generator.normal(size=(2, 4, 3, 5, 5))
    found = loss(torch.from_numpy(student), torch.from_numpy(target))
    assert found.item() == pytest.approx(((student - target) ** 2).mean(), rel=1e-6)


WEIGHTS_OF_X0 = {
    "none": lambda snr: snr,
    "min_snr": lambda snr: np.minimum(snr, 5),
    "snr_plus_one": lambda snr: np.minimum(snr + 1, 5) / 5,
}


@pytest.mark.parametrize("weighting", WEIGHTS_OF_X0)
def test_weightings_in_terms_of_the_sample(weighting: str) -> None:
    """A network that predicts the sample: the weighted error in epsilon is the error in x_0 times a known weight."""
    abar = np.array([0.9999, 0.8, 0.5, 0.01, 4e-5])
    clean, noise, error = np.random.default_rng(0).normal(size=(3, 5, 1, 4, 4))
    a = abar.reshape(-1, 1, 1, 1)
    noisy = np.sqrt(a) * clean + np.sqrt(1 - a) * noise
    epsilon = epsilon_of(*map(torch.from_numpy, (clean + error, noisy, abar)), "sample")
    weight = timestep_weight(torch.from_numpy(abar), weighting, 5.0)
    found = task_loss(epsilon, torch.from_numpy(noise), weight)
    expected = (WEIGHTS_OF_X0[weighting](abar / (1 - abar)) * (error**2).mean((1, 2, 3))).mean()
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_weights_are_finite_where_no_image_is_left() -> None:
    for weighting in ("min_snr", "snr_plus_one"):
        weight = timestep_weight(torch.tensor([0.0, 1.0]), weighting, 5.0)
        assert weight is not None
        assert torch.isfinite(weight).all()


def test_unknown_weighting() -> None:
    with pytest.raises(ValueError, match="unknown weighting 'p2'"):
        timestep_weight(torch.tensor([0.5]), "p2", 5.0)


def test_sample_of_inverts_epsilon_of() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noisy = torch.randn(2, 3, 1, 4, 4, dtype=torch.float64, generator=generator)
    abar = torch.tensor([0.999, 0.5, 1e-4], dtype=torch.float64)
    torch.testing.assert_close(sample_of(epsilon_of(clean, noisy, abar, "sample"), noisy, abar), clean)


@pytest.mark.parametrize(
    ("target", "predicted", "counts"),
    [
        (-1.0, -1.5, False),
        (1.0, 1.2, False),
        (-1.0, 1.5, True),  # past the other end
        (1.0, -1.5, True),
        (-1.0, -0.9, True),  # within the range
        (0.3, 1.5, True),  # the target is no end
    ],
)
def test_what_the_clip_hides_is_no_error(target: float, predicted: float, counts: bool) -> None:
    """Neither in the loss nor in the gradient; what counts does so as before."""
    abar = torch.tensor([0.7, 0.01])
    shape = (2, 1, 3, 3)
    clean, noise = torch.full(shape, target), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    noisy = epsilon_noisy(clean, noise, abar)
    x_0 = torch.full(shape, predicted, requires_grad=True)
    epsilon = epsilon_of(x_0, noisy, abar, "sample")
    loss = task_loss(forgive_clipped(epsilon, noise, clean, noisy, abar, 1.0), noise)
    loss.backward()
    assert x_0.grad is not None
    plain = task_loss(epsilon, noise)
    assert loss.item() == (plain.item() if counts else 0.0)
    assert bool((x_0.grad != 0).all()) == counts


def test_the_best_prediction_is_the_mean_with_the_clip_too() -> None:
    """Of targets that lie at both ends and between: the loss is least at their mean, not past it."""
    targets = torch.tensor([-1.0, -1.0, -1.0, 0.4, 1.0]).view(-1, 1, 1, 1)
    noise, abar = torch.zeros_like(targets), torch.full((5,), 0.5)
    noisy = epsilon_noisy(targets, noise, abar)

    def loss(guess: float) -> float:
        epsilon = epsilon_of(torch.full_like(targets, guess), noisy, abar, "sample")
        return task_loss(forgive_clipped(epsilon, noise, targets, noisy, abar, 1.0), noise).item()

    guesses = torch.linspace(-2, 2, 401).tolist()
    assert min(guesses, key=loss) == pytest.approx(targets.mean().item(), abs=0.011)


def epsilon_noisy(clean: torch.Tensor, noise: torch.Tensor, abar: torch.Tensor) -> torch.Tensor:
    return abar.sqrt().view(-1, 1, 1, 1) * clean + (1 - abar).sqrt().view(-1, 1, 1, 1) * noise
