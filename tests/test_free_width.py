"""What ``plan`` says can be wider at the same peak, against exact peaks of the widened network."""

import json
from pathlib import Path
from typing import Any

import pytest

from ddpm_redistill import StudentConfig
from ddpm_redistill.cli import main
from ddpm_redistill.cli.text import free_width_text
from ddpm_redistill.students.derive import build_student, student_on_meta
from ddpm_redistill.students.footprint import network_memory
from ddpm_redistill.students.free_width import FreeWidth, free_width
from ddpm_redistill.students.plan import plan_student


@pytest.mark.parametrize("reduction", [2, 4])
def test_what_is_free_is_free(tiny_config: dict[str, Any], reduction: Any) -> None:
    config = {**tiny_config, "sample_size": 32}
    plan = plan_student(config, StudentConfig(reduction=reduction, red_placement="outer"))
    peak = network_memory(student_on_meta(config, plan)).tensor_peak
    free = free_width(config, plan, peak, None)
    assert free.lean is None

    def measured(widen: tuple[int, ...]) -> tuple[int, int, int]:
        options = StudentConfig(reduction=reduction, red_placement="outer", widen=list(widen))
        unet = build_student(config, plan_student(config, options)).eval()
        profile = network_memory(unet)
        return profile.tensor_peak, unet.num_parameters(), profile.weights

    assert measured(free.widen) == (peak, free.parameters, free.weights)
    assert measured((1,) * 4)[1:] == (free.parameters_before, free.weights_before)
    first = free.widen.index(2) if 2 in free.widen else 4
    assert free.widen == (1,) * first + (2,) * (4 - first)
    if first > 1:
        assert measured((1,) * (first - 1) + (2,) * (5 - first))[0] > peak


def test_what_is_free_of_the_cifar10_student(cifar10_config: dict[str, Any]) -> None:
    free = free_width(cifar10_config, plan_student(cifar10_config), 1_837_576, None)
    assert free.to_dict() == {
        "widen": [1, 1, 2, 2],
        "parameters": 97_521_036,
        "parameters_before": 36_085_388,
        "weights": free.weights,
        "weights_before": free.weights_before,
        "lean": None,
    }


def test_lean_is_judged_too(tiny_config: dict[str, Any]) -> None:
    plan = plan_student(tiny_config, StudentConfig(red_placement="none"))
    assert free_width(tiny_config, plan, 10**9, 10**9).lean is True
    assert free_width(tiny_config, plan, 10**9, 1).lean is False
    assert free_width(tiny_config, plan, 1, 10**9).lean is None  # nothing is free


def test_plan_says_it(capsys: pytest.CaptureFixture[str], teacher_folder: Path) -> None:
    main(["plan", str(teacher_folder), "--reduction", "4", "--json"])
    free = json.loads(capsys.readouterr().out)["free"]
    assert set(free) == {"widen", "parameters", "parameters_before", "weights", "weights_before", "lean"}
    assert len(free["widen"]) == 4


@pytest.mark.parametrize(
    ("widen", "lean", "text"),
    [
        ((1, 1, 1), None, "no level can be 2x wider at the same tensor_peak"),
        (
            (1, 2, 2),
            True,
            "levels 2, 3 can be 2x wider at the same tensor_peak (parameters 1.00 M -> 2.50 M),"
            " and tensor_peak_lean stays too: --student.widen [1,2,2]",
        ),
        (
            (1, 1, 2),
            False,
            "level 3 can be 2x wider at the same tensor_peak (parameters 1.00 M -> 2.50 M),"
            " but tensor_peak_lean grows: --student.widen [1,1,2]",
        ),
    ],
)
def test_in_a_line(widen: tuple[int, ...], lean: bool | None, text: str) -> None:
    counts = {"parameters": 2_500_000, "parameters_before": 1_000_000, "weights": 0, "weights_before": 0}
    assert free_width_text(FreeWidth(widen=widen, lean=lean, **counts)) == text


def test_plan_of_given_widths(capsys: pytest.CaptureFixture[str], teacher_folder: Path) -> None:
    main(["plan", str(teacher_folder), "--widen", "[1,1,1,2]", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["plan"]["options"]["widen"], found["free"]) == ([1, 1, 1, 2], None)
