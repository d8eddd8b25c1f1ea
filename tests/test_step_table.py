"""Steps as numbers against diffusers' own steps: every sampler, prediction type, clip, eta, spacing and variance."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Tensor, nn

from ddpm_redistill import RedDDPMPipeline, UserError
from ddpm_redistill.evaluation.sampling import check_counts
from ddpm_redistill.pipelines.image_noise import BLOCK
from ddpm_redistill.pipelines.seeds import seeded_generator
from ddpm_redistill.pipelines.step_table import COLUMNS, read_step_table

SEED = 5
SHAPE = (2, 4, 4)


class Sees(nn.Module):
    """In the place of a network: it sees the clean image of each noisy one, up to waves that depend on the sample and
    the timestep, and says what the scheduler's prediction type asks for. It does not multiply rounding."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.scheduler = scheduler
        self.config = SimpleNamespace(sample_size=SHAPE[1:], in_channels=SHAPE[0])
        self.clean = 3 * torch.rand(BLOCK, *SHAPE, generator=torch.Generator().manual_seed(1)) - 1.5

    def forward(self, sample: Tensor, timestep: Tensor) -> Any:
        x0 = self.clean + 0.3 * torch.sin(2 * sample + 0.01 * timestep)
        alpha = self.scheduler.alphas_cumprod[timestep].sqrt()
        sigma = (1 - alpha**2).sqrt()
        kind = self.scheduler.config.prediction_type
        epsilon = (sample - alpha * x0) / sigma
        prediction = {"epsilon": epsilon, "sample": x0, "v_prediction": alpha * epsilon - sigma * x0}[kind]
        return SimpleNamespace(sample=prediction)


def pipeline_of(scheduler: Any, eta: float = 0.0) -> RedDDPMPipeline:
    pipeline = RedDDPMPipeline(Sees(scheduler), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.eta = eta
    return pipeline


def ours(scheduler: Any, steps: int, eta: float = 0.0) -> tuple[Tensor, Tensor]:
    """The last sample before it is cut to [0, 1], and all samples that the network was given."""
    pipeline, seen = pipeline_of(scheduler, eta), []
    pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    sampler = pipeline.batch_sampler(BLOCK, steps)
    ends = []
    step = sampler.step.function
    sampler.step.function = lambda *inputs: ends.append(found := step(*inputs)) or found
    sampler(range(BLOCK), SEED)
    return ends[-1][0], torch.stack(seen)


def by_diffusers(scheduler: Any, steps: int, eta: float = 0.0) -> tuple[Tensor, Tensor]:
    """The same by the scheduler's own steps, where a network that predicts the sample is clipped for every sampler."""
    network, draws, seen = Sees(scheduler), seeded_generator(SEED, "images", 0), []
    scheduler.set_timesteps(steps)
    sample = torch.randn((BLOCK, *SHAPE), generator=draws) * scheduler.init_noise_sigma
    config = scheduler.config
    for timestep in scheduler.timesteps:
        given = scheduler.scale_model_input(sample, timestep)
        seen.append(given)
        prediction = network(given, timestep).sample
        if config.prediction_type == "sample" and config.get("clip_sample"):
            limit = config.get("clip_sample_range", 1.0)
            prediction = prediction.clamp(-limit, limit)
        options = {"eta": eta} if eta else {}
        sample = scheduler.step(prediction, timestep, sample, generator=draws, **options).prev_sample
    return sample, torch.stack(seen)


def assert_same_steps(make: Any, steps: int, eta: float = 0.0) -> None:
    for found, expected in zip(ours(make(), steps, eta), by_diffusers(make(), steps, eta), strict=True):
        assert found.shape == expected.shape
        assert expected.std() > 0.3
        assert (found - expected).abs().max() <= 1e-5 * max(1, float(expected.abs().max()))


def chosen(name: str, steps: int, eta: float = 0.0, spacing: str | None = None, **config: Any) -> None:
    def make() -> Any:
        return pipeline_of(DDPMScheduler(**config)).set_scheduler(name, spacing=spacing).scheduler

    assert_same_steps(make, steps, eta)


CLIPS = [{"clip_sample": False}, {"clip_sample": True}, {"clip_sample": True, "clip_sample_range": 0.5}]
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


@pytest.mark.parametrize("clip", CLIPS, ids=str)
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 7, 10])
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large"])
def test_ddpm(variance_type: str, steps: int, prediction_type: str, clip: dict[str, Any]) -> None:
    chosen("ddpm", steps, variance_type=variance_type, prediction_type=prediction_type, **clip)


@pytest.mark.parametrize("clip", CLIPS, ids=str)
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 7, 10])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "quad"])
def test_ddim(spacing: str, eta: float, steps: int, prediction_type: str, clip: dict[str, Any]) -> None:
    chosen("ddim", steps, eta, spacing, prediction_type=prediction_type, **clip)


@pytest.mark.parametrize("clip", CLIPS, ids=str)
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 14, 15, 20])  # below 15 the last steps are of a lower order
def test_dpm(steps: int, prediction_type: str, clip: dict[str, Any]) -> None:
    chosen("dpm++", steps, prediction_type=prediction_type, **clip)


SCHEDULES = [
    (name, schedule) for name in ("ddpm", "ddim", "dpm++") for schedule in ("scaled_linear", "squaredcos_cap_v2")
]
SCHEDULES += [("ddpm", "sigmoid")]  # which diffusers has for DDPM alone


@pytest.mark.parametrize(("name", "schedule"), SCHEDULES)
def test_other_noise_schedules(name: str, schedule: str) -> None:
    chosen(name, 6, num_train_timesteps=50, beta_schedule=schedule)


@pytest.mark.parametrize("steps", [4, 7])
@pytest.mark.parametrize("options", [{}, {"timestep_spacing": "trailing"}, {"set_alpha_to_one": False}], ids=str)
def test_diffusers_own_ddim_is_stepped_as_it_is(options: dict[str, Any], steps: int) -> None:
    assert_same_steps(lambda: DDIMScheduler(**options), steps, eta=0.5)


@pytest.mark.parametrize(
    "options", [{"solver_order": 1}, {"solver_type": "heun"}, {"lower_order_final": False}], ids=str
)
@pytest.mark.parametrize("steps", [5, 16])
def test_other_solvers(options: dict[str, Any], steps: int) -> None:
    assert_same_steps(lambda: DPMSolverMultistepScheduler(**options), steps)


@pytest.mark.parametrize("clip", CLIPS, ids=str)
@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm++"])
def test_dynamic_thresholds(name: str, prediction_type: str, clip: dict[str, Any]) -> None:
    threshold = {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 3.0}
    chosen(name, 7, prediction_type=prediction_type, **threshold, **clip)


def test_the_comparison_can_tell() -> None:
    """Each of these is another sampler, and a factor that was taken from the wrong one would be seen."""
    base = ours(pipeline_of(DDPMScheduler()).set_scheduler("ddim").scheduler, 7)[1]
    others = [
        (DDPMScheduler(clip_sample=False), "ddim", {}),
        (DDPMScheduler(clip_sample_range=0.5), "ddim", {}),
        (DDPMScheduler(thresholding=True, sample_max_value=3.0), "ddim", {}),
        (DDPMScheduler(), "ddim", {"spacing": "leading"}),
        (DDPMScheduler(), "dpm++", {}),
        (DDPMScheduler(), "ddpm", {}),
    ]
    for scheduler, name, options in others:
        other = ours(pipeline_of(scheduler).set_scheduler(name, **options).scheduler, 7)[1]
        assert (other - base).abs().max() > 1e-2


# --- the table


def test_what_a_table_holds() -> None:
    table = read_step_table(pipeline_of(DDPMScheduler()).set_scheduler("ddim").scheduler, 7, eta=0.5)
    assert table.timesteps.tolist() == [999, 856, 713, 570, 428, 285, 142]
    assert (table.factors.shape, table.factors.dtype) == ((7, len(COLUMNS)), torch.float64)
    assert {name for name in COLUMNS if not table.uses(name)} == {"of_before"}
    table = read_step_table(DDPMScheduler(), 3)
    assert {name for name in COLUMNS if not table.uses(name)} == {"of_before", "of_x0"}
    table = read_step_table(DPMSolverMultistepScheduler(), 3)
    assert {name for name in COLUMNS if not table.uses(name)} == {"of_noise", "of_x0"}
    assert table.factors[0, COLUMNS.index("of_before")] == 0  # there is none yet


def test_the_scheduler_is_left_alone() -> None:
    scheduler = DPMSolverMultistepScheduler()
    before = {name: value for name, value in vars(scheduler).items() if not isinstance(value, Tensor)}
    read_step_table(scheduler, 5)
    assert {name: value for name, value in vars(scheduler).items() if not isinstance(value, Tensor)} == before


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (EulerDiscreteScheduler(), "there is no sampling by EulerDiscreteScheduler: choose one by set_scheduler"),
        (DPMSolverMultistepScheduler(solver_order=3), r"dpmsolver\+\+ of order 1 or 2, not as dpmsolver\+\+ of 3"),
        (DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), "not as sde-dpmsolver"),
        (
            DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"),
            "timestep 999 cannot be sampled by DDIMScheduler: .* prediction_type epsilon",
        ),
        (DDPMScheduler(variance_type="fixed_large_log"), "a factor of its step is not finite"),
    ],
)
def test_what_cannot_be_sampled_is_one_line(scheduler: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline_of(scheduler)(1, num_inference_steps=3)
    with pytest.raises(UserError, match=message):
        check_counts(pipeline_of(scheduler), 1, 3, 1)


def test_no_signal_at_the_last_timestep_is_sampled_from_a_velocity() -> None:
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    assert_same_steps(lambda: DDIMScheduler(**config), 5)
