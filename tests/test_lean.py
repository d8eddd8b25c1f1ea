"""Lean execution against eager execution: the same outputs, for any network and setting, with less live memory."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from memory_helpers import CELEBAHQ
from PIL import Image
from torch import Tensor, nn

from ddpm_redistill import (
    RedDDPMPipeline,
    derive_student,
    lean_execution,
    load_pipeline,
    plan_student,
    profile_memory,
)
from ddpm_redistill.cli import main
from ddpm_redistill.config import StudentConfig
from ddpm_redistill.families.unet2d import network_on_meta
from ddpm_redistill.pipelines.lean import LEAN_SETTINGS
from ddpm_redistill.pipelines.red_block import REDBlock, fold_batch_norms
from ddpm_redistill.students.derive import student_on_meta
from ddpm_redistill.students.footprint import network_memory

MIB = 2**20


def random_like_trained(network: nn.Module) -> nn.Module:
    """Every parameter and statistic away from its start, so that nothing that is left out goes unseen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if not value.is_floating_point():
                continue
            value.add_(torch.randn(value.shape, generator=generator) * 0.05)
            if name.endswith("running_var"):
                value.abs_().add_(0.5)
    return network.eval()


def tiny(config: dict[str, Any]) -> UNet2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return random_like_trained(UNet2DModel(**config))


def noisy(config: dict[str, Any], batch: int = 2) -> Tensor:
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    shape = (batch, config["in_channels"], height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def run_eager_and_lean(unet: UNet2DModel, sample: Tensor, setting: str, *args: Any) -> tuple[Tensor, Tensor]:
    args = args or (torch.tensor([3, 700])[: len(sample)],)
    with torch.no_grad():
        eager = unet(sample, *args).sample
    with lean_execution(unet, setting):
        return eager, unet(sample, *args).sample


def relative_error(eager: Tensor, lean: Tensor) -> float:
    return ((eager - lean).abs().max() / eager.abs().max()).item()


# The same outputs


@pytest.mark.parametrize("setting", LEAN_SETTINGS)
def test_every_architecture(architecture: dict[str, Any], setting: str) -> None:
    eager, lean = run_eager_and_lean(tiny(architecture), noisy(architecture), setting)
    assert eager.shape == lean.shape
    assert relative_error(eager, lean) < 1e-5


@pytest.mark.parametrize("setting", LEAN_SETTINGS)
def test_students(architecture: dict[str, Any], setting: str) -> None:
    student = derive_student(tiny(architecture), plan_student(architecture))
    assert relative_error(*run_eager_and_lean(random_like_trained(student), noisy(architecture), setting)) < 1e-5


@pytest.mark.parametrize("options", [{"reduction": 4}, {"red_norm": "group"}, {"red_placement": "outer"}], ids=str)
@pytest.mark.parametrize("setting", LEAN_SETTINGS)
def test_other_students(tiny_config: dict[str, Any], setting: str, options: dict[str, Any]) -> None:
    student = derive_student(tiny(tiny_config), plan_student(tiny_config, StudentConfig(**options)))
    assert relative_error(*run_eager_and_lean(random_like_trained(student), noisy(tiny_config), setting)) < 1e-5


OTHER_UNETS: dict[str, dict[str, Any]] = {
    "rectangle": {"sample_size": (16, 32)},
    "centred input": {"center_input_sample": True},
    "fourier": {"time_embedding_type": "fourier"},
    "more channels out": {"out_channels": 2},
    "gelu": {"act_fn": "gelu"},
    "scaled output": {"mid_block_scale_factor": 2.0},
    "one level": {"block_out_channels": (8,), "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]},
}


@pytest.mark.parametrize("setting", LEAN_SETTINGS)
@pytest.mark.parametrize("kind", OTHER_UNETS)
def test_unets_that_have_no_student(tiny_config: dict[str, Any], setting: str, kind: str) -> None:
    config = {**tiny_config, **OTHER_UNETS[kind]}
    assert relative_error(*run_eager_and_lean(tiny(config), noisy(config), setting)) < 1e-5


@pytest.mark.parametrize("setting", LEAN_SETTINGS)
def test_class_labels(tiny_config: dict[str, Any], setting: str) -> None:
    config = {**tiny_config, "num_class_embeds": 10}
    unet, timesteps = tiny(config), torch.tensor([3, 700])
    eager, lean = run_eager_and_lean(unet, noisy(config), setting, timesteps, torch.tensor([1, 2]))
    other, _ = run_eager_and_lean(unet, noisy(config), setting, timesteps, torch.tensor([1, 3]))
    assert relative_error(eager, lean) < 1e-5
    assert relative_error(eager[1], other[1]) > 1e-4
    with lean_execution(unet, setting), pytest.raises(ValueError, match="class_labels"):
        unet(noisy(config), 1)


@pytest.mark.parametrize("timestep", [7, torch.tensor(7), torch.tensor([7, 9])], ids=["int", "scalar", "batch"])
def test_timesteps_and_return_types(tiny_config: dict[str, Any], timestep: Any) -> None:
    unet, sample = tiny(tiny_config), noisy(tiny_config)
    with torch.no_grad():
        eager = unet(sample, timestep).sample
    with lean_execution(unet):
        assert relative_error(eager, unet(sample, timestep).sample) < 1e-5
        assert relative_error(eager, unet(sample, timestep, return_dict=False)[0]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_float32_as_eager_is(tiny_config: dict[str, Any], dtype: torch.dtype) -> None:
    unet, sample = tiny(tiny_config), noisy(tiny_config)
    with torch.no_grad():
        exact = unet(sample, 50).sample
    half = copy.deepcopy(unet).to(dtype)
    eager, lean = run_eager_and_lean(half, sample.to(dtype), "smallest", 50)
    assert lean.dtype == dtype
    assert relative_error(exact, lean.float()) < max(2 * relative_error(exact, eager.float()), 1e-3)


def test_the_sample_is_not_written_over(tiny_config: dict[str, Any]) -> None:
    unet, sample = tiny(tiny_config), noisy(tiny_config)
    before = sample.clone()
    with lean_execution(unet, "smallest"):
        unet(sample, 1)
    assert torch.equal(sample, before)


def test_an_unusual_layer_runs_as_it_is(tiny_config: dict[str, Any]) -> None:
    unet = tiny(tiny_config)
    for block in unet.up_blocks:
        block.resnets[0].conv1.padding_mode = "reflect"  # no strip knows what lies beyond its edge
        block.resnets[0].conv1._reversed_padding_repeated_twice = [1, 1, 1, 1]
    assert relative_error(*run_eager_and_lean(unet, noisy(tiny_config), "smallest")) < 1e-5


# Less memory


Peak = Callable[..., int]


@pytest.fixture(scope="module")
def peak(cifar10_config: dict[str, Any]) -> Peak:
    """Tensor peak of a network, in bytes; each is measured once."""
    configs = {"cifar10": {**cifar10_config, "sample_size": 32}, "celebahq": CELEBAHQ}

    @cache
    def measure(name: str, reduction: int, lean: str | None = None, dtype: torch.dtype = torch.float32) -> int:
        config = configs[name]
        if reduction == 1:
            return network_memory(network_on_meta(config), lean=lean, dtype=dtype).tensor_peak
        plan = plan_student(config, StudentConfig(reduction=reduction))  # type: ignore[arg-type]
        return network_memory(student_on_meta(config, plan), lean=lean, dtype=dtype).tensor_peak

    return measure


@pytest.mark.parametrize(
    ("reduction", "setting", "dtype", "limit"),
    [
        (1, "fast", torch.float32, 7.0 / 1.5),
        (1, "smallest", torch.float32, 4.2),
        (2, "smallest", torch.float32, 0.875),
        (2, "smallest", torch.bfloat16, 0.44),
    ],
)
def test_peaks_of_the_cifar10_architecture(
    peak: Peak, reduction: int, setting: str, dtype: torch.dtype, limit: float
) -> None:
    assert peak("cifar10", reduction, setting, dtype) <= limit * MIB


@pytest.mark.parametrize("reduction", [1, 2])
def test_each_setting_saves_more(peak: Peak, reduction: int) -> None:
    peaks = [peak("cifar10", reduction, setting) for setting in (None, *LEAN_SETTINGS)]
    assert peaks == sorted(set(peaks), reverse=True)


@pytest.mark.parametrize(
    ("reduction", "dtype", "share"),
    [(1, torch.float32, 0.6), (2, torch.float32, 1 / 8), (2, torch.bfloat16, 1 / 16)],
)
def test_peaks_of_the_celebahq_architecture(peak: Peak, reduction: int, dtype: torch.dtype, share: float) -> None:
    assert peak("celebahq", reduction, "smallest", dtype) <= share * peak("celebahq", 1)


def test_real_and_fake_peaks_agree(tiny_config: dict[str, Any]) -> None:
    student = derive_student(tiny(tiny_config), plan_student(tiny_config))
    for setting in LEAN_SETTINGS:
        with lean_execution(student, setting):
            real = profile_memory(student, noisy(tiny_config, batch=1), 0, fake=False)
        assert real.tensor_peak == network_memory(student, lean=setting).tensor_peak


def test_the_profile_names_modules(tiny_config: dict[str, Any]) -> None:
    assert network_memory(network_on_meta(tiny_config), lean="fast").peak_module == "up_blocks.3.resnets.0"


# The context


def test_the_network_is_left_as_it_was(tiny_config: dict[str, Any]) -> None:
    unet = tiny(tiny_config)
    before = {name: set(vars(module)) for name, module in unet.named_modules()}

    def fail() -> None:
        with lean_execution(unet):
            assert "forward" in vars(unet)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert {name: set(vars(module)) for name, module in unet.named_modules()} == before
    with lean_execution(unet):  # once more
        unet(noisy(tiny_config), 1)


def test_what_cannot_run_lean(tiny_config: dict[str, Any]) -> None:
    unet = tiny(tiny_config)
    with pytest.raises(ValueError, match="unknown lean setting 'tiny'"), lean_execution(unet, "tiny"):
        pass
    with (
        lean_execution(unet),
        pytest.raises(ValueError, match="UNet2DModel has been replaced"),
        lean_execution(unet),
    ):
        pass
    with lean_execution(unet.train()), pytest.raises(RuntimeError, match="eval"):
        unet(noisy(tiny_config), 1)
    config = {**tiny_config, "down_block_types": ["SkipDownBlock2D"] * 4, "up_block_types": ["SkipUpBlock2D"] * 4}
    with pytest.raises(ValueError, match="SkipDownBlock2D"), lean_execution(UNet2DModel(**config)):
        pass


def test_pipeline(tiny_teacher: UNet2DModel, teacher_folder: Path) -> None:
    for given, setting in ((True, "balanced"), ("smallest", "smallest"), (False, None)):
        pipeline = RedDDPMPipeline.from_pretrained(teacher_folder, lean=given)
        assert pipeline.lean == setting
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(3, num_inference_steps=3, output_type="pt").images
        eager = load_pipeline(str(teacher_folder))(3, num_inference_steps=3, output_type="pt").images
        assert torch.allclose(images, eager, atol=1e-5)
        assert "forward" not in vars(pipeline.unet)
    with pytest.raises(ValueError, match="unknown lean setting 'most'"):
        RedDDPMPipeline(tiny_teacher, pipeline.scheduler, lean="most")


def test_sample_verb(teacher_folder: Path, tmp_path: Path) -> None:
    """The same noise, so the same images: to a grey level when lean, to a few in half precision.

    On a GPU convolutions round to 11 bits (TF32), lean and eager ones not alike: three levels are allowed there.
    """
    images = {}
    for name, options in (("eager", []), ("lean", ["--lean", "smallest"]), ("half", ["--dtype", "bfloat16"])):
        arguments = ["--num_images", "2", "--steps", "3", "--output", str(tmp_path / name), *options]
        main(["sample", str(teacher_folder), *arguments])
        images[name] = np.stack([np.asarray(Image.open(tmp_path / name / f"00000{k}.png"), float) for k in range(2)])
    assert abs(images["lean"] - images["eager"]).max() <= (3 if torch.cuda.is_available() else 1)
    assert 0 < abs(images["half"] - images["eager"]).mean() <= 4


# Folded norms


def test_folded_batch_norms(tiny_config: dict[str, Any]) -> None:
    student = random_like_trained(derive_student(tiny(tiny_config), plan_student(tiny_config)))
    with pytest.raises(RuntimeError, match="eval"):
        fold_batch_norms(student.train())
    student.eval()
    sample = noisy(tiny_config)
    with torch.no_grad():
        before = student(sample, 5).sample
    fold_batch_norms(student)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in student.modules())
    assert any(isinstance(module, REDBlock) for module in student.modules())
    eager, lean = run_eager_and_lean(student, sample, "smallest", 5)
    assert relative_error(before, eager) < 1e-5
    assert relative_error(before, lean) < 1e-5
