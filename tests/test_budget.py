"""``plan --budget``: the order of the candidates, what is looked at, what is chosen, and that its promise holds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from training_helpers import make_cifar10_config, refused

from ddpm_redistill import UserError
from ddpm_redistill.cli import main
from ddpm_redistill.core.memory import profile_memory
from ddpm_redistill.core.peak import tensor_peak_within
from ddpm_redistill.families.unet2d import network_on_meta
from ddpm_redistill.pipelines.lean import LEAN_SETTINGS, lean_execution
from ddpm_redistill.students import budget as budget_module
from ddpm_redistill.students.budget import BudgetPlan, Candidate, plan_under_budget
from ddpm_redistill.students.derive import derive_student
from ddpm_redistill.students.footprint import network_memory

EXECUTIONS = (None, *LEAN_SETTINGS)
THREE_LEVELS = {
    "block_out_channels": (8, 8, 16),
    "down_block_types": ["DownBlock2D"] * 3,
    "up_block_types": ["UpBlock2D"] * 3,
}


def key(candidate: Candidate) -> tuple:
    return (candidate.reduction, candidate.red_placement, candidate.dtype, candidate.lean)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of the networks that were run while the test lasts."""
    run: list[str] = []

    def recorded(module: UNet2DModel, *args: Any) -> tuple[int, bool]:
        run.append(type(module).__name__)
        return tensor_peak_within(module, *args)

    monkeypatch.setattr(budget_module, "tensor_peak_within", recorded)
    return run


# --- order and laziness


@pytest.mark.parametrize("counts", ["activations", "total"])
@pytest.mark.parametrize("placement", [None, "full"])
def test_order(tiny_config: dict[str, Any], counts: Any, placement: str | None) -> None:
    found = plan_under_budget(tiny_config, 1, counts, red_placement=placement)
    networks = [(1, None), *((reduction, placement or "outer") for reduction in (2, 4, 8))]
    dtypes = ("float32", "bfloat16")
    expected = [(*network, dtype, lean) for network in networks for dtype in dtypes for lean in EXECUTIONS]
    assert [key(candidate) for candidate in found.candidates] == expected


def test_a_teacher_that_fits_is_all_that_is_run(tiny_config: dict[str, Any], passes: list[str]) -> None:
    peak = network_memory(network_on_meta(tiny_config)).tensor_peak
    found = plan_under_budget(tiny_config, peak)
    assert (passes, found.plan, found.chosen) == (["UNet2DModel"], None, found.candidates[0])
    assert (found.candidates[0].activations, found.candidates[0].over) == (peak, 0)
    missed = plan_under_budget(tiny_config, peak - 1)
    assert (missed.candidates[0].over, len(missed.candidates)) == (1, 2)
    assert missed.chosen
    assert missed.chosen.lean == "fast"


def test_nothing_past_the_first_fit_is_run(tiny_config: dict[str, Any], passes: list[str]) -> None:
    peak = network_memory(network_on_meta(tiny_config)).tensor_peak
    found = plan_under_budget(tiny_config, peak // 3)
    assert found.chosen is found.candidates[-1]
    assert len(passes) == len(found.candidates)
    assert all(candidate.over > 0 for candidate in found.candidates[:-1])


def test_total_counts_the_weights(tiny_config: dict[str, Any]) -> None:
    profile = network_memory(network_on_meta(tiny_config))
    total = profile.tensor_peak + profile.weights
    found = plan_under_budget(tiny_config, total, "total")
    assert found.chosen
    assert key(found.chosen) == (1, None, "float32", None)
    assert (found.chosen.weights, found.chosen.over) == (profile.weights, 0)
    # weights alone are above it: no lean pass of float32 can fit, and none is run
    half = plan_under_budget(tiny_config, profile.weights - 1, "total")
    assert half.chosen
    assert half.chosen.dtype == "bfloat16"
    assert [c.activations for c in half.candidates if c.dtype == "float32" and c.lean] == [0] * len(LEAN_SETTINGS)


# --- every figure is the exact one, or a lower bound of it


def exact(config: dict[str, Any], candidate: Candidate) -> int:
    """By ``profile_memory``."""
    network = budget_module._network(config, candidate.reduction, candidate.red_placement)
    unet = network.unets[torch.float32]
    profile = network_memory(unet, dtype=getattr(torch, candidate.dtype), lean=candidate.lean)
    assert profile.weights == candidate.weights
    return profile.tensor_peak


@pytest.mark.parametrize("reduction", [1, 2])
def test_figures(tiny_config: dict[str, Any], reduction: int) -> None:
    found = plan_under_budget(tiny_config, 1000, reduction=reduction)
    peaks = [exact(tiny_config, candidate) for candidate in found.candidates]
    for candidate, peak in zip(found.candidates, peaks, strict=True):
        assert candidate.activations == peak if candidate.exact else 1000 < candidate.activations <= peak
        assert candidate.over == candidate.activations - 1000
    assert found.nearest.exact
    assert found.nearest.activations == min(peaks)


def real_peak(teacher: UNet2DModel, found: BudgetPlan, size: int) -> int:
    """The peak of what was chosen, built with weights and computed."""
    assert found.chosen
    unet = derive_student(teacher, found.plan) if found.plan else teacher
    dtype = getattr(torch, found.chosen.dtype)
    unet = unet.to(dtype).eval()
    sample = torch.randn(1, unet.config.in_channels, size, size, dtype=dtype)
    if found.chosen.lean is None:
        return profile_memory(unet, sample, 0, fake=False).tensor_peak
    with lean_execution(unet, found.chosen.lean):
        return profile_memory(unet, sample, 0, fake=False).tensor_peak


@pytest.mark.parametrize("reduction", [1, 2])
@pytest.mark.parametrize(("dtype", "lean"), [("float32", None), ("float32", "smallest"), ("bfloat16", "smallest")])
def test_the_promise_on_the_tiny_teacher(
    tiny_config: dict[str, Any], reduction: int, dtype: str, lean: str | None
) -> None:
    """The budget is what this candidate takes, to the byte: it, or one that is no larger, is chosen."""
    network = budget_module._network(tiny_config, reduction, None)
    peak = network_memory(network.unets[torch.float32], dtype=getattr(torch, dtype), lean=lean).tensor_peak
    found = plan_under_budget(tiny_config, peak, reduction=reduction)
    assert found.chosen
    assert real_peak(UNet2DModel(**tiny_config), found, 16) == found.chosen.activations <= peak


@pytest.mark.parametrize("budget", ["4MiB", "1MiB"])
def test_the_promise_on_the_cifar10_teacher(cifar10_config: dict[str, Any], budget: str) -> None:
    found = plan_under_budget(cifar10_config, int(budget[0]) * 2**20)
    assert found.chosen
    assert (found.plan is None) == (budget == "4MiB")
    with torch.random.fork_rng():
        teacher = UNet2DModel.from_config(cifar10_config)
    assert real_peak(teacher, found, 32) == found.chosen.activations <= int(budget[0]) * 2**20


# --- narrowed, and reductions that the teacher cannot take


def test_only_the_given_reduction_and_placement(tiny_config: dict[str, Any]) -> None:
    found = plan_under_budget(tiny_config, 10**9, reduction=4, red_placement="outer")
    assert found.chosen
    assert found.plan
    assert key(found.chosen) == (4, "outer", "float32", None)
    assert (found.plan.reduction, found.plan.options.red_placement) == (4, "outer")
    assert plan_under_budget(tiny_config, 10**9, reduction=1).plan is None


def test_reductions_that_the_teacher_cannot_take(tiny_config: dict[str, Any]) -> None:
    config = {**tiny_config, **THREE_LEVELS}
    found = plan_under_budget(config, 1)
    assert {candidate.reduction for candidate in found.candidates} == {1, 2, 4}
    assert len(found.skipped) == 1
    assert "reduction 8 needs 3 strided levels, this teacher has 2" in found.skipped[0]
    with pytest.raises(UserError, match="reduction 8 needs 3 strided levels"):
        plan_under_budget(config, 1, reduction=8)


# --- the command line


def test_the_teacher_itself_as_text(capsys: pytest.CaptureFixture[str], teacher_folder: Path) -> None:
    main(["plan", str(teacher_folder), "--budget", "1GiB"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("the teacher itself, float32, eager fits: ")
    assert lines[0].endswith("of 1024.0000 MiB; no student is needed")
    assert lines[-1] == f"ddpm-redistill sample {teacher_folder} --output samples --batch_size 1"


def test_a_student_as_text(capsys: pytest.CaptureFixture[str], teacher_folder: Path) -> None:
    main(["plan", str(teacher_folder), "--budget", "1GiB", "--reduction", "4", "--red_placement", "outer"])
    out = capsys.readouterr().out
    assert out.startswith("reduction 4, RED outer, float32, eager fits: ")
    assert "strides [1, 2, 2, 2] -> [4, 2, 1, 1]" in out
    assert "tensor_peak " in out
    assert out.splitlines()[-2:] == [
        f"ddpm-redistill distill --teacher {teacher_folder} --data DATA --student.reduction 4"
        " --student.red_placement outer",
        "ddpm-redistill sample runs/distill/student --output samples --batch_size 1",
    ]


def test_the_commands_name_what_was_chosen(capsys: pytest.CaptureFixture[str], teacher_folder: Path) -> None:
    argv = ["plan", str(teacher_folder), "--reduction", "2", "--image_size", "32"]
    main([*argv, "--budget", "1GiB", "--json"])
    chosen = json.loads(capsys.readouterr().out)["chosen"]
    main([*argv, "--budget", str(chosen["activations"] - 1)])
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"ddpm-redistill distill --teacher {teacher_folder} --data DATA --student.reduction 2"
        f" --student.red_placement {chosen['red_placement']} --image_size 32",
        "ddpm-redistill sample runs/distill/student --output samples --batch_size 1 --lean fast",
    ]


def test_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = make_cifar10_config(tmp_path)
    main(["plan", str(folder), "--budget", "2MiB", "--reduction", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["budget"], found["budget_counts"], found["fits"]) == (2 * 2**20, "activations", True)
    assert found["chosen"] == found["candidates"][-1]
    assert found["chosen"]["activations"] == 1_837_576
    assert found["plan"]["student_strides"] == [2, 2, 2, 1]


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_fits(capsys: pytest.CaptureFixture[str], teacher_folder: Path, form: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(teacher_folder), "--budget", "100", *(["--json"] if form == "json" else [])])
    out, err = capsys.readouterr()
    assert ended.value.code == 1
    assert err.startswith("ddpm-redistill: nothing fits 100 B of activations: the nearest, ")
    assert err.count("\n") == 1
    if form == "json":
        found = json.loads(out)
        assert (found["fits"], found["chosen"], len(found["candidates"])) == (False, None, 32)
    else:
        assert len([line for line in out.splitlines() if "  misses by " in line]) == 32


MISTAKES = {
    "not a size": (["--budget", "lots"], "'lots' is not a size"),
    "zero": (["--budget", "0"], "below one byte"),
    "image size": (["--budget", "1MiB", "--image_size", "20"], "image size 20 does not divide by 8"),
    "no image": (["--budget", "1MiB", "--image_size", "0"], "image_size must be at least 1"),
    "reduction": (["--budget", "1MiB", "--reduction", "3"], "reduction 3 is not supported"),
    "the teacher without a budget": (["--reduction", "1"], "reduction 1 is not supported"),
    "counts": (["--budget", "1MiB", "--budget_counts", "all"], "budget_counts"),
    "widths and a budget": (["--widen", "[1,1,1,2]", "--budget", "1MiB"], "--widen and --budget do not go together"),
    "too few widths": (["--widen", "[1,2]"], "student.widen is [1, 2]: give 4 whole numbers"),
    "a width that is no number": (["--widen", "[1,1,1,a]"], "widen"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, teacher_folder: Path, case: str
) -> None:
    argv, reason = MISTAKES[case]
    assert reason in refused(capsys, caplog, ["plan", str(teacher_folder), *argv])
