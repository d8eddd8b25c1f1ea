"""Shared by all tests: tiny networks of the real shape, and the real CIFAR-10 architecture as data."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch is imported, here and in the processes that tests start: as many test processes run side by side as there
# are cores, and threads of each would stand in the others' way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from capture_helpers import captures  # noqa: F401  # a fixture
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from training_helpers import make_images, make_tiny_teacher

ATTENTION = {"down_block_types": ["AttnDownBlock2D"] * 4, "up_block_types": ["AttnUpBlock2D"] * 4}
RESNET = {"down_block_types": ["ResnetDownsampleBlock2D"] * 4, "up_block_types": ["ResnetUpsampleBlock2D"] * 4}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "growing channels": {"block_out_channels": (8, 16, 24, 32)},
    "shrinking channels": {"block_out_channels": (32, 16, 8, 8)},
    "three layers": {"layers_per_block": 3},
    "rgb": {"in_channels": 3, "out_channels": 3},
    "attention everywhere": {**ATTENTION, "attention_head_dim": 4},
    "attention at one end": {"down_block_types": ["AttnDownBlock2D", *["DownBlock2D"] * 3]},
    "padding 0": {"downsample_padding": 0},
    "resnet samplers": {**ATTENTION, "downsample_type": "resnet", "upsample_type": "resnet"},
    "resnet blocks": RESNET,
    "three levels": {
        "block_out_channels": (8, 8, 16),
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    },
    "no middle": {"mid_block_type": None},
    "no attention in the middle": {"add_attention": False},
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "learned time": {"time_embedding_type": "learned", "num_train_timesteps": 1000},
    "size as a pair": {"sample_size": [16, 16]},
}


if torch.cuda.is_available():  # by default a run there is compiled, each of the hundreds here for seconds or minutes
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")  # in the processes that tests start
    torch._dynamo.config.disable = True  # test_compile.py has what is tested of it


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Features are kept in a folder of the tests, not of the person who runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPM_REDISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_config() -> dict[str, Any]:
    """A teacher of the CIFAR-10 one's shape (4 levels, one of attention), with next to no weights."""
    return {
        "sample_size": 16,
        "in_channels": 1,
        "out_channels": 1,
        "layers_per_block": 1,
        "block_out_channels": (8, 8, 16, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
    }


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest, tiny_config: dict[str, Any]) -> dict[str, Any]:
    """The tiny config in every way that a teacher may differ from it."""
    return {**tiny_config, **ARCHITECTURES[request.param]}


@pytest.fixture(scope="session")
def cifar10_config() -> dict[str, Any]:
    """config.json of google/ddpm-cifar10-32."""
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.0.4",
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": [128, 256, 256, 256],
        "center_input_sample": False,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    }


@pytest.fixture(scope="session")
def tiny_teacher(tiny_config: dict[str, Any]) -> UNet2DModel:
    """Not to be changed by a test."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(**tiny_config).eval()


@pytest.fixture(scope="session")
def teacher_folder(tiny_teacher: UNet2DModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny teacher as diffusers' own pipeline folder. Not to be changed by a test: copy it."""
    folder = tmp_path_factory.mktemp("teacher")
    DDPMPipeline(tiny_teacher, DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Teacher and data of a training run. Not to be changed by a test."""
    folder = tmp_path_factory.mktemp("inputs")
    return {"teacher": str(make_tiny_teacher(folder / "teacher")), "data": str(make_images(folder / "images.npz"))}


@pytest.fixture(scope="session")
def dropout_inputs(inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same with a teacher that has dropout. Not to be changed by a test."""
    teacher = make_tiny_teacher(tmp_path_factory.mktemp("inputs") / "dropout", dropout=0.3)
    return {**inputs, "teacher": str(teacher)}
