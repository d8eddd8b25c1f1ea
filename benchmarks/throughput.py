"""Images/s of ``distill`` against a plain loop of the paper (``plain_loop.py``): same nets, batch and machine.

    python benchmarks/throughput.py                                      # the CIFAR-10 architecture, batch 16
    python benchmarks/throughput.py --architecture digits --steps 20     # the embedded one, batch 32
    python benchmarks/throughput.py --rows natural saturated+bf16 --json

A row is a run of ``distill`` as a person starts it, with its draws, average, checks and logging, and between any two
of its steps one of the plain loop, on a student of the same layers, so that a slow moment of the machine falls on
both: ratios are of medians. Row ``redistill`` computes what the plain loop does, and the losses are compared. The
other rows train on another loss (what each costs in distance: docs/recipe.md): ``natural`` and ``saturated`` on what
the recipes of these names say, the second with a pass of the teacher in a share of its steps; ``unaligned`` without
any (``--loss.red 0``); ``output`` with the teacher's output as the target. ``+bf16`` is ``--training.mixed_precision
bf16``, the teacher's pass included. ``+processes`` is ``saturated`` again on the same threads, as one process for
each (torchrun), after the others: its ratio is to the plain loop of row ``saturated``, in float32.

Where the time of our step goes is taken in the same run, by wrapping the callables; ``rest`` is the arithmetic of the
losses, the check for NaN, logging. With ``--compile`` a step is one compiled whole, and all of it is ``rest``. In
``--json``, ``ratio`` is the best of the rows of ``saturated``, named in ``ratio_of``, else the first row's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from architectures import ARCHITECTURES
from diffusers import DDPMScheduler, UNet2DModel
from plain_loop import PlainLoop

from ddpm_redistill import (
    DistillConfig,
    LossConfig,
    RedDDPMPipeline,
    StudentConfig,
    TrainingConfig,
    distill,
    plan_student,
)
from ddpm_redistill.core.ema import EMA
from ddpm_redistill.core.flat import FlatParameters
from ddpm_redistill.recipes import RECIPES, resolve
from ddpm_redistill.sources.images import open_images
from ddpm_redistill.sources.teacher import load_teacher
from ddpm_redistill.training import distill_ddpm as distill_module
from ddpm_redistill.training import loop
from ddpm_redistill.training.denoise import Denoise
from ddpm_redistill.training.draws import Draws
from ddpm_redistill.training.run_folder import settings_text

PROCESSES = ("saturated+processes", "saturated+bf16+processes")
NAMES = ("redistill", "output", "natural", "saturated", "unaligned")
ROWS = [name + precision for precision in ("", "+bf16") for name in NAMES]
ROWS += PROCESSES
COMPILE = ("off", "cudagraphs", "default", "reduce-overhead")
PARTS = ("data", "teacher", "student forward", "backward", "optimizer", "EMA", "rest")
LEARNING_RATE = 2e-4
MEASURED_SHARE = 0.5  # of the steps of row saturated have a teacher, so that there are some of each kind
LOSSES = {"output": LossConfig(task=0.0, output=1.0, red=0.0), "unaligned": LossConfig(red=0.0)}


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def config_of(
    row: str, teacher: str, data: str, reduction: int, batch_size: int, steps: int, folder: Path, compile: str
) -> DistillConfig:
    name, *how = row.split("+")
    training = TrainingConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=LEARNING_RATE,
        warmup_steps=0,
        schedule="constant",
        max_grad_norm=1.0,  # the plain loop's
        ema_decay=0.9999,
        mixed_precision="bf16" if "bf16" in how else "no",
        compile=compile,  # type: ignore[arg-type]
        log_every=1 if "processes" in how else TrainingConfig.log_every,  # their steps are timed from what is logged
        sample_every=0,
        checkpoint_every=steps,
    )
    return DistillConfig(
        teacher=teacher,
        data=data,
        output_dir=str(folder),
        recipe=name if name in RECIPES else "saturated",  # type: ignore[arg-type]
        student=StudentConfig(reduction=reduction),  # type: ignore[arg-type]
        loss=LossConfig(feature_share=MEASURED_SHARE) if name == "saturated" else LOSSES.get(name, LossConfig()),
        training=training,
    )


def plain_loop(teacher_ref: str, config: DistillConfig, folder: Path) -> PlainLoop:
    teacher = load_teacher(teacher_ref)
    paper = resolve(DistillConfig(recipe="redistill", student=StudentConfig(reduction=config.student.reduction)))
    student = replace(paper.student, red_placement=resolve(config).student.red_placement)
    unet = dict(teacher.unet.config)
    draws = Draws(
        open_images(config.data, image_size=unet["sample_size"], channels=unet["in_channels"]),
        Denoise(scheduler=teacher.scheduler),
        seed=config.seed,
        batch_size=config.training.batch_size,
    )
    return PlainLoop(teacher.unet, teacher.scheduler, plan_student(unet, student), draws, LEARNING_RATE, folder)


@contextmanager
def timed_parts(spent: dict[str, float]) -> Iterator[None]:
    """Within the block what ``distill`` calls adds its seconds to ``spent``, by part."""

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            started = now()
            try:
                return call(*args, **kwargs)
            finally:  # a teacher that is stopped at its last needed layer ends in an exception
                spent[part] += now() - started

        return wrapper

    def timed_teacher(ref: str) -> Any:
        teacher = load_teacher(ref)
        teacher.unet.forward = timed("teacher", teacher.unet.forward)
        return teacher

    def timed_student(*args: Any, **kwargs: Any) -> Any:
        student = derive_student(*args, **kwargs)
        student.forward = timed("student forward", student.forward)
        return student

    def timed_batches(*args: Any, **kwargs: Any) -> Iterator[Any]:
        batches = micro_batches(*args, **kwargs)
        fetch = timed("data", lambda: next(batches, None))
        while (batch := fetch()) is not None:
            yield batch

    derive_student, micro_batches = distill_module.derive_student, loop.micro_batches
    with ExitStack() as patches:
        for owner, name, value in (
            (distill_module, "load_teacher", timed_teacher),
            (distill_module, "derive_student", timed_student),
            (loop, "micro_batches", timed_batches),
            (Accelerator, "backward", timed("backward", Accelerator.backward)),
            (FlatParameters, "clip_gradient", timed("optimizer", FlatParameters.clip_gradient)),
            (AcceleratedOptimizer, "step", timed("optimizer", AcceleratedOptimizer.step)),
            (AcceleratedOptimizer, "zero_grad", timed("optimizer", AcceleratedOptimizer.zero_grad)),
            (EMA, "update", timed("EMA", EMA.update)),
        ):
            patches.enter_context(patch.object(owner, name, value))
        yield


def typical(steps: list[dict[str, float]], config: DistillConfig) -> dict[str, float]:
    """A step's seconds by part, the steps (from the run's second) being of two kinds in ``saturated``: the medians with
    the terms on maps and without, weighted by the recipe's share of each, not by that of this short run."""
    if config.recipe != "saturated" or config.loss.feature_share is None:
        kinds = [(1.0, steps)]
    else:
        last = round(config.loss.feature_share * config.training.steps) - 1
        share = RECIPES["saturated"]["loss"]["feature_share"]
        kinds = [(share, steps[:last]), (1 - share, steps[last:])]
    names = {name for step in steps for name in step}
    return {
        name: sum(share * statistics.median(step.get(name, 0.0) for step in kind) for share, kind in kinds)
        for name in names
    }


def measure(config: DistillConfig, plain: PlainLoop) -> dict[str, Any]:
    """Median seconds of a step of both and of our parts, and the losses of both, step by step."""
    spent: dict[str, float] = defaultdict(float)
    ours: list[dict[str, float]] = []
    theirs: list[tuple[float, float]] = []  # seconds, loss
    losses: list[torch.Tensor] = []
    started = 0.0
    true_rate, true_see = loop.learning_rate_at, loop.FiniteWatch.see

    def see(watch: Any, step: int, parts: dict[str, torch.Tensor]) -> None:
        losses.append(parts["loss"])
        true_see(watch, step, parts)

    def between_steps(step: int, training: TrainingConfig) -> float:
        """The loop asks for its learning rate when a step begins: the plain loop has its turn then."""
        nonlocal started
        if step:
            whole = now() - started
            ours.append({**spent, "rest": whole - sum(spent.values()), "step": whole})
        if step < training.steps - 1:  # our last one ends in a checkpoint and has no end to see
            begun = now()
            loss = plain.step()
            theirs.append((now() - begun, loss))
        spent.clear()
        started = now()
        return true_rate(step, training)

    AcceleratorState._reset_state(reset_partial_state=True)  # else it keeps the precision of the row before
    with ExitStack() as stack:
        stack.enter_context(redirect_stderr(stack.enter_context(open(os.devnull, "w"))))  # the progress bar
        if config.training.compile == "off":
            stack.enter_context(timed_parts(spent))
        stack.enter_context(patch.object(loop, "learning_rate_at", between_steps))
        stack.enter_context(patch.object(loop.FiniteWatch, "see", see))
        distill(config)
    pairs = list(zip((loss for _, loss in theirs), map(float, losses), strict=False))  # of our last one there is none
    step = typical(ours[1:], config)  # the first warms up
    return {
        "plain": statistics.median(seconds for seconds, _ in theirs[1:]),
        "ours": step["step"],
        "parts": {part: step.get(part, 0.0) for part in PARTS},
        "loss_difference": max(abs(one - other) / abs(one) for one, other in pairs),
    }


def measure_processes(config: DistillConfig, processes: int, plain: float) -> dict[str, Any]:
    """Median seconds of a step of ``distill`` on ``processes`` processes of one thread, from its metrics."""
    path = Path(config.output_dir).with_suffix(".yaml")
    path.write_text(settings_text(config))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(
        [*launch, "-m", "ddpm_redistill", "distill", "--config", str(path)],
        env=environment,
        check=True,
        capture_output=True,
    )
    rows = [json.loads(line) for line in (Path(config.output_dir) / "metrics.jsonl").read_text().splitlines()]
    elapsed = [row["step"] * config.training.batch_size / row["images_per_second"] for row in rows]
    steps = [{"step": after - before} for before, after in pairwise(elapsed)]
    return {"plain": plain, "ours": typical(steps, config)["step"], "parts": {}}


def inputs_of(architecture: str, folder: Path) -> tuple[str, str]:
    """Teacher and data; neither time nor the comparison depends on what the weights or the pixels are."""
    if architecture == "digits":
        return "builtin:digits", "builtin:digits"
    torch.manual_seed(0)
    RedDDPMPipeline(UNet2DModel.from_config(ARCHITECTURES[architecture]), DDPMScheduler()).save_pretrained(
        folder / "teacher"
    )
    images = np.random.default_rng(0).integers(0, 256, (512, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images)
    return str(folder / "teacher"), str(folder / "images.npz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=("cifar10", "digits", "tiny", "two_levels"), default="cifar10")
    parser.add_argument("--reduction", type=int, choices=(2, 4), default=2, help="the student's")
    parser.add_argument(
        "--batch_size", type=int, help="default: 16, and of digits 32, as configs/digits_x2.yaml has it"
    )
    parser.add_argument("--steps", type=int, default=5, help="steps of each loop that are timed, in each row")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", choices=COMPILE, default="off", help="training.compile of our steps")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object instead")
    arguments = parser.parse_args()
    if set(PROCESSES) & set(arguments.rows) and "saturated" not in arguments.rows:
        parser.error("the rows of several processes are against the plain loop of row saturated: name that too")
    if arguments.steps < 2:
        parser.error("--steps must be at least 2: row saturated has steps with a teacher and steps without")
    if arguments.batch_size is None:
        arguments.batch_size = 32 if arguments.architecture == "digits" else 16
    torch.set_num_threads(arguments.threads)

    results = {}
    with tempfile.TemporaryDirectory() as name:
        teacher, data = inputs_of(arguments.architecture, Path(name))
        sizes = (arguments.reduction, arguments.batch_size, arguments.steps + 2)
        configs = {
            row: config_of(row, teacher, data, *sizes, Path(name) / row, arguments.compile) for row in arguments.rows
        }
        for row in (row for row in configs if row not in PROCESSES):
            results[row] = measure(configs[row], plain_loop(teacher, configs[row], Path(name) / f"{row}-plain"))
        for row in (row for row in configs if row in PROCESSES):
            results[row] = measure_processes(configs[row], arguments.threads, results["saturated"]["plain"])
    ratios = {row: result["plain"] / result["ours"] for row, result in results.items()}
    settings = ("architecture", "reduction", "batch_size", "steps", "threads", "compile")
    setting = {key: getattr(arguments, key) for key in settings}
    setting |= {"torch": torch.__version__, "device": "cuda" if torch.cuda.is_available() else "cpu"}
    exact = results.get("redistill", {}).get("loss_difference")
    if arguments.json:
        of = max(
            (row for row in ratios if row.startswith("saturated")), key=ratios.__getitem__, default=arguments.rows[0]
        )
        figures = {"ratio": ratios[of], "ratio_of": of, "ratios": ratios, "loss_difference": exact, "rows": results}
        print(json.dumps({**setting, **figures}))
        return
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    print(
        f"{'row':<20}{'plain, s':>10}{'ours, s':>10}{'images/s':>10}{'ratio':>8}  of our step, s: " + ", ".join(PARTS)
    )
    for row, result in results.items():
        parts = "".join(f"{seconds:>9.4f}" for seconds in result["parts"].values())
        speed = arguments.batch_size / result["ours"]
        print(f"{row:<20}{result['plain']:>10.4f}{result['ours']:>10.4f}{speed:>10.2f}{ratios[row]:>7.2f}x{parts}")
    if exact is not None:
        print(f"redistill against the plain loop: largest relative difference of a step's loss {exact:.1e}")


if __name__ == "__main__":
    main()
