"""How many images are sampled at once: by a GPU's free memory, 64 on a CPU."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DModel

from ddpm_redistill import RedDDPMPipeline
from ddpm_redistill.evaluation.batch_size import choose_batch_size, fitting_batch_size
from ddpm_redistill.students.footprint import network_memory

GIB = 2**30


@pytest.mark.parametrize(
    ("peak", "memory", "num_images", "size"),
    [
        (7 * 2**20, 40 * GIB, 10_000, 512),  # the CIFAR-10 teacher on a large card
        (320 * 2**20, 40 * GIB, 10_000, 128),
        (320 * 2**20, 320 * 2**20 * 64, 10_000, 64),  # exactly
        (320 * 2**20, 320 * 2**20 * 64 - 1, 10_000, 32),
        (GIB, 1, 10_000, 1),  # nothing fits: one at a time, and then it may fail
        (1, GIB, 1, 1),
        (1, GIB, 64, 64),
        (1, GIB, 65, 128),
    ],
)
def test_powers_of_two_that_fit(peak: int, memory: int, num_images: int, size: int) -> None:
    assert fitting_batch_size(peak, memory, num_images) == size


def test_the_peak_of_a_batch_is_that_of_one_image_times_its_size(tiny_teacher: UNet2DModel) -> None:
    one, many = (network_memory(tiny_teacher, batch_size=count).tensor_peak for count in (1, 64))
    assert many == pytest.approx(64 * one, rel=1e-2)
    assert many <= 64 * one


def test_a_cpu_has_its_own(tiny_teacher: UNet2DModel) -> None:
    assert choose_batch_size([RedDDPMPipeline(tiny_teacher, None)], 1000) == (64, None)
    assert choose_batch_size([], 1000) == (64, None)


@pytest.mark.parametrize("lean", [None, "smallest"])
def test_networks_of_a_gpu_share_half_of_what_is_free(
    tiny_teacher: UNet2DModel, monkeypatch: pytest.MonkeyPatch, lean: str | None
) -> None:
    peak = network_memory(tiny_teacher, lean=lean).tensor_peak
    gpu = SimpleNamespace(device=torch.device("cuda"), unet=tiny_teacher, lean=lean)
    for networks, size in ((1, 32), (2, 16)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * 32 * peak, 100 * GIB))
        found, why = choose_batch_size([gpu] * networks, 1000)
        assert found == size
        assert f"an image takes {networks * peak / 2**20:.2f} MiB" in why
