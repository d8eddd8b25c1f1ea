"""Our pipeline against diffusers' own and against formulas written out: the same images from the same noise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel

from ddpm_redistill import RedDDPMPipeline
from ddpm_redistill.pipelines.image_noise import BLOCK
from ddpm_redistill.pipelines.scheduling_ddim import SpacedDDIMScheduler, quad_timesteps
from ddpm_redistill.pipelines.seeds import seeded_generator

COUNT = BLOCK
SEED = 5


def ours(unet: UNet2DModel, steps: int, name: str = "ddim", schedule: dict[str, Any] | None = None, **options: Any):
    pipeline = RedDDPMPipeline(unet, DDPMScheduler(**schedule or {})).set_scheduler(name, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(COUNT, seed=SEED, num_inference_steps=steps, output_type="pt").images


def generator() -> torch.Generator:
    """That of our first block of images: diffusers draws the first noise and that of each step from it too."""
    return seeded_generator(SEED, "images", 0)


def stock(pipeline: DiffusionPipeline, steps: int, **options: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(
        COUNT, generator=generator(), num_inference_steps=steps, output_type="np", return_dict=False, **options
    )
    return torch.from_numpy(found[0]).permute(0, 3, 1, 2)


def assert_equal(found: torch.Tensor, expected: torch.Tensor, atol: float = 5e-5) -> None:
    """The untrained network multiplies rounding; ``test_step_table.py`` has one that does not, and holds 1e-5."""
    assert found.shape == expected.shape == (COUNT, 1, 16, 16)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


# --- against diffusers' pipelines


# (spacing, steps) where diffusers' rule for the previous timestep is right
STOCK_IS_RIGHT = [("leading", 10), ("leading", 7), ("trailing", 10), ("trailing", 4)]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("spacing", "steps"), STOCK_IS_RIGHT)
def test_ddim_equals_ddim_pipeline(tiny_teacher: UNet2DModel, spacing: str, steps: int, eta: float) -> None:
    scheduler = DDIMScheduler(timestep_spacing=spacing)
    expected = stock(DDIMPipeline(tiny_teacher, scheduler), steps, eta=eta)
    assert_equal(ours(tiny_teacher, steps, spacing=spacing, eta=eta), expected)
    if eta:  # the noise counts
        assert (ours(tiny_teacher, steps, spacing=spacing) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("steps", [10, 7])
def test_ddpm_equals_ddpm_pipeline(tiny_teacher: UNet2DModel, steps: int) -> None:
    expected = stock(DDPMPipeline(tiny_teacher, DDPMScheduler()), steps)
    assert_equal(ours(tiny_teacher, steps, "ddpm"), expected)


def test_the_default_is_diffusers_ddim_bit_for_bit(tiny_teacher: UNet2DModel) -> None:
    pipeline = RedDDPMPipeline(tiny_teacher, DDPMScheduler()).set_scheduler("ddim")
    pipeline.set_progress_bar_config(disable=True)
    options = {"seed": SEED, "num_inference_steps": 50, "output_type": "pt"}
    found = pipeline(COUNT, **options).images
    pipeline.register_modules(scheduler=DDIMScheduler(timestep_spacing="trailing"))
    assert torch.equal(found, pipeline(COUNT, **options).images)


# --- against formulas in numpy


def numpy_ddim(
    unet: UNet2DModel, timesteps: list[int], prediction_type: str = "epsilon", eta: float = 0.0
) -> torch.Tensor:
    """DDIM, formulas 12 and 16 of Song et al. 2021, over rising ``timesteps``, in float64 but for the network."""
    draws = generator()
    x = torch.randn((COUNT, 1, 16, 16), generator=draws).double().numpy()
    cumulative = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    for t, previous in zip(reversed(timesteps), [*reversed(timesteps[:-1]), -1], strict=True):
        a, a_previous = cumulative[t], cumulative[previous] if previous >= 0 else 1.0
        with torch.no_grad():
            output = unet(torch.from_numpy(x).float(), t).sample.double().numpy()
        if prediction_type == "v_prediction":
            x0, epsilon = a**0.5 * x - (1 - a) ** 0.5 * output, a**0.5 * output + (1 - a) ** 0.5 * x
        else:
            x0, epsilon = (x - (1 - a) ** 0.5 * output) / a**0.5, output
        sigma = eta * ((1 - a_previous) / (1 - a)) ** 0.5 * (1 - a / a_previous) ** 0.5
        x = a_previous**0.5 * x0.clip(-1, 1) + (1 - a_previous - sigma**2) ** 0.5 * epsilon
        if eta:
            x = x + sigma * torch.randn(x.shape, generator=draws).numpy()
    return torch.from_numpy(x / 2 + 0.5).clamp(0, 1).float()


def song_quad(steps: int) -> list[int]:
    """As the code of DDIM has it."""
    return [int(value) for value in np.linspace(0, np.sqrt(1000 * 0.8), steps) ** 2]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_quad_equals_a_ddim_in_numpy(tiny_teacher: UNet2DModel, prediction_type: str, eta: float) -> None:
    schedule = {"prediction_type": prediction_type}
    found = ours(tiny_teacher, 10, schedule=schedule, spacing="quad", eta=eta)
    assert_equal(found, numpy_ddim(tiny_teacher, song_quad(10), prediction_type, eta), atol=1e-4)


@pytest.mark.parametrize("steps", [3, 7, 30])  # more of them, and the untrained network multiplies the rounding
def test_trailing_equals_numpy_where_diffusers_is_wrong(tiny_teacher: UNet2DModel, steps: int) -> None:
    timesteps = sorted(round(1000 - i * 1000 / steps) - 1 for i in range(steps))
    expected = numpy_ddim(tiny_teacher, timesteps)
    assert_equal(ours(tiny_teacher, steps), expected, atol=1e-3)


def test_what_is_wrong_in_diffusers(tiny_teacher: UNet2DModel) -> None:
    """Fails when diffusers has been mended: then ``SpacedDDIMScheduler`` is for quad spacing alone."""
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    wrong = stock(DDIMPipeline(tiny_teacher, scheduler), 7)
    assert (wrong - ours(tiny_teacher, 7)).abs().max() > 1e-2
    scheduler.set_timesteps(61)
    assert scheduler.timesteps.shape == (62,)
    assert scheduler.timesteps[-1] == -1


# --- the scheduler


@pytest.mark.parametrize("steps", [1, 2, 10, 29, 30, 50, 100, 999, 1000])
def test_quad_timesteps(steps: int) -> None:
    found, song = quad_timesteps(1000, steps), song_quad(steps)
    assert len(set(found)) == len(found) == steps
    assert found == sorted(found)
    assert found[0] >= 0
    assert found[-1] < 1000
    assert found == [max(i, t) for i, t in enumerate(song)]
    assert (found == song) == (steps < 30)  # then those of DDIM's code repeat


@pytest.mark.parametrize("spacing", ["trailing", "leading", "quad"])
@pytest.mark.parametrize("steps", [1, 3, 61, 1000])
def test_as_many_timesteps_as_steps(spacing: str, steps: int) -> None:
    scheduler = SpacedDDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    found = scheduler.timesteps.tolist()
    assert len(set(found)) == steps
    assert found == sorted(found, reverse=True)
    assert min(found) >= 0
    assert max(found) < 1000


def test_scheduler_refuses(tiny_teacher: UNet2DModel) -> None:
    scheduler = SpacedDDIMScheduler(timestep_spacing="quad")
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="call set_timesteps"):
        scheduler.step(x, 5, x)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="5 is not one of the timesteps"):
        scheduler.step(x, 5, x)
    with pytest.raises(ValueError, match="1001"):
        scheduler.set_timesteps(1001)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ddim", {"spacing": "cubic"}, "ddim has no spacing 'cubic': expected trailing or leading or quad"),
        ("ddpm", {"spacing": "quad"}, "ddpm has no spacing 'quad': expected leading"),
        ("dpm++", {"spacing": "leading"}, r"dpm\+\+ has no spacing 'leading': expected trailing"),
        ("ddim", {"eta": 1.5}, "eta must be between 0 and 1, not 1.5"),
        ("ddim", {"eta": -0.1}, "eta must be between 0 and 1, not -0.1"),
        ("ddim", {"eta": float("nan")}, "eta must be between 0 and 1, not nan"),
        ("ddpm", {"eta": 1.0}, "ddpm has no eta"),
        ("dpm++", {"eta": 0.5}, r"dpm\+\+ has no eta"),
    ],
)
def test_set_scheduler_refuses(tiny_teacher: UNet2DModel, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RedDDPMPipeline(tiny_teacher, DDPMScheduler()).set_scheduler(name, **options)


@pytest.mark.parametrize(("spacing", "saved"), [("leading", "leading"), ("trailing", "trailing"), ("quad", "trailing")])
def test_a_saved_folder_holds_the_stock_scheduler(
    tiny_teacher: UNet2DModel, tmp_path: Path, spacing: str, saved: str
) -> None:
    schedule = DDPMScheduler(beta_end=0.01, prediction_type="v_prediction")
    pipeline = RedDDPMPipeline(tiny_teacher, schedule).set_scheduler("ddim", spacing=spacing, eta=1.0)
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())["_class_name"] == "DDIMScheduler"
    opened = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(opened.scheduler) is DDIMScheduler
    found = opened.scheduler.config
    assert (found.timestep_spacing, found.beta_end, found.prediction_type) == (saved, 0.01, "v_prediction")
    assert pipeline.scheduler.config.timestep_spacing == spacing  # as it was
    opened.set_progress_bar_config(disable=True)
    opened(num_inference_steps=2)
