"""Sampling: image k is a function of (seed, k), here and in a new process; a student folder opens in diffusers."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from ddpm_redistill import (
    RedDDPMPipeline,
    RedUNet2DModel,
    StudentConfig,
    derive_student,
    load_pipeline,
    plan_student,
)
from ddpm_redistill.pipelines.modeling_red_unet import CODE_NAME

SCHEDULERS = ("ddpm", "ddim", "dpm++")
STEPS = 4


def quiet(unet: UNet2DModel) -> RedDDPMPipeline:
    pipeline = RedDDPMPipeline(unet.eval(), DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def student_of(teacher: UNet2DModel) -> RedUNet2DModel:
    student = derive_student(teacher, plan_student(dict(teacher.config), StudentConfig(head_start="teacher")))
    with torch.no_grad():  # statistics and RED blocks that do something, as after training
        for name, value in student.state_dict().items():
            if value.is_floating_point() and ".red_" in name:
                value.add_(torch.rand(value.shape, generator=torch.Generator().manual_seed(0)) / 10)
    return student


@pytest.fixture(scope="module")
def student(tiny_teacher: UNet2DModel) -> RedUNet2DModel:
    return student_of(tiny_teacher)


@pytest.fixture
def pipeline(student: RedUNet2DModel) -> RedDDPMPipeline:
    return quiet(student)


def sample(pipeline: RedDDPMPipeline, num_images: int, **options: Any) -> torch.Tensor:
    return pipeline(num_images, **{"num_inference_steps": STEPS, "output_type": "pt", **options}).images


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("network", ["teacher", "student"])
def test_image_depends_on_seed_and_index_alone(
    tiny_teacher: UNet2DModel, student: RedUNet2DModel, network: str, scheduler: str
) -> None:
    pipeline = quiet(tiny_teacher if network == "teacher" else student).set_scheduler(scheduler)
    images = sample(pipeline, 7, seed=5)
    assert images.shape == (7, 1, 16, 16)
    assert images.isfinite().all()
    for batch_size, first, count in ((1, 0, 7), (3, 0, 7), (16, 0, 7), (1, 6, 1), (3, 2, 4), (2, 5, 2)):
        again = sample(pipeline, count, seed=5, first_index=first, batch_size=batch_size)
        torch.testing.assert_close(again, images[first : first + count], rtol=0, atol=1e-4)
    for other in (images[1], sample(pipeline, 1, seed=6)[0]):
        assert (other - images[0]).abs().max() > 0.1


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("clips", [True, False])
def test_predicted_samples_are_clipped_by_every_sampler(tiny_teacher: UNet2DModel, scheduler: str, clips: bool) -> None:
    """dpm++ has no clip of its own, and our loss teaches a student to rely on one."""
    config = {"prediction_type": "sample", "clip_sample": clips}
    images = []
    for value in (-1.0, -5.0):
        network = copy.deepcopy(tiny_teacher).eval()
        nn.init.zeros_(network.conv_out.weight)
        nn.init.constant_(network.conv_out.bias, value)
        pipeline = RedDDPMPipeline(network, DDPMScheduler(**config))
        pipeline.set_progress_bar_config(disable=True)
        given: list[torch.Tensor] = []
        network.register_forward_pre_hook(lambda module, args, given=given: given.append(args[0].clone()))
        sample(pipeline.set_scheduler(scheduler), 1)
        images.append(given[-1])  # before the last step, which all samplers end within the range
    assert torch.equal(*images) == clips


def test_schedulers_differ_and_keep_the_noise_schedule(pipeline: RedDDPMPipeline) -> None:
    pipeline.register_modules(scheduler=DDPMScheduler(beta_end=0.01, prediction_type="v_prediction"))
    images = []
    for name in SCHEDULERS:
        assert pipeline.set_scheduler(name) is pipeline
        found = pipeline.scheduler.config
        assert (found.beta_end, found.prediction_type, found.num_train_timesteps) == (0.01, "v_prediction", 1000)
        images.append(sample(pipeline, 1))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (images[one] - images[other]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="unknown scheduler 'euler'"):
        pipeline.set_scheduler("euler")


@pytest.mark.parametrize("channels", [1, 3])
def test_output_types(tiny_config: dict[str, Any], channels: int) -> None:
    torch.manual_seed(0)
    pipeline = quiet(UNet2DModel(**{**tiny_config, "in_channels": channels, "out_channels": channels}))
    tensor = sample(pipeline, 3)
    array = sample(pipeline, 3, output_type="np")
    pictures = sample(pipeline, 3, output_type="pil")
    assert tensor.shape == (3, channels, 16, 16)
    assert array.shape == (3, 16, 16, channels)
    assert tensor.min() >= 0
    assert tensor.max() <= 1
    assert tensor.std() > 0.1
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    for picture, values in zip(pictures, array, strict=True):
        assert isinstance(picture, Image.Image)
        assert (picture.size, picture.mode) == ((16, 16), "L" if channels == 1 else "RGB")
        np.testing.assert_array_equal(np.asarray(picture).reshape(16, 16, channels), (values * 255).round())
    (as_tuple,) = pipeline(3, num_inference_steps=STEPS, output_type="pt", return_dict=False)
    assert torch.equal(as_tuple, tensor)


@pytest.mark.parametrize(("value", "shown"), [(-1.0, 0.0), (0.0, 0.5), (0.5, 0.75), (3.0, 1.0)])
def test_minus_one_is_black_and_one_is_white(tiny_teacher: UNet2DModel, value: float, shown: float) -> None:
    """A network that says that the clean image has this value everywhere."""
    pipeline = quiet(copy.deepcopy(tiny_teacher))
    pipeline.unet.conv_out.weight.data.zero_()
    pipeline.unet.conv_out.bias.data.fill_(value)
    pipeline.register_modules(scheduler=DDPMScheduler(prediction_type="sample", clip_sample=False))
    images = sample(pipeline.set_scheduler("ddim"), 1)
    torch.testing.assert_close(images, torch.full_like(images, shown))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 0}, "num_images and batch_size must be at least 1, not 0 and 16"),
        ({"num_images": 1, "batch_size": 0}, "must be at least 1, not 1 and 0"),
        ({"num_images": 1, "num_inference_steps": 0}, "num_inference_steps must be between 1 and 1000, not 0"),
        ({"num_images": 1, "num_inference_steps": 1001}, "between 1 and 1000, not 1001"),
        ({"num_images": 1, "output_type": "latent"}, "unknown output_type 'latent'"),
    ],
)
def test_bad_arguments(pipeline: RedDDPMPipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(pipeline, **options)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_global_generators_are_left_alone(pipeline: RedDDPMPipeline, scheduler: str) -> None:
    torch_state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    sample(pipeline.set_scheduler(scheduler), 2)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


@pytest.fixture(scope="module")
def student_folder(student: RedUNet2DModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    quiet(student).save_pretrained(folder)
    return folder


NEW_PROCESS = """
import json, sys
import ddpm_redistill
assert "torch" not in sys.modules
from ddpm_redistill import RedDDPMPipeline
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

folder, out = sys.argv[1:]
stock = DiffusionPipeline.from_pretrained(folder)
ours = ddpm_redistill.load_pipeline(folder)
options = {"seed": 3, "first_index": 4, "num_inference_steps": 4, "output_type": "pt"}
around = RedDDPMPipeline(stock.unet, stock.scheduler)
save_file({"stock": around(2, **options).images, "ours": ours(2, **options).images}, out)
print(json.dumps([type(stock).__name__, type(stock.unet).__name__, type(ours.unet).__name__]))
"""


def test_a_new_process_makes_the_same_images(student_folder: Path, student: RedUNet2DModel, tmp_path: Path) -> None:
    out = tmp_path / "images.safetensors"
    command = [sys.executable, "-c", NEW_PROCESS, str(student_folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["DDPMPipeline", "RedUNet2DModel", "RedUNet2DModel"]
    expected = sample(quiet(student), 2, seed=3, first_index=4)
    images = load_file(out)
    for name in ("stock", "ours"):
        torch.testing.assert_close(images[name], expected, rtol=0, atol=1e-5)


def test_folder_names_a_stock_pipeline_and_its_own_code(student_folder: Path) -> None:
    index = json.loads((student_folder / "model_index.json").read_text())
    assert index["_class_name"] == "DDPMPipeline"
    assert index["unet"] == [CODE_NAME, "RedUNet2DModel"]
    assert (student_folder / "unet" / f"{CODE_NAME}.py").is_file()


def test_a_folder_of_before_still_opens(student_folder: Path, student: RedUNet2DModel, tmp_path: Path) -> None:
    """Without code of its own: model_index.json named the package, and block names were the teacher's."""
    folder = shutil.copytree(student_folder, tmp_path / "before")
    (folder / "unet" / f"{CODE_NAME}.py").unlink()
    index, config = folder / "model_index.json", folder / "unet" / "config.json"
    index.write_text(index.read_text().replace(CODE_NAME, "ddpm_redistill"))
    config.write_text(config.read_text().replace('"RedUNet2DModel.', '"'))
    for opened in (load_pipeline(str(folder)), RedDDPMPipeline.from_pretrained(folder)):
        assert type(opened.unet) is RedUNet2DModel
        assert opened.unet.state_dict().keys() == student.state_dict().keys()
        assert opened.unet.config.down_block_types == student.config.down_block_types
