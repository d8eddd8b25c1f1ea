"""How many operations a training step and a denoising step launch: eager, and compiled. No GPU is needed to count them.

    python benchmarks/launches.py                                  # the digits and the CIFAR-10 architecture
    python benchmarks/launches.py --against PATH                   # and the eager ones of another checkout

A training step is one of ``distill`` with the default recipe, all of it: draws, the teacher as far as its maps
(``aligned``) or not at all (``plain``), forward, backward, clipping, Adam, the average, the check for NaN. A denoising
step is one of ``RedDDPMPipeline`` by DDIM, teacher and student.

Eager: what PyTorch dispatches, views of a tensor included (``dispatched``), and without them (``computing``): on a GPU
each of these launches a kernel or more. Compiled: the fused kernels that the compiler has generated (``fused``), and
beside them the calls of library kernels in its code (``library``: convolutions and matrix products, most of them) and
what is dispatched outside of it (``outside``). Captured as a CUDA graph all of these but the last are one launch. The
kernels are counted as they are called; on a CPU they are not built, since that would take many minutes: their results
are not computed, and nothing here depends on them.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from architectures import ARCHITECTURES
from checkouts import environment_of
from diffusers import DDPMScheduler
from throughput import inputs_of
from torch._inductor import config as inductor
from torch._inductor import graph
from torch._inductor.async_compile import AsyncCompile
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode

from ddpm_redistill import (
    DistillConfig,
    LossConfig,
    RedDDPMPipeline,
    StudentConfig,
    TrainingConfig,
    distill,
    plan_student,
)
from ddpm_redistill.sources.teacher import load_teacher
from ddpm_redistill.students.derive import build_student
from ddpm_redistill.training import loop

BATCH = 2
STEPS = 6  # of a training run, half of them aligned; and of an image
Counts = dict[str, tuple[Counter[str], ...]]  # by step: what is dispatched, and what compiled code calls
VIEWS = re.compile(
    "alias|as_strided|detach|empty|empty_like|empty_strided|expand|lift_fresh|new_empty|new_empty_strided|permute"
    "|select|slice|split|split_with_sizes|squeeze|t|transpose|unbind|unsqueeze|view|_local_scalar_dense|_reshape_alias"
    "|_unsafe_view"
)
LIBRARY = re.compile(r"(?:extern_kernels\.\w+|torch\.ops\.[\w.]+|aten\.[\w.]+)\(")


class Dispatched(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


class Enough(Exception):
    """Ends a run of which all steps that count are counted."""


def training(teacher: str, data: str, folder: Path, mode: Dispatched, kernels: Counter[str], **settings: Any) -> Counts:
    """One of the aligned steps of a run, and one of the plain ones, each past the first of its kind."""
    true_rate, marks = loop.learning_rate_at, []

    def rate(step: int, config: TrainingConfig) -> float:
        """The loop asks for its learning rate where a step begins."""
        marks.append((Counter(mode.counts), Counter(kernels)))
        if step == STEPS - 1:
            raise Enough
        return true_rate(step, config)

    config = TrainingConfig(steps=STEPS, batch_size=BATCH, log_every=STEPS, sample_every=0, **settings)
    loss = LossConfig(task=1.0, output=0.0, feature_share=0.5)  # of any checkout, whatever its recipes are called
    whole = DistillConfig(teacher=teacher, data=data, output_dir=str(folder), loss=loss, training=config)
    with ExitStack() as stack:
        stack.enter_context(redirect_stderr(stack.enter_context(open(os.devnull, "w"))))  # the progress bar
        stack.enter_context(patch.object(loop, "learning_rate_at", rate))
        with mode, suppress(Enough):
            distill(whole)
    first, last = STEPS // 2 - 2, STEPS - 2
    return {
        f"training, {name}": tuple(after - before for before, after in zip(marks[i], marks[i + 1], strict=True))
        for name, i in (("aligned", first), ("plain", last))
    }


def denoising(teacher: str, mode: Dispatched, kernels: Counter[str], **options: Any) -> Counts:
    """A step of what sampling one more batch takes, its share of the starting noise included."""
    unet = load_teacher(teacher).unet
    student = build_student(dict(unet.config), plan_student(dict(unet.config), StudentConfig(red_placement="outer")))
    found = {}
    for name, network in (("teacher", unet), ("student", student.eval())):
        pipeline = RedDDPMPipeline(network, DDPMScheduler(), **options).set_scheduler("ddim")
        pipeline.set_progress_bar_config(disable=True)
        marks = []
        for batches in (1, 1, 2):  # the first call compiles
            before = Counter(mode.counts), Counter(kernels)
            with mode:
                pipeline(batches * BATCH, num_inference_steps=STEPS, batch_size=BATCH, output_type="pt")
            marks.append((mode.counts - before[0], kernels - before[1]))
        batch = [more - fewer for fewer, more in zip(marks[1], marks[2], strict=True)]
        found[f"denoising, {name}"] = tuple(Counter({key: n / STEPS for key, n in each.items()}) for each in batch)
    return found


def eager(architecture: str) -> dict[str, dict[str, int]]:
    with tempfile.TemporaryDirectory() as name:
        teacher, data = inputs_of(architecture, Path(name))
        mode, none = Dispatched(), Counter[str]()
        counts = training(teacher, data, Path(name) / "run", mode, none) | denoising(teacher, mode, none)
    rows = {}
    for step, (found, _) in counts.items():
        computing = sum(count for name, count in found.items() if not VIEWS.fullmatch(name))
        rows[step] = {"dispatched": round(sum(found.values())), "computing": round(computing)}
    return rows


@contextmanager
def counted_kernels() -> Iterator[Counter[str]]:
    """Within the block compiled code runs without its fused kernels, and what it calls is counted."""
    kernels: Counter[str] = Counter()
    true_compile, true_grad, true_load = torch.compile, torch.autograd.grad, graph.GraphLowering.compile_to_module

    def fused(*args: Any, **options: Any) -> Callable[..., None]:
        return lambda *args: kernels.update(fused=1)

    def load(lowering: Any) -> Any:
        module = true_load(lowering)
        code = Path(module.__file__).read_text()
        library, true_call = len(LIBRARY.findall(code[code.index("def call(") :])), module.call

        def call(args: Any) -> Any:
            kernels.update(library=library)
            return true_call(args)

        module.call = call
        return module

    def unseen(function: Callable[..., Any]) -> Callable[..., Any]:
        """What is dispatched inside is not of the outside, and torch compiles nothing while it is watched."""

        def call(*args: Any, **options: Any) -> Any:
            watched = isinstance(_get_current_dispatch_mode(), Dispatched)  # not so while torch traces
            with _disable_current_modes() if watched else nullcontext():
                return function(*args, **options)

        return call

    with ExitStack() as stack:
        for name in ("cpp_pybinding", "cpp"):
            stack.enter_context(patch.object(AsyncCompile, name, fused))
        stack.enter_context(patch.object(graph.GraphLowering, "compile_to_module", load))
        stack.enter_context(patch.object(torch, "compile", lambda *a, **options: unseen(true_compile(*a, **options))))
        stack.enter_context(patch.object(torch.autograd, "grad", unseen(true_grad)))
        stack.enter_context(inductor.patch(force_disable_caches=True))
        yield kernels


def compiled(architecture: str) -> dict[str, dict[str, int]]:
    with tempfile.TemporaryDirectory() as name, counted_kernels() as kernels:
        teacher, data = inputs_of(architecture, Path(name))
        mode = Dispatched()
        counts = training(teacher, data, Path(name) / "run", mode, kernels, compile="default")
        counts |= denoising(teacher, mode, kernels, compile=True)
    return {
        step: {
            "fused": round(found["fused"]),
            "library": round(found["library"]),
            "outside": round(sum(count for name, count in outside.items() if not VIEWS.fullmatch(name))),
        }
        for step, (outside, found) in counts.items()
    }


def elsewhere(checkout: str, architecture: str) -> dict[str, dict[str, int]]:
    """What this script counts with the package of another checkout."""
    command = [sys.executable, __file__, "--architectures", architecture, "--eager", "--json"]
    with environment_of(checkout) as environment:
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)[architecture]["eager"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", choices=("digits", *ARCHITECTURES), default=["digits", "cifar10"])
    parser.add_argument("--against", help="a checkout of another commit, whose eager steps are counted too")
    parser.add_argument("--eager", action="store_true", help="count eager steps only")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object instead")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for architecture in arguments.architectures:
        found = results[architecture] = {"eager": eager(architecture)}
        if arguments.against:
            found["against"] = elsewhere(arguments.against, architecture)
        if not arguments.eager:
            found["compiled"] = compiled(architecture)
        if not arguments.json:
            print(table(architecture, found), flush=True)
    if arguments.json:
        print(json.dumps(results))


def table(architecture: str, found: dict[str, dict[str, dict[str, int]]]) -> str:
    """Markdown; ``ratio``: fused and outside to what the eager step dispatches, of ``--against`` if it is given; in
    brackets with the library calls."""
    before = found.get("against", found["eager"])
    lines = [
        f"| {architecture} | eager: dispatched | computing | compiled: fused | library | outside | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for step, now in found["eager"].items():
        was = before[step]["dispatched"]
        own = found.get("compiled", {}).get(step, dict.fromkeys(("fused", "library", "outside"), 0))
        ratios = [(own["fused"] + own["outside"] + more) / was for more in (0, own["library"])]
        eager_figures = f"{was} | {before[step]['computing']}"
        if "against" in found:
            eager_figures = f"{was}, now {now['dispatched']} | {before[step]['computing']}, now {now['computing']}"
        figures = f"{own['fused']} | {own['library']} | {own['outside']} | {ratios[0]:.2f} ({ratios[1]:.2f})"
        lines.append(f"| {step} | {eager_figures} | {figures} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
