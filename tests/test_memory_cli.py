"""``ddpm-redistill memory``, and the report that it shares with plan and evaluate."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models import modeling_utils
from PIL import Image
from training_helpers import UNET, make_tiny_teacher

from ddpm_redistill import UserError, derive_student, plan_student
from ddpm_redistill.cli import main
from ddpm_redistill.cli.text import SHOWN_AT_PEAK, memory_table
from ddpm_redistill.pipelines.lean import LEAN_SETTINGS, CannotRunLeanError
from ddpm_redistill.students.footprint import (
    memory_profiles,
    memory_report,
    network_memory,
    network_of,
    planned_report,
    profiles_report,
)

MIB = 2**20


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """teacher/ (two levels, 8 px, with weights) and student/ (a config only)."""
    place = tmp_path_factory.mktemp("place")
    two_levels = {key: UNET[key][:2] for key in ("block_out_channels", "down_block_types", "up_block_types")}
    teacher = UNet2DModel.from_pretrained(make_tiny_teacher(place / "teacher", sample_size=8, **two_levels) / "unet")
    derive_student(teacher, plan_student(dict(teacher.config))).save_config(place / "student")
    return place


@pytest.fixture(scope="module")
def memory(place: Path) -> dict[str, dict[str, Any]]:
    """By a way of its own: what the command line is to say."""
    refs = {"teacher": place / "teacher" / "unet", "student": place / "student"}
    unets = {name: network_of(json.loads((ref / "config.json").read_text())) for name, ref in refs.items()}
    return {name: profiles_report(memory_profiles(unet)) for name, unet in unets.items()}


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    main(["memory", *map(str, argv)])
    out, err = capsys.readouterr()
    assert err == ""
    return out


def read(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(capsys, *argv, "--json"))
    return found


# What it reports


def test_json_of_one_network(capsys: pytest.CaptureFixture[str], place: Path) -> None:
    found = read(capsys, place / "teacher")
    memory = found.pop("memory")
    assert found == {"model": str(place / "teacher"), "batch_size": 1, "image_size": 8, "dtype": "float32"}
    assert memory["tensor_peak"] == sum(tensor["bytes"] for tensor in memory["live_at_peak"])
    assert set(memory["lean"]) == set(LEAN_SETTINGS)
    assert memory["tensor_peak_lean"] == memory["lean"]["smallest"] <= memory["tensor_peak"]
    assert memory["cuda_peak"] is None
    assert "timeline" not in memory


def test_json_of_student_and_teacher(
    capsys: pytest.CaptureFixture[str], place: Path, memory: dict[str, dict[str, Any]]
) -> None:
    found = read(capsys, place / "student", "--teacher", place / "teacher")
    assert found["teacher"] == str(place / "teacher")
    assert found["teacher_memory"] == memory["teacher"]
    assert found["memory"] == memory["student"]
    assert found["memory"]["red_paper_peak"] > found["teacher_memory"]["red_paper_peak"] == 0


def test_a_plans_report_is_that_of_the_networks(place: Path, memory: dict[str, dict[str, Any]]) -> None:
    config = json.loads((place / "teacher" / "unet" / "config.json").read_text())
    planned = planned_report(config, plan_student(config))
    for name in ("teacher", "student"):
        lean = {"smallest": memory[name]["tensor_peak_lean"]}  # the one setting that a plan names
        assert planned[name] == {**memory[name], "lean": lean}


def test_batch_size_image_size_and_dtype(
    capsys: pytest.CaptureFixture[str], place: Path, memory: dict[str, dict[str, Any]]
) -> None:
    argv = ["--batch_size", 4, "--dtype", "float16", "--image_size", 16]
    found = read(capsys, place / "student", *argv)
    assert (found["batch_size"], found["image_size"], found["dtype"]) == (4, 16, "float16")
    one, times = memory["student"], 4 * 4 // 2
    assert found["memory"]["weights"] < 0.51 * one["weights"]
    assert found["memory"]["red_paper_peak"] == times * one["red_paper_peak"]
    assert 0.9 * times < found["memory"]["tensor_peak"] / one["tensor_peak"] <= times
    assert found["memory"]["tensor_peak_lean"] > one["tensor_peak_lean"]


def test_cifar10_at_64_pixels(cifar10_config: dict[str, Any]) -> None:
    teacher = network_of(cifar10_config)
    assert network_memory(teacher, image_size=64).paper_peak == 14.00048828125 * MIB
    config = {**cifar10_config, "_class_name": "RedUNet2DModel"}
    student = network_of({**config, "student_plan": plan_student(cifar10_config).to_dict()})
    assert student.config.sample_size == 32
    assert (
        network_memory(student, image_size=64).paper_peak == 3.50048828125 * MIB
    )  # of the maps that a teacher has at 32


def test_text(capsys: pytest.CaptureFixture[str], place: Path, memory: dict[str, dict[str, Any]]) -> None:
    text = run(capsys, place / "student", "--teacher", place / "teacher")
    lines = text.splitlines()
    assert lines[0].split() == ["memory,", "MiB", "teacher", "model", "ratio"]
    cells = {line[:24].strip(): line[24:].split() for line in lines}
    for row, key in (("tensor_peak", "tensor_peak"), ("lean, smallest", "tensor_peak_lean")):
        teacher, student = memory["teacher"][key], memory["student"][key]
        assert cells[row] == [f"{teacher / MIB:.4f}", f"{student / MIB:.4f}", f"{teacher / student:.2f}x"]
    assert "tensor_peak_lean" not in cells  # the settings stand for it
    assert cells["red_paper_peak"][0] == "0.0000"
    header = next(i for i, line in enumerate(lines) if line.split()[0] == "MiB")
    rows = lines[header + 1 :]
    assert len(rows) == SHOWN_AT_PEAK + 1
    largest = memory["student"]["live_at_peak"][0]
    assert rows[0].split()[0] == f"{largest['bytes'] / MIB:.4f}"
    assert " x ".join(map(str, largest["shape"])) in rows[0]
    assert rows[0].split()[-1] == largest["operation"]
    total = sum(float(row.split()[0]) for row in rows)
    assert total == pytest.approx(memory["student"]["tensor_peak"] / MIB, abs=1e-3)


def test_table_of_reports_without_lean_execution() -> None:
    profile = {**dict.fromkeys(("paper_peak_with_skips", "red_paper_peak", "tensor_peak", "weights"), MIB)}
    text = memory_table({"student": {**profile, "paper_peak": None, "peak_operation": "add", "peak_module": "stem"}})
    assert "tensor_peak_lean" not in text
    assert "undefined" in text


def test_report_of_a_network_that_cannot_run_lean(monkeypatch: pytest.MonkeyPatch, tiny_teacher: UNet2DModel) -> None:
    def refuse(*_: Any) -> None:
        raise CannotRunLeanError("no lean execution of such a block")

    monkeypatch.setattr("ddpm_redistill.students.footprint.lean_execution", refuse)
    report = memory_report(tiny_teacher)
    assert report["tensor_peak"] > 0
    assert not {"tensor_peak_lean", "lean"} & set(report)
    assert "lean" not in memory_table({"model": report})


@pytest.mark.parametrize("size", [(16, 20), (20, 16)])
def test_a_size_that_does_not_divide_is_refused_from_python_too(
    tiny_config: dict[str, Any], size: tuple[int, int]
) -> None:
    with pytest.raises(UserError, match="image size 20 does not divide by 8"):
        network_memory(UNet2DModel(**{**tiny_config, "sample_size": size}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype_leaves_the_network_and_the_log_alone(
    tiny_teacher: UNet2DModel, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(modeling_utils.logger, "warning", warnings.append)
    network_memory(tiny_teacher, dtype=dtype)
    assert tiny_teacher.dtype == torch.float32
    assert warnings == []


# Weights in half precision


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_half_precision_folders(
    capsys: pytest.CaptureFixture[str],
    place: Path,
    memory: dict[str, dict[str, Any]],
    tmp_path: Path,
    variant: str | None,
) -> None:
    unet = UNet2DModel.from_pretrained(place / "teacher" / "unet", torch_dtype=torch.float16)
    unet.save_pretrained(tmp_path, variant=variant)
    assert read(capsys, tmp_path)["memory"] == memory["teacher"]


# --fail_over


def failing(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["memory", *map(str, argv)])
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    return out, err


def test_fail_over(capsys: pytest.CaptureFixture[str], place: Path, memory: dict[str, dict[str, Any]]) -> None:
    peak = memory["teacher"]["tensor_peak"]
    read(capsys, place / "teacher", "--fail_over", peak)  # as much is not over
    out, err = failing(capsys, place / "teacher", "--fail_over", f"{peak - 1024}B", "--json")
    assert json.loads(out)["memory"] == memory["teacher"]  # printed all the same
    assert err == (
        f"ddpm-redistill: tensor_peak of {place / 'teacher'}, eager, is {peak / MIB:.4f} MiB ({peak} B):"
        f" 0.0010 MiB over {peak - 1024}B\n"
    )


def test_fail_over_judges_the_model_as_it_is_run(
    capsys: pytest.CaptureFixture[str], place: Path, memory: dict[str, dict[str, Any]]
) -> None:
    lean, teacher = memory["student"]["lean"]["balanced"], memory["teacher"]["lean"]["balanced"]
    assert lean < teacher
    argv = [place / "student", "--teacher", place / "teacher", "--lean", "balanced", "--fail_over"]
    text = run(capsys, *argv, lean)
    assert f"alive at the tensor_peak of the model, lean balanced: {lean / MIB:.4f} MiB" in text
    _, err = failing(capsys, *argv, lean - 1)
    assert f"tensor_peak of {place / 'student'}, lean balanced, is {lean / MIB:.4f} MiB ({lean} B)" in err


# --timeline


def test_timeline(
    capsys: pytest.CaptureFixture[str], place: Path, memory: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "new" / "folder"
    argv = [place / "student", "--teacher", place / "teacher", "--lean", "smallest", "--timeline", folder]
    read(capsys, *argv)
    assert sorted(path.name for path in folder.iterdir()) == ["timeline.csv", "timeline.png"]
    with (folder / "timeline.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    peaks: dict[str, int] = {}
    for row in rows:
        peaks[row["network"]] = max(peaks.get(row["network"], 0), int(row["live_bytes"]))
    assert peaks == {
        "teacher": memory["teacher"]["tensor_peak"],
        "model": memory["student"]["tensor_peak"],
        "model, lean smallest": memory["student"]["lean"]["smallest"],
    }
    assert list(peaks) == ["teacher", "model", "model, lean smallest"]
    assert Image.open(folder / "timeline.png").format == "PNG"
    read(capsys, place / "teacher", "--timeline", folder)  # into a folder that is there: written over
    assert "lean" not in (folder / "timeline.csv").read_text()
