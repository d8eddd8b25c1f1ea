"""Training as it is installed against that of another checkout: images/s of ``distill``, and the time of its draws.

    git worktree add ../before COMMIT
    python benchmarks/training_against.py ../before

Both take turns, each time as a process of its own, on the same teacher, data and recipe, with the threads that torch
takes; a ratio above 1 says that the installed one is faster. ``draws`` is what a step needs before its network runs:
images, noise, timesteps and flips of a batch. ``--batch_size`` is that of training; draws are of 32 digits and of 128
colour images.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from checkouts import environment_of

DRAWS = {"digits": (1, 32), "colour": (3, 128)}  # channels, batch size
ROWS = ("draws digits", "draws colour", "train digits", "train cifar10")


def draws_seconds(name: str, batches: int = 60) -> float:
    """Median of a batch, in the package that this process imports; that of 31ce2b6 took no device."""
    from inspect import signature

    from ddpm_redistill.sources.image_source import ImageSource
    from ddpm_redistill.training.draws import Draws, micro_batches

    channels, size = DRAWS[name]
    pixels = torch.randint(256, (5000, channels, 32, 32), dtype=torch.uint8)
    images, common = ImageSource(5000, pixels, name, name), {"seed": 0, "batch_size": size}
    if "task" in signature(Draws).parameters:
        from diffusers import DDPMScheduler

        from ddpm_redistill.training.denoise import Denoise

        draws = Draws(images, Denoise(scheduler=DDPMScheduler(), horizontal_flip=True), **common)
    else:
        draws = Draws(images, num_train_timesteps=1000, horizontal_flip=True, **common)
    whole: dict[str, Any] = {"first_step": 0, "last_step": batches + 1, "rank": 0, "processes": 1}
    whole |= {"accumulation": 1, "num_workers": 0}
    if "device" in signature(micro_batches).parameters:
        whole["device"] = torch.device("cpu")
    batch_of, seconds = micro_batches(draws, **whole), []
    next(batch_of)
    for _ in range(batches):
        started = time.perf_counter()
        next(batch_of)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def training_seconds(architecture: str, batch_size: int, steps: int) -> float:
    """Median of a step of ``distill``, its first left out."""
    from throughput import inputs_of

    from ddpm_redistill import DistillConfig, LossConfig, TrainingConfig, distill

    with tempfile.TemporaryDirectory() as name:
        teacher, data = inputs_of(architecture, Path(name))
        training = TrainingConfig(
            steps=steps, batch_size=batch_size, log_every=1, sample_every=0, checkpoint_every=steps
        )
        loss = LossConfig(task=1.0, output=0.0, feature_share=0.25)  # the same in both, whatever their recipes are
        distill(DistillConfig(teacher=teacher, data=data, output_dir=f"{name}/run", loss=loss, training=training))
        lines = (Path(name) / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    elapsed = [row["step"] * batch_size / row["images_per_second"] for row in rows]
    return statistics.median(after - before for before, after in pairwise(elapsed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout")
    parser.add_argument("--rows", nargs="+", choices=(*ROWS, "train tiny"), default=ROWS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object instead")
    parser.add_argument("--here", help=argparse.SUPPRESS)  # one row, in the process that this script starts for it
    arguments = parser.parse_args()
    if arguments.here:
        kind, name = arguments.here.split()
        sizes = (name, arguments.batch_size, arguments.steps)
        print(json.dumps(draws_seconds(name) if kind == "draws" else training_seconds(*sizes)))
        return
    results = {}
    for row in arguments.rows:
        seconds: dict[str, list[float]] = {"before": [], "now": []}
        for _ in range(arguments.rounds):
            for version, checkout in (("before", arguments.checkout), ("now", None)):
                command = [sys.executable, __file__, arguments.checkout, "--here", row]
                command += ["--steps", str(arguments.steps), "--batch_size", str(arguments.batch_size)]
                with environment_of(checkout) as environment:
                    done = subprocess.run(command, env=environment, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(f"{row} failed in {checkout or 'the installed package'}:\n{done.stderr[-2000:]}")
                seconds[version].append(json.loads(done.stdout.splitlines()[-1]))
        medians = {version: statistics.median(values) for version, values in seconds.items()}
        results[row] = {**medians, "ratio": medians["before"] / medians["now"]}
        if not arguments.json:
            before, now, ratio = results[row].values()
            print(f"{row:<16}{before * 1e3:>10.2f} ms before{now * 1e3:>10.2f} ms now{ratio:>8.2f}x", flush=True)
    if arguments.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
