"""Grids show every image where it belongs; charts are PNGs that leave matplotlib's global state alone."""

import io
import math
from typing import Any

import matplotlib as mpl
import pytest
import torch
from PIL import Image

from ddpm_redistill.errors import UserError
from ddpm_redistill.evaluation.pages.charts import loss_curves, memory_bars
from ddpm_redistill.evaluation.pages.pictures import image_grid, png_bytes

MIB = 2**20


def opened(png: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(png))
    picture.load()
    assert picture.format == "PNG"
    return picture.convert("RGB")


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_enlarges_small_images_without_blur(channels: int) -> None:
    images = torch.zeros(5, channels, 16, 16, dtype=torch.uint8)
    for index in range(5):
        images[index, :, 0, 0] = 50 * (index + 1)
    grid = image_grid(images, columns=3)
    assert grid.mode == "RGB"
    assert grid.size == (3 * 66 + 2, 2 * 66 + 2)
    for index in range(5):
        x, y = 2 + 66 * (index % 3), 2 + 66 * (index // 3)
        value = 50 * (index + 1)
        assert grid.getpixel((x, y)) == grid.getpixel((x + 3, y + 3)) == (value,) * 3
        assert grid.getpixel((x + 4, y)) == (0, 0, 0)
    assert grid.getpixel((0, 0)) == (255, 255, 255)


def test_grid_leaves_large_images_as_they_are() -> None:
    images = torch.randint(0, 256, (1, 3, 80, 72), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = opened(png_bytes(image_grid(images, columns=8)))
    assert picture.getpixel((picture.width - 72, 0)) is not None
    assert picture.width >= 72
    assert picture.height >= 80


@pytest.mark.parametrize(
    ("images", "columns"),
    [
        (torch.zeros(2, 3, 8, 8), 2),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), 2),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), 2),
        (torch.zeros(2, 2, 8, 8, dtype=torch.uint8), 2),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 0),
    ],
)
def test_grid_refuses_what_it_cannot_show(images: torch.Tensor, columns: int) -> None:
    with pytest.raises(UserError):
        image_grid(images, columns)


@pytest.mark.parametrize("count", [1, 40])
def test_loss_curves_are_a_picture(count: int) -> None:
    rows = [
        {"step": i, "loss": 1 / (i + 1), "red": 0.0 if i % 2 else 0.3, "grad_norm": 1e9, "task": math.nan}
        for i in range(count)
    ]
    picture = opened(loss_curves(rows))
    assert picture.width > 1000
    assert len(picture.getcolors(1 << 20) or []) > 5


def test_loss_curves_need_a_loss() -> None:
    with pytest.raises(UserError, match="no losses"):
        loss_curves([{"step": 1, "learning_rate": 0.1}, {"loss": 2.0}])


@pytest.mark.parametrize("teacher", [True, False])
def test_memory_bars_are_a_picture(teacher: bool) -> None:
    memory: dict[str, Any] = {"student": {"paper_peak": MIB, "tensor_peak": 2 * MIB, "red_paper_peak": None}}
    memory["teacher"] = {"paper_peak": 4 * MIB, "tensor_peak": None} if teacher else None
    assert opened(memory_bars(memory)).width > 1000


def test_memory_bars_need_a_peak() -> None:
    with pytest.raises(UserError, match="no peaks"):
        memory_bars({"student": {"paper_peak": None, "weights": 3}})


def test_charts_repeat_and_touch_no_global_state() -> None:
    before = dict(mpl.rcParams), mpl.get_backend()
    rows = [{"step": i, "loss": 0.5} for i in range(4)]
    assert loss_curves(rows) == loss_curves(rows)
    assert (dict(mpl.rcParams), mpl.get_backend()) == before
