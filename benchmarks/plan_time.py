"""Seconds of ``plan``: of its imports, and beyond them.

    python benchmarks/plan_time.py                       # of the CIFAR-10 architecture
    python benchmarks/plan_time.py --against ../before   # and those of another checkout, with their ratio to these

Every run is a process of its own, and medians are shown. ``plan`` of a folder that does not exist ends when everything
is imported: that is the time of the imports, Python's start included. With ``--against`` the two checkouts take turns,
so that a slow moment of the machine falls on both.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from architectures import ARCHITECTURES
from checkouts import environment_of

MISTAKE = 2  # the exit code of a run that names a folder that does not exist


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="cifar10")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--against", help="a checkout of another commit")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object instead")
    arguments = parser.parse_args()

    with ExitStack() as stack:
        teacher = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (teacher / "config.json").write_text(json.dumps(ARCHITECTURES[arguments.architecture]))
        checkouts = {"against": arguments.against, "this": None} if arguments.against else {"this": None}
        environments = {name: stack.enter_context(environment_of(checkout)) for name, checkout in checkouts.items()}
        seconds: dict[str, dict[str, list[float]]] = {name: {"imports": [], "whole": []} for name in checkouts}
        for _ in range(arguments.repeats):
            for name, environment in environments.items():
                seconds[name]["imports"].append(timed(environment, teacher / "nothing", MISTAKE))
                seconds[name]["whole"].append(timed(environment, teacher, 0))
    results = {name: figures(found) for name, found in seconds.items()}
    before, now = results.get("against", {}), results["this"]
    ratios = {key: value / now[key] for key, value in before.items()}
    if arguments.json:
        settings = {"architecture": arguments.architecture, "repeats": arguments.repeats}
        print(json.dumps({**settings, "seconds": results, "ratios": ratios}, indent=2))
        return
    print(f"{'seconds of plan':<18}" + "".join(f"{name:>10}" for name in results) + f"{'ratio' if ratios else '':>10}")
    for key in now:
        row = "".join(f"{found[key]:>10.2f}" for found in results.values())
        print(f"{key:<18}{row}" + (f"{ratios[key]:>9.2f}x" if ratios else ""))


def timed(environment: dict[str, str], teacher: Path, expected: int) -> float:
    """Seconds of ``plan teacher`` in this environment; it must end with the expected exit code."""
    command = [sys.executable, "-m", "ddpm_redistill", "plan", str(teacher)]
    started = time.perf_counter()
    # -m looks in the current folder first: it must be none that has a package of this name
    done = subprocess.run(command, cwd=teacher.anchor, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode != expected:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}, not {expected}: {done.stderr}")
    return seconds


def figures(found: dict[str, list[float]]) -> dict[str, float]:
    """Medians; what is beyond the imports is the difference of two runs that follow each other."""
    beyond = [whole - imports for whole, imports in zip(found["whole"], found["imports"], strict=True)]
    return {
        "imports": statistics.median(found["imports"]),
        "beyond imports": statistics.median(beyond),
        "whole": statistics.median(found["whole"]),
    }


if __name__ == "__main__":
    main()
