"""Every loss term against numpy, and epsilon against diffusers' own noise schedule."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from ddpm_redistill.core.losses import epsilon_of, output_loss, red_distance, red_loss, task_loss


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


def numpy_distance(student: np.ndarray, teacher: np.ndarray, distance: str) -> float:
    per_sample = []
    for one, other in zip(student.mean(1), teacher.mean(1), strict=True):
        a, b = one.ravel(), other.ravel()
        cosine = a @ b / np.sqrt((a @ a) * (b @ b))
        per_sample.append(((a - b) ** 2).mean() if distance == "mse" else 1 - cosine)
    return float(np.mean(per_sample))


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_red_distance_and_its_mean_over_blocks(distance: str) -> None:
    generator = np.random.default_rng(0)
    shapes = [((4, 3, 6, 6), (4, 3, 6, 6)), ((4, 2, 3, 3), (4, 7, 3, 3)), ((4, 5, 8, 8), (4, 1, 8, 8))]
    pairs = [tuple(generator.normal(0.3, 1, size=shape).astype(np.float32) for shape in pair) for pair in shapes]
    expected = [numpy_distance(student, teacher, distance) for student, teacher in pairs]
    tensors = [(torch.from_numpy(student), torch.from_numpy(teacher)) for student, teacher in pairs]
    found = [red_distance(student, teacher, distance).item() for student, teacher in tensors]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert red_loss(tensors, distance).item() == pytest.approx(np.mean(expected), rel=1e-6)


@pytest.mark.parametrize("distance", ["mse", "cosine"])
def test_red_distance_of_equal_maps_is_zero_and_learns(distance: str) -> None:
    torch.manual_seed(0)
    teacher = torch.randn(2, 4, 5, 5)
    assert red_distance(teacher, teacher, distance).item() == pytest.approx(0, abs=1e-6)
    student = torch.randn(2, 3, 5, 5, requires_grad=True)
    red_distance(student, teacher, distance).backward()
    assert (student.grad != 0).all()


def test_red_distance_refusals() -> None:
    maps = torch.zeros(1, 2, 4, 4)
    with pytest.raises(ValueError, match="differ in resolution"):
        red_distance(maps, maps[..., :2], "mse")
    with pytest.raises(ValueError, match="unknown RED distance 'l1'"):
        red_distance(maps, maps, "l1")
