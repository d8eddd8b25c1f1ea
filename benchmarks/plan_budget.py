"""Seconds of ``plan --budget``, where something fits and where nothing does, against plain ``plan`` in the same run.

    python benchmarks/plan_budget.py --repeats 3

Each run is a process of its own, imports included; the median is shown, and its ratio to plain ``plan``'s.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from architectures import ARCHITECTURES

BUDGETS = {"cifar10": ("4MiB", "1MiB", "100KiB"), "celebahq": ("200MiB", "10MiB", "100KiB")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()

    print(f"{'':<20}{'':<34}{'seconds':>9}{'to plan':>9}  exit code")
    for name, budgets in BUDGETS.items():
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(ARCHITECTURES[name]))
            runs: list[list[str]] = [[], *(["--budget", budget] for budget in budgets)]
            runs += [["--budget", "1MiB", "--budget_counts", "total"]]
            baseline = 0.0
            for options in runs:
                seconds, code = timed(
                    [sys.executable, "-m", "ddpm_redistill", "plan", folder, *options], arguments.repeats
                )
                baseline = baseline or seconds
                print(f"{name:<20}{' '.join(['plan', *options]):<34}{seconds:>9.1f}{seconds / baseline:>8.2f}x  {code}")


def timed(command: list[str], repeats: int) -> tuple[float, int]:
    """The median wall time in seconds, and the exit code."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, check=False)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), done.returncode


if __name__ == "__main__":
    main()
