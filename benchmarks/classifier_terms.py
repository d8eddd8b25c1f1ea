"""What each distillation term gives a classifier's student: the same teacher, data, steps and seeds; accuracy on held-out
images, and how much of what the plain student loses each term brings back.

    python benchmarks/classifier_terms.py TEACHER --data train.npz --held_out test.npz --steps 2000 --seeds 0 1 2 \
        --output_dir runs/classifier_terms [--start random] [--reduction 2] [--arms plain kd red red_kd]

TEACHER is a classifier's folder that `teach` wrote. A run is an arm and a seed, in OUTPUT_DIR/ARM-SEED; finished ones are
kept, so that a call that was stopped goes on when it is given again. Writes results.json. One run at a time, on as many
threads as OMP_NUM_THREADS says.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ARMS: dict[str, dict[str, float]] = {
    "plain": {"task": 1, "red": 0},
    "kd": {"task": 0.5, "output": 0.5, "red": 0},
    "fitnet": {"task": 1, "red": 0, "fitnet": 1},
    "at": {"task": 1, "red": 0, "attention_mean_square": 1000},
    "sp": {"task": 1, "red": 0, "similarity": 3000},
    "red": {"task": 1, "red": 1},
    "red_kd": {"task": 0.5, "output": 0.5, "red": 1},
}
"""Weights of the loss. KD: half and half, as the ReDistill authors; AT: beta 1e3 (Crowley et al. 2018); SP: 3000 (Tung and
Mori 2019)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher")
    parser.add_argument("--data", required=True)
    parser.add_argument("--held_out", required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=0.1)
    parser.add_argument("--reduction", type=int, default=2)
    parser.add_argument("--start", choices=["teacher", "random"], default="teacher")
    parser.add_argument("--mixed_precision", choices=["no", "bf16"], default="no")
    arguments = parser.parse_args()

    accuracies: dict[str, list[float]] = {}
    for arm in arguments.arms:
        for seed in arguments.seeds:
            accuracies.setdefault(arm, []).append(accuracy_of(arm, seed, arguments))
            print(f"{arm}, seed {seed}: {100 * accuracies[arm][-1]:.2f}%", flush=True)
    teacher = teachers_accuracy(arguments)
    table = {arm: {"top1": found, "mean": statistics.fmean(found)} for arm, found in accuracies.items()}
    result = {
        "teacher": teacher,
        "arms": table,
        "settings": {key: str(value) for key, value in vars(arguments).items()},
    }
    (arguments.output_dir / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    plain = table["plain"]["mean"] if "plain" in table else None
    print(f"\n{'':<8}  top-1, %  by seed{'':<21}recovered of what plain loses\nteacher   {100 * teacher:>7.2f}")
    for arm, found in table.items():
        lost = None if plain is None else teacher - plain
        share = f"{(found['mean'] - plain) / lost:>6.0%}" if lost and arm != "plain" else ""
        by_seed = ", ".join(f"{100 * each:.2f}" for each in found["top1"])
        print(f"{arm:<8}  {100 * found['mean']:>7.2f}  {by_seed:<28}{share}")


def accuracy_of(arm: str, seed: int, arguments: argparse.Namespace) -> float:
    """Top-1 on the held-out images of the student of one run, trained unless it is there."""
    folder = arguments.output_dir / f"{arm}-{seed}"
    if not (folder / "student").is_dir():
        settings: dict[str, Any] = {
            "teacher": arguments.teacher,
            "data": arguments.data,
            "output_dir": folder,
            "horizontal_flip": "true",
            "classification.held_out": arguments.held_out,
            "student.reduction": arguments.reduction,
            "student.start": arguments.start,
            "student.red_placement": "full" if ARMS[arm]["red"] else "none",
            "training.optimizer": "sgd",
            "training.learning_rate": arguments.learning_rate,
            "training.weight_decay": 5e-4,
            "training.steps": arguments.steps,
            "training.batch_size": arguments.batch_size,
            "training.ema_decay": 0,
            "training.sample_every": arguments.steps,
            "training.mixed_precision": arguments.mixed_precision,
            "seed": seed,
            **{f"loss.{name}": weight for name, weight in ARMS[arm].items()},
        }
        flags = [f"--{name}={value}" for name, value in settings.items()]
        resume = ["--resume"] if folder.is_dir() else []
        subprocess.run([sys.executable, "-m", "ddpm_redistill", "distill", *flags, *resume], check=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return float(rows[-1]["held_out_top1"])


def teachers_accuracy(arguments: argparse.Namespace) -> float:
    """Top-1 of the teacher on the same images."""
    command = ["evaluate", arguments.teacher, "--data", arguments.held_out, "--json"]
    command += ["--output_dir", str(arguments.output_dir / "teacher")]
    done = subprocess.run(
        [sys.executable, "-m", "ddpm_redistill", *command], check=True, capture_output=True, text=True
    )
    networks = json.loads(done.stdout)["accuracy"]["networks"]
    return float(next(iter(networks.values()))["top1"])


if __name__ == "__main__":
    main()
