"""Recipes against each other: same teacher, data, batches, noise, seeds and steps; several seeds; a table and a plot.

    python benchmarks/recipes.py --arms default redistill --steps 200 400 --seeds 0 1 2 --output_dir runs/recipes
    python benchmarks/recipes.py --arms default@200 redistill@200 redistill@4000 --workers 2
    python benchmarks/recipes.py --teacher FOLDER --data train.npz --test_data test.npz --horizontal_flip \
        --learning_rate 1e-3 --mixed_precision bf16 --arms natural@600 saturated@600 --output_dir runs/recipes_photos

An arm is a file of configs/recipes: what it says is all in which it differs from the others. A run is an arm, a number
of steps and a seed, in OUTPUT_DIR/ARM-STEPS-SEED, with a whole schedule of its own: the learning rate is 0 at its last
step. Each is a process of one thread, so that a run is as fast beside another as alone, as far as the machine allows,
and its numbers do not depend on it. A call that was killed goes on when it is given again: finished runs are kept,
others resume from their last checkpoint, failed ones are tried again. Writes results.json and recipes.png.
"""

import argparse
import fcntl
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from recipe_run import Job
from recipe_table import plot, summarise, table_text

from ddpm_redistill import DistillConfig, UserError
from ddpm_redistill.cli.verbs import as_settings
from ddpm_redistill.files import write_aside
from ddpm_redistill.recipes import resolve

ARMS = Path(__file__).parents[1] / "configs" / "recipes"
DEFAULTS = {"warmup_steps": 30, "ema_decay": 0.99}
"""Of training, where an arm says nothing else; the average is over the last hundred steps, short beside any run."""
HOUSEKEEPING = {"log_every": 10, "sample_every": 0, "checkpoint_every": 500, "keep_checkpoints": 1, "num_workers": 0}
OPEN_TO_ARMS = ("recipe", "student", "loss", "training")


@dataclass(frozen=True, eq=False)
class Run:
    """One arm at a number of steps from one seed."""

    arm: str
    steps: int
    seed: int
    job: Job

    @property
    def name(self) -> str:
        return Path(self.job.folder).name

    @property
    def failure(self) -> Path:
        return Path(self.job.folder) / "failed.txt"


def main(argv: list[str] | None = None) -> int:
    try:
        return compare(parse_arguments(argv))
    except UserError as error:
        print(f"recipes.py: error: {error}", file=sys.stderr)
        return 2


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", required=True, metavar="NAME[@STEPS]", help=f"of {', '.join(arm_names())}")
    parser.add_argument("--steps", nargs="+", type=int, default=[], help="of the arms that do not name theirs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--baseline", default="default", help="the arm that the ratios at equal steps are to")
    parser.add_argument("--teacher", default="builtin:digits")
    parser.add_argument("--data", default="builtin:digits")
    parser.add_argument("--test_data", help="what distances are to; default: the data")
    parser.add_argument("--horizontal_flip", action="store_true", help="of half of the images that are trained on")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="of the trainings")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=4e-3, help="of the arms that do not say theirs")
    parser.add_argument("--num_images", type=int, default=1000, help="of each set that is measured")
    parser.add_argument("--sampling_steps", type=int, default=25, help="DDIM steps")
    parser.add_argument("--workers", type=int, default=1, help="runs side by side, each a process of one thread")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--table_only", action="store_true", help="run nothing: the table and plot of what is there")
    return parser.parse_args(argv)


def compare(arguments: argparse.Namespace) -> int:
    """0; or 1 when a run failed."""
    runs = plan_runs(arguments)
    measure = {key: getattr(arguments, key) for key in ("num_images", "sampling_steps")}
    measure["data"] = arguments.test_data or arguments.data
    output = arguments.output_dir
    teacher = Run("teacher", 0, 0, Job(folder=str(output / "teacher"), model=arguments.teacher, **measure))
    if not arguments.table_only:
        output.mkdir(parents=True, exist_ok=True)
        with (output / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go of when this process ends
            except OSError:
                raise UserError(f"another call is at work in {output}") from None
            work([teacher], workers=1)  # measures the data too: the others read that
            if teacher.failure.exists():
                raise UserError(teacher.failure.read_text())
            work(runs, arguments.workers)

    # what there is
    found = [{"arm": r.arm, "steps": r.steps, "seed": r.seed, **result} for r in runs if (result := r.job.result())]
    failed = {r.name: r.failure.read_text() for r in runs if r.failure.exists()}
    missing = [r.name for r in runs if not r.job.result() and r.name not in failed]
    if not found:
        print("\n".join(["no run is finished", *(f"{name} failed: {reason}" for name, reason in failed.items())]))
        return min(len(failed), 1)
    rows = summarise(found, arguments.baseline)
    at = teacher.job.result()
    settings = {key: value for key, value in vars(arguments).items() if key not in ("output_dir", "table_only")}
    results = {"settings": settings, "teacher": at, "rows": rows, "failed": failed, "missing": missing}
    write_aside(output / "results.json", json.dumps(results, indent=2))
    plot(rows, at, output / "recipes.png")
    print(table_text(rows, at, arguments.baseline))
    for name, reason in failed.items():
        print(f"{name} failed: {reason}")
    if missing:
        print(f"not made yet: {', '.join(missing)}")
    return min(len(failed), 1)


# --- what is to be done


def arm_names() -> list[str]:
    return sorted(path.stem for path in ARMS.glob("*.yaml"))


def plan_runs(arguments: argparse.Namespace) -> list[Run]:
    """Every run, all arms of a seed before the next seed. Raises UserError for any mistake in an arm or a number."""
    if arguments.workers < 1 or arguments.num_images < 2:
        raise UserError("--workers must be at least 1, and --num_images 2")
    pairs: dict[tuple[str, int], None] = {}  # in order, each once
    for text in arguments.arms:
        arm, _, own = text.partition("@")
        if arm not in arm_names():
            raise UserError(f"there is no arm {arm!r} in {ARMS}: expected one of {', '.join(arm_names())}")
        if own and not own.isdecimal():
            raise UserError(f"--arms {text}: give NAME or NAME@STEPS, as default@400")
        counts = [int(own)] if own else arguments.steps
        if not counts:
            raise UserError(f"--arms {text} names no number of steps: give --steps, or {arm}@STEPS")
        pairs |= {(arm, steps): None for steps in counts}
    runs = []
    for seed in dict.fromkeys(arguments.seeds):
        for arm, steps in pairs:
            config = arm_config(arm, steps, seed, arguments)
            check_same(config)
            job = Job.training(
                config, arguments.test_data or arguments.data, arguments.num_images, arguments.sampling_steps
            )
            runs.append(Run(arm, steps, seed, job))
    return runs


def arm_config(arm: str, steps: int, seed: int, arguments: argparse.Namespace) -> DistillConfig:
    """The config of a run: the harness's settings, the arm's file, and what no arm may say; the rest is open, and for
    the run to settle. Raises UserError."""
    path = ARMS / f"{arm}.yaml"
    shared = {"steps": steps, "batch_size": arguments.batch_size, **HOUSEKEEPING}
    fixed = {key: getattr(arguments, key) for key in ("teacher", "data", "horizontal_flip")}
    fixed |= {"seed": seed, "output_dir": arguments.output_dir / f"{arm}-{steps}-{seed}"}
    try:
        own = yaml.safe_load(path.read_text()) or {}
        refused = [key for key in own if key not in OPEN_TO_ARMS]
        refused += [f"training.{key}" for key in own.get("training", {}) if key in shared]
        if refused:
            raise UserError(f"{refused[0]} is the harness's, the same for every arm, or no setting")
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--config", action="config")
        parser.add_class_arguments(DistillConfig, as_group=False)
        given = {**DEFAULTS, **{key: getattr(arguments, key) for key in ("learning_rate", "mixed_precision")}}
        argv = [f"--training.{key}={value}" for key, value in given.items()] + [f"--config={path}"]
        argv += [f"--{key}={value}" for key, value in fixed.items()]
        argv += [f"--training.{key}={value}" for key, value in shared.items()]
        config = DistillConfig(**as_settings(parser.parse_args(argv), DistillConfig))
        resolve(config)
        return config
    except (UserError, ArgumentError, yaml.YAMLError, AttributeError, TypeError) as error:
        raise UserError(f"arm {arm}, {path}: {' '.join(str(error).split())}") from error


def check_same(config: DistillConfig) -> None:
    """Raises UserError if the run's folder holds a run of other settings. What is open is passed over, and so is a
    setting that only one of the two programs knew: a run is not lost to every new option."""
    path = Path(config.output_dir) / "config.yaml"
    before = yaml.safe_load(path.read_text()) if path.is_file() else {}
    for key, value, was in both(yaml.safe_load(yaml.safe_dump(asdict(config))), before):
        if value not in (None, "auto", was):
            raise UserError(f"{config.output_dir}: {key} was {was} and is now {value}; give another --output_dir")


def both(now: dict[str, Any], before: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(key, now, before) of the settings in both, those of nested groups by their dotted names."""
    found = []
    for key in now.keys() & before.keys() - {"output_dir", "recipe"}:
        if isinstance(now[key], dict):
            found += both(now[key], before[key], f"{key}.")
        else:
            found.append((prefix + key, now[key], before[key]))
    return sorted(found, key=lambda each: each[0])


# --- doing it


def work(runs: list[Run], workers: int) -> None:
    """Make what is not there, ``workers`` at a time, one line each; a failure is left in the run's failed.txt."""
    waiting = [run for run in runs if not run.job.result()]
    total, all_steps = len(waiting), sum(run.steps for run in waiting)
    running: dict[Run, subprocess.Popen[bytes]] = {}
    started, done = time.perf_counter(), 0
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                run = waiting.pop(0)
                running[run] = start(run)
            time.sleep(0.1)
            for run, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[run]
                done += run.steps
                say = finish(run, process.returncode)
                left = (time.perf_counter() - started) * (all_steps - done) / max(1, done)
                remaining = len(waiting) + len(running)
                print(f"{run.name}: {say}; {total - remaining} of {total}, {left / 60:.0f} min left", flush=True)
    finally:
        for process in running.values():
            process.terminate()


def start(run: Run) -> "subprocess.Popen[bytes]":
    folder = Path(run.job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    run.failure.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("recipe_run.py")), json.dumps(asdict(run.job))]
    with (folder / "log.txt").open("w") as log:
        # the pipe is held open until this process ends: see end_with_parent
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)


def finish(run: Run, code: int) -> str:
    """What to say of a run that ended."""
    result = run.job.result()
    if code == 0 and result:
        name, value = next(iter(result["distances"].items()))
        return f"{name} {value:.1f}" + (f", {result['seconds']:.0f} s of training" if "seconds" in result else "")
    lines = (Path(run.job.folder) / "log.txt").read_text(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    reason = f"killed by signal {-code}" if code < 0 else last or f"exit code {code}"
    write_aside(run.failure, reason)
    return f"FAILED: {reason}"


if __name__ == "__main__":
    sys.exit(main())
