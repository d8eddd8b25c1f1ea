"""Tensor memory of a distillation step: predicted, without data, and measured on a step that is run on the CPU.

    python benchmarks/training_memory.py --architecture cifar10 --batch_size 4
    python benchmarks/training_memory.py --architecture celebahq --reduction 8 --checkpointing --sample

Measured twice on one step: by the tracker of live storages that also predicts, and by what torch's CPU allocator was
asked for, as its profiler records it, kernels' workspaces included. The recipe is natural, which runs the teacher in
every step; weights are random. ``--sample`` also samples an image in two DDIM steps. The last line is the most memory
that the process had resident.
"""

import argparse
import resource

import torch
from architectures import ARCHITECTURES
from diffusers import DDPMScheduler

from ddpm_redistill.config import DistillConfig, StudentConfig, TrainingConfig
from ddpm_redistill.core.peak import PeakTracker
from ddpm_redistill.pipelines.pipeline_red_ddpm import RedDDPMPipeline
from ddpm_redistill.recipes import resolve
from ddpm_redistill.students.derive import build_student
from ddpm_redistill.students.footprint import network_memory
from ddpm_redistill.students.plan import plan_student
from ddpm_redistill.training.step_memory import distillation_memory

MIB, GIB = 2**20, 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="cifar10")
    parser.add_argument("--reduction", type=int, choices=(2, 4, 8), default=2)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--sample", action="store_true")
    arguments = parser.parse_args()

    config, scheduler = ARCHITECTURES[arguments.architecture], DDPMScheduler()
    settings = resolve(DistillConfig(student=StudentConfig(reduction=arguments.reduction)))
    training = TrainingConfig(batch_size=arguments.batch_size, gradient_checkpointing=arguments.checkpointing)
    plan = plan_student(config, settings.student)
    print(plan)
    predicted = distillation_memory(config, scheduler, plan, settings.loss, training)
    print(f"held between steps {predicted.held / MIB:.1f} MiB")
    print(f"{'MiB':<24}{'predicted':>11}{'measured':>11}{'ratio':>8}{'allocator':>11}{'ratio':>8}", flush=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        measured = distillation_memory(config, scheduler, plan, settings.loss, training, fake=False)
    print(row("training step", predicted.peak, measured.peak, allocated_peak(profiler)), flush=True)
    del profiler
    if arguments.sample:
        student = build_student(config, plan).eval()
        pipeline = RedDDPMPipeline(student, scheduler, compile=False).set_scheduler("ddim")
        pipeline.set_progress_bar_config(disable=True)
        with PeakTracker([*student.parameters(), *student.buffers()]) as tracker:
            images = pipeline(batch_size=1, num_inference_steps=2, output_type="np").images
        print(row("sampling, activations", network_memory(student).tensor_peak, tracker.peak_bytes))
        print(f"one image of {images.shape[1:]}")
    print(f"resident at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB:.2f} GiB")


def row(name: str, predicted: int, *measured: int) -> str:
    cells = "".join(f"{peak / MIB:>11.2f}{predicted / peak:>8.4f}" for peak in measured)
    return f"{name:<24}{predicted / MIB:>11.2f}{cells}"


def allocated_peak(profiler: torch.profiler.profile) -> int:
    """Bytes: the most that was allocated and not freed since the profiler began."""
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


if __name__ == "__main__":
    main()
