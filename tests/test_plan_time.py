"""benchmarks/plan_time.py, run as a person runs it: its figures hang together, and are of the checkout it names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from training_helpers import one_thread_environment

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "plan_time.py"
# As a checkout's package: it ends as `plan` does, at once, and needs the part that is kept beside it.
STAND_IN = "import sys, pathlib, ddpm_redistill.pipelines\nsys.exit(0 if pathlib.Path(sys.argv[2]).is_dir() else 2)"


def run(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--architecture", "tiny", "--repeats", "1", *map(str, options)]
    return subprocess.run(command, env=one_thread_environment(), capture_output=True, text=True, timeout=300)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for package in ("ddpm_redistill", "pipelines"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "ddpm_redistill" / "__main__.py").write_text(STAND_IN)
    return tmp_path


def test_figures(checkout: Path) -> None:
    done = run("--against", checkout, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    seconds = found["seconds"]
    assert {*seconds} == {"this", "against"}
    for one in seconds.values():
        assert one["beyond imports"] == pytest.approx(one["whole"] - one["imports"])
    assert seconds["this"]["beyond imports"] > 0
    assert found["ratios"] == {key: seconds["against"][key] / value for key, value in seconds["this"].items()}
    assert found["ratios"]["imports"] < 1  # the stand-in imports no torch: it was the stand-in that ran


def test_a_run_that_fails_is_no_figure(checkout: Path) -> None:
    (checkout / "ddpm_redistill" / "__main__.py").write_text("raise SystemExit('broken')")
    done = run("--against", checkout)
    assert done.returncode == 1
    assert "ended with 1, not 2: broken" in done.stderr


def test_against_must_be_a_checkout(tmp_path: Path) -> None:
    done = run("--against", tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path} is no checkout of this project" in done.stderr
