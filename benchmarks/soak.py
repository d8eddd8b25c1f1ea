"""A long training, watched from outside: its memory, its open files and its loss must not grow with time.

    python benchmarks/soak.py --minutes 60                    # the embedded task, ended by SIGTERM after an hour
    python benchmarks/soak.py --minutes 60 -- --config=configs/digits_x4.yaml --output_dir=runs/digits_x4

Prints resident memory (MiB) and open files over time, and the ratio of the last tenth of the time to the second tenth
(in the first, memory is still being taken up). Memory and files are those of the run and its workers, by Linux' /proc.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from statistics import fmean

from ddpm_redistill.files import read_metrics
from ddpm_redistill.units import MIB

ROOT = Path(__file__).parent.parent
Sample = tuple[float, float, int]
"""Minutes since the start, MiB resident, open files."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="then the run is asked to stop")
    parser.add_argument("--every", type=float, default=10.0, help="seconds from one look to the next")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("settings", nargs="*", help="of distill, after --; default: configs/digits_x2.yaml without end")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        endless = [f"--config={ROOT / 'configs' / 'digits_x2.yaml'}", "--training.steps=10000000"]
        settings = arguments.settings or [*endless, f"--output_dir={Path(place) / 'run'}"]
        run = next(Path(value.split("=", 1)[1]) for value in settings if value.startswith("--output_dir="))
        command = [sys.executable, "-m", "ddpm_redistill", "distill", *settings]
        samples, code = watch(command, arguments.minutes, arguments.every)
        rows = read_metrics(run / "metrics.jsonl")
    losses = [row["loss"] for row in rows]
    tenth = max(1, len(samples) // 10)
    early, late = samples[tenth : 2 * tenth] or samples, samples[-tenth:]
    found = {
        "minutes": samples[-1][0],
        "steps": rows[-1]["step"],
        "exit_code": code,
        "memory_ratio": fmean(s[1] for s in late) / fmean(s[1] for s in early),
        "files_ratio": fmean(s[2] for s in late) / fmean(s[2] for s in early),
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "loss_finite": all(math.isfinite(loss) for loss in losses),
        "samples": samples,
    }
    print(json.dumps(found) if arguments.json else table(found, tenth))
    return 0 if code in (0, 128 + signal.SIGTERM) and found["loss_finite"] else 1


def watch(command: list[str], minutes: float, every: float) -> tuple[list[Sample], int]:
    """Run a command -> what was seen of it, and its exit code."""
    process, started, samples = subprocess.Popen(command), time.monotonic(), []
    while process.poll() is None:
        now = (time.monotonic() - started) / 60
        seen = [look(pid) for pid in [process.pid, *children(process.pid)]]
        samples.append((now, sum(memory for memory, _ in seen), sum(files for _, files in seen)))
        if now >= minutes:
            process.send_signal(signal.SIGTERM)
            process.wait()
            break
        with suppress(subprocess.TimeoutExpired):
            process.wait(every)
    return samples, process.returncode


def look(pid: int) -> tuple[float, int]:
    """MiB resident, and the number of open files, of one process; 0 and 0 once it has ended."""
    place = Path(f"/proc/{pid}")
    try:
        pages = int((place / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MIB, len(os.listdir(place / "fd"))
    except OSError:
        return 0.0, 0


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def table(found: dict, tenth: int) -> str:
    lines = ["| minutes | MiB resident | open files |", "|---|---|---|"]
    lines += [
        f"| {minutes:.1f} | {memory:.0f} | {files} |" for minutes, memory, files in found["samples"][tenth::tenth]
    ]
    ratios = f"memory x{found['memory_ratio']:.3f}, open files x{found['files_ratio']:.3f} of what they were"
    finite = "finite throughout" if found["loss_finite"] else "NOT finite throughout"
    lost = f"loss {found['loss_first']:.4f} to {found['loss_last']:.4f}, {finite}"
    return "\n".join([*lines, "", f"{found['steps']:,} steps in {found['minutes']:.1f} minutes: {ratios}; {lost}"])


if __name__ == "__main__":
    sys.exit(main())
