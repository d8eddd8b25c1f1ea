"""Error by timestep against a loop by hand, perfect predictors of every kind, and that batches do not matter."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor
from training_helpers import SIZE, make_images, make_tiny_teacher

from ddpm_redistill.errors import UserError
from ddpm_redistill.evaluation.timestep_error import error_by_timestep
from ddpm_redistill.pipelines.seeds import seeded_generator
from ddpm_redistill.sources.images import open_images
from ddpm_redistill.sources.teacher import load_pipeline

TIMESTEPS = [0, 400, 999]
PREDICTIONS = ("epsilon", "v_prediction", "sample")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_pipeline(str(make_tiny_teacher(tmp_path_factory.mktemp("teacher")))).set_scheduler("ddim")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_images(make_images(tmp_path_factory.mktemp("images") / "images.npz"), image_size=SIZE, channels=1)


class Known:
    """A pipeline whose network is given the clean image, the same for all, and is off by ``error`` in x_0."""

    def __init__(self, clean: Tensor, prediction_type: str, error: float = 0.0) -> None:
        self.scheduler = DDIMScheduler(prediction_type=prediction_type)
        self.config, self.image_shape, self.vqvae = SimpleNamespace(), (1, *clean.shape[-2:]), None
        self.unet, self.device, self.dtype = self, torch.device("cpu"), torch.float32
        self.clean, self.error, self.inputs = clean, error, []

    def __call__(self, noisy: Tensor, timestep: int) -> Any:
        self.inputs.append(noisy.clone())
        abar = self.scheduler.alphas_cumprod[timestep]
        guess = self.clean + self.error
        noise = (noisy - abar.sqrt() * guess) / (1 - abar).sqrt()
        velocity = abar.sqrt() * noise - (1 - abar).sqrt() * guess
        kinds = {"epsilon": noise, "v_prediction": velocity, "sample": guess.expand_as(noisy)}
        return SimpleNamespace(sample=kinds[self.scheduler.config.prediction_type])


def one_image(size: int = 8) -> Tensor:
    return torch.rand(1, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_equals_a_loop_by_hand(teacher: Any, images: Any) -> None:
    found = error_by_timestep({"teacher": teacher}, images, timesteps=TIMESTEPS, batch_size=4, seed=5)
    assert found.keys() == {"timesteps", "num_images", "teacher"}
    assert (found["timesteps"], found["num_images"]) == (TIMESTEPS, 10)
    schedule = DDPMScheduler()
    for timestep, error in zip(TIMESTEPS, found["teacher"], strict=True):
        errors = []
        for index in range(10):
            noise = torch.randn(
                (1, SIZE, SIZE), generator=seeded_generator(5, "timestep_error", index, timestep)
            ).unsqueeze(0)
            clean = images[index].float().unsqueeze(0) / 127.5 - 1
            with torch.no_grad():
                predicted = teacher.unet(schedule.add_noise(clean, noise, torch.tensor([timestep])), timestep).sample
            errors.append(float(((predicted - noise) ** 2).mean()))
        assert error == pytest.approx(np.mean(errors), rel=1e-5)


def test_batch_size_does_not_matter(teacher: Any, images: Any) -> None:
    three, seven = (
        error_by_timestep({"teacher": teacher}, images, timesteps=TIMESTEPS, batch_size=size) for size in (3, 7)
    )
    assert three["teacher"] == pytest.approx(seven["teacher"], abs=1e-6)
    other = error_by_timestep({"teacher": teacher}, images, timesteps=TIMESTEPS, seed=1)
    assert other["teacher"] != pytest.approx(seven["teacher"], abs=1e-6)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_a_perfect_predictor_of_any_kind_has_no_error(prediction_type: str) -> None:
    clean = one_image()
    found = error_by_timestep({"student": Known(clean, prediction_type)}, [clean] * 3, timesteps=TIMESTEPS)
    assert found["student"] == pytest.approx([0.0] * 3, abs=1e-8)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_an_error_in_the_image_counts_times_the_signal_to_noise_ratio(prediction_type: str) -> None:
    clean = one_image()
    student = Known(clean, prediction_type, error=0.01)
    found = error_by_timestep({"student": student}, [clean] * 2, timesteps=TIMESTEPS)["student"]
    abar = student.scheduler.alphas_cumprod[TIMESTEPS].double()
    assert found == pytest.approx((abar / (1 - abar) * 0.01**2).tolist(), rel=1e-3)
    assert found[0] == pytest.approx(1, rel=0.01)  # the first timestep: a hundredth is everything


def test_teacher_and_student_see_the_same_noisy_images() -> None:
    clean = one_image()
    pair = {"teacher": Known(clean, "epsilon"), "student": Known(clean, "sample", error=0.5)}
    found = error_by_timestep(pair, [clean] * 5, timesteps=TIMESTEPS, batch_size=2)
    assert found.keys() == {"timesteps", "num_images", "teacher", "student"}
    assert found["student"][1] > found["teacher"][1]
    seen = {name: torch.cat(known.inputs) for name, known in pair.items()}
    assert seen["teacher"].shape == (15, 1, 8, 8)
    assert torch.equal(seen["teacher"], seen["student"])
    assert len(seen["teacher"].flatten(1).unique(dim=0)) == 15, "each image and timestep has its own noise"


def test_by_default_twenty_timesteps_over_the_whole_schedule() -> None:
    clean = one_image()
    found = error_by_timestep({"student": Known(clean, "epsilon")}, [clean])
    assert len(found["timesteps"]) == len(found["student"]) == 20
    assert (found["timesteps"][0], found["timesteps"][-1]) == (0, 999)
    gaps = {b - a for a, b in zip(found["timesteps"], found["timesteps"][1:], strict=False)}
    assert gaps <= {52, 53}


def test_images_are_chosen_by_seed_from_all_of_them() -> None:
    """A sorted data set: its first images would all be of one kind."""
    sorted_images = [torch.full((1, 8, 8), value, dtype=torch.uint8) for value in range(200)]

    def brightness(seed: int, num_images: int) -> list[float]:
        known = Known(torch.zeros(1, 8, 8), "epsilon")
        found = error_by_timestep({"student": known}, sorted_images, timesteps=[0], num_images=num_images, seed=seed)
        assert found["num_images"] == num_images
        return [round((float(image.mean()) + 1) * 127.5) for image in torch.cat(known.inputs)]

    assert max(brightness(0, 20)) > 100
    assert brightness(0, 20) == brightness(0, 40)[:20]
    assert brightness(0, 20) != brightness(1, 20)


def test_bytes_and_floats_are_the_same_images(teacher: Any, images: Any) -> None:
    floats = [images[i].float() / 127.5 - 1 for i in range(len(images))]
    results = [error_by_timestep({"teacher": teacher}, each, timesteps=[400])["teacher"] for each in (images, floats)]
    assert results[0] == results[1]


def test_progress_has_a_label_and_counts_every_pass(capsys: pytest.CaptureFixture[str]) -> None:
    clean = one_image()
    pair = {name: Known(clean, "epsilon") for name in ("teacher", "student")}
    error_by_timestep(pair, [clean] * 3, timesteps=TIMESTEPS)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "error by timestep" in shown.err
    assert "18/18" in shown.err


def test_refusals_are_one_line_and_before_any_pass() -> None:
    clean = one_image()
    known = Known(clean, "epsilon")
    other = Known(clean, "epsilon")
    other.scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    silent = Known(clean, "epsilon")
    silent.scheduler = DDIMScheduler(trained_betas=np.array([0.0, 0.1]))
    one = {"student": known}
    cases = [
        lambda: error_by_timestep({}, [clean]),
        lambda: error_by_timestep({"teacher": other, **one}, [clean]),
        lambda: error_by_timestep(one, []),
        lambda: error_by_timestep(one, [clean], num_images=0),
        lambda: error_by_timestep(one, [clean], batch_size=0),
        lambda: error_by_timestep(one, [clean], timesteps=[1000]),
        lambda: error_by_timestep(one, [clean], timesteps=[-1]),
        lambda: error_by_timestep({"student": silent}, [clean], timesteps=[0]),
        lambda: error_by_timestep(one, [one_image(4)]),
        lambda: error_by_timestep(one, [clean * 255]),
        lambda: error_by_timestep(one, [clean.int()]),
    ]
    for case in cases:
        with pytest.raises(UserError) as caught:
            case()
        assert "\n" not in str(caught.value)
    assert known.inputs == []
