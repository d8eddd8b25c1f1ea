"""Runs killed by SIGKILL at random moments and resumed to the end, against the same run left alone, byte for byte.

    python benchmarks/kill_training.py                     # 20 runs, each killed once to three times; ten minutes
    python benchmarks/kill_training.py --runs 4 --seed 7
    python benchmarks/kill_training.py -- --training.num_workers=1    # settings of distill after the two dashes

A kill falls into a phase of the run (data, step, save, evaluation, student: the folder written at the end), each in its
turn, at a random occurrence of it and a random moment in it. The runs say on a pipe which phase they enter, so that
the table counts the phases in which they did die.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from ddpm_redistill.cli import main as command_line
from ddpm_redistill.files import read_metrics
from ddpm_redistill.training import denoise, draws, loop

ROOT = Path(__file__).parent.parent
PHASES = ("data", "step", "save", "evaluation", "student")
TRAINING = {
    "steps": 40,
    "batch_size": 8,
    "warmup_steps": 4,
    "log_every": 3,
    "sample_every": 8,
    "checkpoint_every": 4,
    "keep_checkpoints": 2,
}
MOST_KILLS = 3
A_BATCH = 0.04
"""Seconds, as from a slow disk."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("settings", nargs="*", help="of distill, as --recipe=redistill, after --")
    arguments = parser.parse_args()
    training = [f"--training.{name}={value}" for name, value in TRAINING.items()]
    settings = [f"--config={ROOT / 'configs' / 'tiny_cpu.yaml'}", *training, *arguments.settings]
    moments, phases, rows = random.Random(arguments.seed), iter(PHASES * arguments.runs * MOST_KILLS), []
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        times = passages(live([*settings, f"--output_dir={whole}"])[1])
        for number in range(arguments.runs):
            run, died = Path(place) / f"{number:03d}", []
            kills = moments.randint(1, MOST_KILLS)
            while True:
                resume = ["--resume"] if (run / "config.yaml").exists() else []
                command = [*settings, f"--output_dir={run}", *resume]
                if len(died) < kills:
                    phase = next(phases)
                    occurrence = moments.randint(1, len(times[phase]))
                    moment = Moment(phase, occurrence, moments.uniform(0, median(times[phase])))
                    code, marks = live(command, moment)
                else:
                    code, marks = live(command)
                if code:
                    died.append(marks[-1][0])
                elif died:
                    break
                else:  # the moment came after its end
                    shutil.rmtree(run)
            differ = differences(whole, run)
            rows.append({"run": number, "died in": died, "byte-equal": not differ, "differ": differ})
            print(f"run {number}: died in {', '.join(died) or 'no phase'}; {differ or 'byte-equal'}", file=sys.stderr)
            shutil.rmtree(run)
    print(json.dumps(rows, indent=2) if arguments.json else table(rows))
    return 0 if all(row["byte-equal"] and row["died in"] for row in rows) else 1


class Moment:
    """When to kill: so many seconds after so many entries into a phase."""

    def __init__(self, phase: str, occurrence: int, seconds: float):
        self.phase, self.left, self.seconds = phase, occurrence, seconds

    def comes(self, phase: str) -> bool:
        self.left -= phase == self.phase
        return self.left == 0


Mark = tuple[str, float]


def live(command: list[str], moment: Moment | None = None) -> tuple[int, list[Mark]]:
    """One life of a run, killed at the moment if it comes -> exit code (-9 for killed), and its (phase, time) marks."""
    read, write = os.pipe()
    child = [sys.executable, __file__, "--child", str(write), "distill", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(child, pass_fds=[write], env=environment, stderr=subprocess.PIPE, text=True)
    os.close(write)
    marks = []
    with os.fdopen(read) as lines:
        for line in lines:
            phase, at = line.split()
            marks.append((phase, float(at)))
            if moment and moment.comes(phase):
                time.sleep(moment.seconds)
                process.kill()
    printed = process.communicate()[1]
    if process.returncode not in (0, -signal.SIGKILL):
        sys.exit(f"a run ended with {process.returncode}:\n{printed[-3000:]}")
    return process.returncode, marks


def passages(marks: list[Mark]) -> dict[str, list[float]]:
    """The seconds of each passage through each phase."""
    times: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for (phase, begun), (_, ended) in zip(marks, [*marks[1:], marks[-1]], strict=True):
        times[phase].append(ended - begun)
    return times


def differences(whole: Path, run: Path) -> list[str]:
    """The files of a run that are not those of the other: every file of the student and the last checkpoints, sample
    grids byte for byte, metrics but for what is timed."""
    ours, theirs = ({path.relative_to(folder) for path in files(folder)} for folder in (run, whole))
    differ = {path for path in ours & theirs if (run / path).read_bytes() != (whole / path).read_bytes()}
    rows = [
        [{key: value for key, value in row.items() if key != "images_per_second"} for row in read_metrics(path)]
        for path in (run / "metrics.jsonl", whole / "metrics.jsonl")
    ]
    return sorted(map(str, differ | ours ^ theirs)) + ["metrics.jsonl"] * (rows[0] != rows[1])


def files(run: Path) -> list[Path]:
    return [
        path for part in ("student", "checkpoints", "samples") for path in (run / part).rglob("*") if path.is_file()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    equal, died = sum(row["byte-equal"] for row in rows), Counter(phase for row in rows for phase in row["died in"])
    lines = ["| run | died in | student, checkpoints, samples, metrics |", "|---|---|---|"]
    for row in rows:
        lines.append(f"| {row['run']} | {', '.join(row['died in'])} | {', '.join(row['differ']) or 'byte-equal'} |")
    deaths = ", ".join(f"{died[phase]} in {phase}" for phase in PHASES)
    return "\n".join([*lines, "", f"{equal} of {len(rows)} byte-equal; {sum(died.values())} kills: {deaths}"])


def child(write: int, argv: list[str]) -> None:
    """The command line, which says on a pipe which phase it enters."""

    def announced(phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def announce(now: str) -> None:
            os.write(write, f"{now} {time.time()}\n".encode())

        def wrapper(*arguments: Any, **options: Any) -> Any:
            announce(phase)
            if phase == "data":  # for tiny images it takes microseconds, which no kill would fall into
                time.sleep(A_BATCH)
            result = work(*arguments, **options)
            announce("step")
            return result

        return wrapper

    for phase, owner, name in (
        ("data", draws.Draws, "drawn"),
        ("save", loop, "save_checkpoint"),
        ("evaluation", denoise, "sample_grid"),
        ("student", denoise, "write_folder"),
    ):
        setattr(owner, name, announced(phase, getattr(owner, name)))
    command_line(argv)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(int(sys.argv[2]), sys.argv[3:])
    else:
        sys.exit(main())
