"""Vision transformers trained from random weights, each beside the same convolutional teacher: with RED alignment,
without it (labels alone), accuracy on held-out images by seed. As a table, and as JSON rows in OUTPUT/rows.jsonl.

    ddpm-redistill teach --config configs/cifar10_classifier.yaml
    python benchmarks/vit_students.py --config configs/cifar10_vit.yaml --seeds 0 1 2 --output runs/vit_students

What the two arms share: everything but ``loss.red`` and ``student.red_placement``. A run that is there is not made
again, and one that was stopped goes on.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ARMS = {
    "with RED": [],
    "without": ["--loss.red", "0", "--student.red_placement", "none"],
}


def accuracy(run: Path) -> float:
    """The last of the run: share of the held-out images that are named right, by the averaged weights."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [row["held_out_top1"] for row in rows if "held_out_top1" in row]
    if not found:
        raise SystemExit(f"{run} has no accuracy: give training.sample_every, and classification.held_out")
    return float(found[-1])


def made(arguments: argparse.Namespace, arm: str, seed: int) -> dict[str, Any]:
    run = Path(arguments.output) / f"{arm.replace(' ', '_')}_{seed}"
    if not (run / "student").is_dir():
        command = [sys.executable, "-m", "ddpm_redistill", "distill", "--config", arguments.config, *arguments.options]
        command += [*ARMS[arm], "--seed", str(seed), "--output_dir", str(run)]
        subprocess.run([*command, *(["--resume"] if (run / "checkpoints").is_dir() else [])], check=True)
    return {"arm": arm, "seed": seed, "held_out_top1": accuracy(run)}


def table(rows: list[dict[str, Any]]) -> str:
    """Per cent by arm: each seed, and their mean with the standard deviation of a seed."""
    lines = [f"{'accuracy, %':<12}{'mean':>8}{'sd':>7}  by seed"]
    for arm in ARMS:
        values = [100 * row["held_out_top1"] for row in rows if row["arm"] == arm]
        if values:
            spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
            lines.append(f"{arm:<12}{statistics.mean(values):>8.2f}{spread:>7}  {' '.join(f'{v:.2f}' for v in values)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/cifar10_vit.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", default="runs/vit_students")
    parser.add_argument("options", nargs="*", help="more of distill, behind --, as -- --training.steps 300")
    arguments = parser.parse_args()
    Path(arguments.output).mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in arguments.seeds:
        for arm in ARMS:
            rows.append(made(arguments, arm, seed))
            (Path(arguments.output) / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            print(table(rows), flush=True)


if __name__ == "__main__":
    main()
