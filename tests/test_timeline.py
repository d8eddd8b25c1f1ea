"""The timeline: live bytes and long skips after each operation, against the paper's skips, and its picture."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
import torchvision
from diffusers import UNet2DModel
from memory_helpers import MIB, GatedBlock, SkipNetwork, assert_fake_is_real, cifar10_teacher, small_unet
from PIL import Image
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ddpm_redistill.core.live_tensors import LiveTensorTracker
from ddpm_redistill.core.memory import profile_memory
from ddpm_redistill.core.paper_memory import ResidualBlockRecorder
from ddpm_redistill.core.timeline import TimelinePoint, memory_timeline
from ddpm_redistill.errors import UserError
from ddpm_redistill.evaluation.pages.timeline import peak_of, timeline_picture, write_timeline_csv
from ddpm_redistill.students.derive import build_student
from ddpm_redistill.students.footprint import network_memory
from ddpm_redistill.students.plan import plan_student


@pytest.fixture(scope="module")
def networks() -> dict[str, UNet2DModel]:
    """The CIFAR-10 teacher and its x2 student, without weights."""
    with torch.device("meta"):
        teacher: Any = cifar10_teacher()
        return {"teacher": teacher, "student": build_student(dict(teacher.config), plan_student(dict(teacher.config)))}


@pytest.fixture(scope="module")
def timelines(networks: dict[str, UNet2DModel]) -> dict[str, tuple[TimelinePoint, ...]]:
    return {name: network_memory(network).timeline for name, network in networks.items()}


# What it says


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_timeline_peaks_where_the_profile_does(networks: dict[str, UNet2DModel], name: str) -> None:
    profile = network_memory(networks[name])
    peak = peak_of(profile.timeline)
    assert peak.live_bytes == profile.tensor_peak
    assert (peak.operation, peak.module) == (profile.peak_operation, profile.peak_module)
    assert [point.index for point in profile.timeline] == list(range(len(profile.timeline)))
    assert all(0 <= point.skip_bytes <= point.live_bytes for point in profile.timeline)
    # the two skips of 128 channels that wait for the next blocks
    assert peak.skip_bytes == profile.paper_peak_with_skips - profile.paper_peak > 0  # type: ignore[operator]


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_long_skips_are_the_papers(networks: dict[str, UNet2DModel], name: str) -> None:
    # The two are found apart: here by waiting between parts of the network, there by the concatenations that follow.
    with FakeTensorMode(), torch.no_grad():
        network: Any = type(networks[name]).from_config(networks[name].config).eval()
        x = torch.empty(1, 3, 32, 32)
        external = [*network.parameters(), *network.buffers(), x]
        with LiveTensorTracker(network, external) as tracker, ResidualBlockRecorder(network, tracker) as blocks:
            network(x, 0)
    timeline = memory_timeline(tracker)
    assert len(blocks.calls) == (22 if name == "teacher" else 24)
    for call in blocks.calls:
        # at its end a block of the encoder has read its input for the last time, which then waits as well
        during = [point.skip_bytes for point in timeline[call.entered : call.left]]
        assert min(during) == blocks.skip_bytes(call), call.path
    assert timeline[-1].skip_bytes == 0


def test_red_operations_are_those_in_red_blocks(timelines: dict[str, tuple[TimelinePoint, ...]]) -> None:
    assert not any(point.red for point in timelines["teacher"])
    for point in timelines["student"]:
        assert point.red == (".red_in" in point.module or ".red_out" in point.module), point
    assert any(point.red and point.module.endswith("red_out") for point in timelines["student"])  # its own operations
    alone = profile_memory(nn.Sequential(nn.ReLU(), GatedBlock(2)), torch.zeros(1, 2, 4, 4)).timeline
    assert [point.red for point in alone] == [point.module.split(".")[0] == "1" for point in alone]


FEATURE_MAP = 4 * 64 * 4


@pytest.mark.parametrize(
    ("join", "most"),
    [
        (lambda h, skip: torch.cat([h, skip], 1), FEATURE_MAP),
        (lambda h, skip: h + skip.view_as(skip), FEATURE_MAP),  # no concatenation is needed
        (lambda h, skip: torch.cat([h, h], 1), 0),
    ],
    ids=["cat", "sum", "dead"],
)
def test_long_skips_by_hand(join: Callable[[Tensor, Tensor], Tensor], most: int) -> None:
    timeline = profile_memory(SkipNetwork(2, join), torch.zeros(1, 3, 8, 8)).timeline
    assert max(point.skip_bytes for point in timeline) == most
    waits = [point.module for point in timeline if point.skip_bytes]
    assert waits == [] or {"blocks.1.conv1", "blocks.1.conv2"} <= set(waits)
    assert "blocks.0.conv1" not in waits  # there it is the block's own input, kept for the sum


def test_shortcuts_inside_a_block_are_no_long_skips() -> None:
    network = torchvision.models.resnet18()  # a convolution on the shortcut of three blocks
    assert {point.skip_bytes for point in profile_memory(network, torch.zeros(1, 3, 64, 64)).timeline} == {0}


def test_real_timeline_is_the_fake_one() -> None:
    network, x = small_unet(), torch.zeros(1, 1, 16, 16)
    assert_fake_is_real(profile_memory(network, x, 3), profile_memory(network, x, 3, fake=False))


# The picture and the table


def opened(png: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(png))
    picture.load()
    assert picture.format == "PNG"
    return picture.convert("RGB")


def ink(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    """Pixels of exactly this colour."""
    return sum(count for count, found in picture.getcolors(1 << 24) or [] if found == colour)


def test_picture_shows_every_network(timelines: dict[str, tuple[TimelinePoint, ...]]) -> None:
    before = dict(mpl.rcParams), mpl.get_backend()
    one, two = opened(timeline_picture({"teacher": timelines["teacher"]})), opened(timeline_picture(timelines))
    assert (dict(mpl.rcParams), mpl.get_backend()) == before
    assert two.width == one.width
    assert two.height > 1.5 * one.height
    red = (0xC2, 0x70, 0x3D)  # the colour of RED blocks, which the teacher has not
    assert ink(one, red) == 0
    assert ink(two, red) > 500


def height_of(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    """Rows of pixels with this colour in the upper four fifths: without the legend."""
    rows = np.asarray(picture)[: picture.height * 4 // 5]
    return int((rows == colour).all(2).any(1).sum())


def test_picture_has_one_scale(timelines: dict[str, tuple[TimelinePoint, ...]]) -> None:
    # Between two panels of its teacher the student is a quarter of the height that it has by itself.
    student, teal = timelines["student"], (0x0F, 0x6B, 0x66)
    teacher = timelines["teacher"]
    alone = opened(timeline_picture({"student": student}))
    beside = opened(timeline_picture({"teacher": teacher, "student": student, "teacher again": teacher}))
    assert height_of(alone, teal) > 100
    assert height_of(beside, teal) < 0.4 * height_of(alone, teal)


@pytest.mark.parametrize("nothing", [{}, {"teacher": ()}])
def test_picture_needs_operations(nothing: dict[str, tuple[TimelinePoint, ...]]) -> None:
    with pytest.raises(UserError, match="no timeline to draw"):
        timeline_picture(nothing)


def test_csv_has_every_operation(timelines: dict[str, tuple[TimelinePoint, ...]], tmp_path: Path) -> None:
    write_timeline_csv(tmp_path / "timeline.csv", timelines)
    with (tmp_path / "timeline.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["network", "index", "operation", "module", "live_bytes", "skip_bytes", "red"]
    for name, points in timelines.items():
        mine = [row for row in rows if row["network"] == name]
        assert [int(row["live_bytes"]) for row in mine] == [point.live_bytes for point in points]
        assert [int(row["skip_bytes"]) for row in mine] == [point.skip_bytes for point in points]
        assert [row["red"] == "1" for row in mine] == [point.red for point in points]
        assert {row["red"] for row in mine} <= {"0", "1"}
    assert max(int(row["live_bytes"]) for row in rows) / MIB == pytest.approx(7.0024, abs=1e-4)
