"""benchmarks/throughput.py and sampling_speed.py, run as a person runs them: what they say hangs together.

Nothing here depends on how fast anything is.
"""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from training_helpers import one_thread_environment

from ddpm_redistill.pipelines.red_block import REDBlock

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = ["--architecture", "tiny", "--threads", "1", "--steps", "2"]


def figures(script: str, *options: str) -> dict[str, Any]:
    """What a benchmark prints with --json, in a process of its own."""
    command = [sys.executable, str(BENCHMARKS / script), *TINY, *options, "--json"]
    done = subprocess.run(command, env=one_thread_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def throughput() -> dict[str, Any]:
    rows = ["redistill", "saturated", "unaligned", "saturated+bf16", "saturated+processes"]
    return figures("throughput.py", "--batch_size", "4", "--rows", *rows)


def test_throughput_compares_every_row_with_the_plain_loop(throughput: dict[str, Any]) -> None:
    rows = throughput["rows"]
    assert throughput["ratios"] == {name: row["plain"] / row["ours"] for name, row in rows.items()}
    assert all(row["plain"] > 0 and row["ours"] > 0 for row in rows.values())
    assert rows["saturated+processes"]["plain"] == rows["saturated"]["plain"]
    assert rows["saturated"]["plain"] != rows["redistill"]["plain"]  # each row beside a plain loop of its own
    of = [name for name in rows if name.startswith("saturated")]
    assert throughput["ratio"] == max(throughput["ratios"][name] for name in of)
    assert throughput["ratios"][throughput["ratio_of"]] == throughput["ratio"]


def test_throughput_sees_every_part_of_a_step(throughput: dict[str, Any]) -> None:
    """A part that is no longer seen would be 0, and one that is counted twice would push ``rest`` below 0."""
    assert throughput["rows"]["unaligned"]["parts"]["teacher"] == 0
    for name in ("redistill", "saturated", "unaligned", "saturated+bf16"):
        parts = throughput["rows"][name]["parts"]
        assert sum(parts.values()) == pytest.approx(throughput["rows"][name]["ours"])  # of two steps medians are means
        assert all(seconds > 0 for part, seconds in parts.items() if (name, part) != ("unaligned", "teacher")), parts


def test_throughput_checks_that_both_loops_train_alike(throughput: dict[str, Any]) -> None:
    assert throughput["loss_difference"] == throughput["rows"]["redistill"]["loss_difference"] < 1e-5
    assert throughput["rows"]["saturated"]["loss_difference"] > 1e-2  # another loss: the comparison can tell


def test_throughput_of_processes_needs_its_plain_loop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--rows", "saturated+bf16+processes"])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module("throughput").main()
    assert "row saturated: name that too" in capsys.readouterr().err


NETWORKS = ["teacher", "student", "folded", "no RED", "teacher, lean", "folded, lean"]


def test_sampling_speed() -> None:
    found = figures("sampling_speed.py", "--batch_size", "2", "--rounds", "1")
    speed = found["images_per_second"]
    assert [*speed][: len(NETWORKS)] == NETWORKS
    assert [*speed][len(NETWORKS) :] == (["teacher, eager", "student, eager"] if found["device"] == "cuda" else [])
    assert all(value > 0 for value in speed.values())
    assert found["ratios"] == {name: value / speed["teacher"] for name, value in speed.items()}
    assert found["ratio"] == found["ratios"]["folded"]
    assert (found["architecture"], found["lean"], found["device"] in ("cpu", "cuda")) == ("tiny", "fast", True)


def test_sampling_speed_against_another_checkout(tmp_path: Path) -> None:
    """A copy of this one, which the ratios are to: of each network, its images/s over the copy's."""
    for name in ("ddpm_redistill", "pipelines"):
        (tmp_path / name).symlink_to(BENCHMARKS.parent / name)
    found = figures("sampling_speed.py", "--batch_size", "2", "--rounds", "1", "--against", str(tmp_path))
    rows = found["networks"]
    assert [*rows] == ["teacher", "student"]
    for row in rows.values():
        assert row["ratio"] == row["this"] / row["other"] > 0
    assert found["ratio"] == rows["student"]["ratio"]
    assert found["against"] == str(tmp_path)


def test_sampling_speed_against_no_checkout(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "sampling_speed.py"), *TINY, "--against", str(tmp_path)]
    done = subprocess.run(command, env=one_thread_environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].endswith("is no checkout of this project: it has no folder ddpm_redistill")


def test_lean_execution_is_timed_beside_eager_execution() -> None:
    command = [sys.executable, str(BENCHMARKS / "lean.py"), "--architecture", "tiny", "--batch_sizes", "2"]
    command += ["--repeats", "1", "--json"]
    done = subprocess.run(command, env=one_thread_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = {(row["network"], row["execution"]): row for row in map(json.loads, done.stdout.splitlines())}
    graphs = [" + graph"] if "cuda_peak" in rows["teacher", "eager"] else []
    executions = [name + graph for name in ("eager", "fast", "balanced", "smallest") for graph in ("", *graphs)]
    assert [*rows] == [(network, execution) for network in ("teacher", "student") for execution in executions]
    for (network, _), row in rows.items():
        eager = rows[network, "eager"]
        assert row["less"] == eager["tensor_peak"] / row["tensor_peak"] >= 1
        assert row["time"] == pytest.approx(row["ms"] / eager["ms"])
    assert len({rows["teacher", name]["tensor_peak"] for name in ("eager", "fast", "balanced", "smallest")}) == 4


def test_sampling_speed_runs_what_its_rows_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    made = importlib.import_module("sampling_speed").pipelines("tiny", "full", "fast")
    kinds = {name: {type(module) for module in pipeline.unet.modules()} for name, pipeline in made.items()}
    assert [name for name in NETWORKS if nn.BatchNorm2d in kinds[name]] == ["student"]
    assert [name for name in NETWORKS if REDBlock in kinds[name]] == ["student", "folded", "folded, lean"]
    assert [name for name in NETWORKS if made[name].lean] == ["teacher, lean", "folded, lean"]


BEFORE = {  # what an eager step of a network of two levels dispatched at 31ce2b6
    "training, aligned": 882,
    "training, plain": 739,
    "denoising, teacher": 180,
    "denoising, student": 197,
}


def test_launches_do_not_grow() -> None:
    """Eager ones; ``launches.py`` without --eager counts compiled ones too, and takes minutes."""
    command = [sys.executable, str(BENCHMARKS / "launches.py"), "--architectures", "two_levels", "--eager", "--json"]
    done = subprocess.run(command, env=one_thread_environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["two_levels"]
    for step, before in BEFORE.items():
        eager = found["eager"][step]
        assert 0 < eager["computing"] < eager["dispatched"] <= before
