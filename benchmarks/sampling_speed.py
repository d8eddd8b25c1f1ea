"""Student against teacher: images/s of ``RedDDPMPipeline`` at equal steps, taking turns in one process.

    python benchmarks/sampling_speed.py                             # the CIFAR-10 architecture, x2 student, batch 16
    python benchmarks/sampling_speed.py --red_placement full --json
    python benchmarks/sampling_speed.py --against PATH              # the same networks sampled by another checkout

``student`` is what a student folder opens as; ``folded`` is it after ``fold_batch_norms``, the same images to rounding;
``no RED`` has none of the blocks: how much of the time they take. Then teacher and folded student run lean, and on a
GPU teacher and student as they are, where the rows before replay a CUDA graph. In ``--json``, ``ratio`` is the folded
student's images/s over the teacher's.

With ``--against`` a process of this checkout and one of PATH take turns, and every ratio is this one over the other;
``ratio`` is the student's.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from architectures import ARCHITECTURES
from checkouts import environment_of
from diffusers import DDPMScheduler, UNet2DModel

from ddpm_redistill import RedDDPMPipeline, StudentConfig, plan_student
from ddpm_redistill.pipelines.red_block import fold_batch_norms
from ddpm_redistill.sources.teacher import load_teacher
from ddpm_redistill.students.derive import build_student

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS = ["teacher", "student", "folded", "no RED", "teacher, lean", "folded, lean"]
ROWS += ["teacher, eager", "student, eager"] if DEVICE == "cuda" else []
ROWS_AGAINST = ["teacher", "student"]


def pipelines(
    architecture: str,
    placement: str,
    lean: str,
    *,
    scheduler: str = "ddim",
    compile: str = "auto",
    names: Sequence[str] = ROWS,
) -> dict[str, RedDDPMPipeline]:
    """Random weights: time does not depend on them."""
    config = ARCHITECTURES.get(architecture) or dict(load_teacher("builtin:digits").unet.config)
    made = {}
    for name in names:
        if name.startswith("teacher"):
            unet = UNet2DModel.from_config(config)
        else:
            chosen = StudentConfig(red_placement="none" if name == "no RED" else placement)
            unet = build_student(config, plan_student(config, chosen))
        unet.eval().to(DEVICE)
        if name.startswith("folded"):
            fold_batch_norms(unet)
        setting = lean if name.endswith("lean") else False
        made[name] = RedDDPMPipeline(unet, DDPMScheduler(), lean=setting).set_scheduler(scheduler)
        if compile == "off" or name.endswith("eager"):
            made[name].compile = False
        elif compile == "on" and not setting:
            made[name].compile = True
        made[name].set_progress_bar_config(disable=True)
    return made


def seconds_of(pipeline: RedDDPMPipeline, arguments: argparse.Namespace) -> float:
    count, started = arguments.batch_size, time.perf_counter()
    pipeline(count, num_inference_steps=arguments.steps, batch_size=count, output_type="pt")
    return time.perf_counter() - started


def take_turns(made: dict[str, RedDDPMPipeline], arguments: argparse.Namespace) -> None:
    """As a child: for each name that is read, the seconds of sampling by that network."""
    for line in sys.stdin:
        print(seconds_of(made[line.strip()], arguments), flush=True)


def ask(child: subprocess.Popen[str], name: str) -> float:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{name}\n")
    child.stdin.flush()
    return float(child.stdout.readline())  # nothing, when the child has ended: its own words are on standard error


def against(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """{network: {this: images/s, other: images/s, ratio}}"""
    command, rows = [sys.executable, __file__, *sys.argv[1:], "--turns"], {}
    with ExitStack() as stack:
        children = {}
        for name, checkout in (("this", None), ("other", arguments.against)):
            environment = stack.enter_context(environment_of(checkout))
            child = subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.callback(child.kill)
            children[name] = child
        for network in ROWS_AGAINST:
            taken: dict[str, list[float]] = {name: [] for name in children}
            for _ in range(arguments.rounds + 1):
                for name, child in children.items():
                    taken[name].append(ask(child, network))
            speed = {name: arguments.batch_size / statistics.median(values[1:]) for name, values in taken.items()}
            rows[network] = {**speed, "ratio": speed["this"] / speed["other"]}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=("digits", *ARCHITECTURES), default="cifar10")
    parser.add_argument("--red_placement", choices=("full", "outer", "none"), default="outer")
    parser.add_argument("--lean", choices=("fast", "balanced", "smallest"), default="fast")
    parser.add_argument("--scheduler", choices=("ddpm", "ddim", "dpm++"), default="ddim")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="on: all but the lean rows")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3, help="of an image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--against", metavar="PATH", help="another checkout of this project, sampled in turns")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object instead")
    parser.add_argument("--turns", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    networks = (arguments.architecture, arguments.red_placement, arguments.lean)
    options = {"scheduler": arguments.scheduler, "compile": arguments.compile}
    if arguments.turns:
        take_turns(pipelines(*networks, **options, names=ROWS_AGAINST), arguments)
        return
    setting = {**vars(arguments), "torch": torch.__version__, "device": DEVICE}
    del setting["json"], setting["turns"]
    if arguments.against:
        rows = against(arguments)
        report = {**setting, "ratio": rows["student"]["ratio"], "networks": rows}
        lines = [f"{'network':<16}{'this, images/s':>16}{'other':>12}{'ratio':>9}"]
        lines += [
            f"{name:<16}{row['this']:>16.3f}{row['other']:>12.3f}{row['ratio']:>8.2f}x" for name, row in rows.items()
        ]
    else:
        made = pipelines(*networks, **options)
        seconds: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(arguments.rounds + 1):
            for name, pipeline in made.items():
                seconds[name].append(seconds_of(pipeline, arguments))
        speed = {name: arguments.batch_size / statistics.median(taken[1:]) for name, taken in seconds.items()}  # warm
        ratios = {name: value / speed["teacher"] for name, value in speed.items()}
        report = {**setting, "ratio": ratios["folded"], "ratios": ratios, "images_per_second": speed}
        lines = [f"{'network':<16}{'images/s':>10}{'against the teacher':>22}"]
        lines += [f"{name:<16}{value:>10.3f}{ratios[name]:>21.2f}x" for name, value in speed.items()]
    if arguments.json:
        print(json.dumps(report))
    else:
        print(", ".join(f"{key} {value}" for key, value in setting.items()), *lines, sep="\n")


if __name__ == "__main__":
    main()
