"""The point of it all as one command: a memory limit inside which the student samples and the teacher cannot.

    python benchmarks/edge_budget.py

Both are exported to ONNX and sample by onnxruntime and numpy alone, on one thread, in a process of their own without
torch. The networks have random weights, on which memory does not depend, and the layout of google/ddpm-celebahq-256
with a quarter of its channels: at 256 px feature maps are what takes memory. (The embedded digits networks take less
than the runtime itself.)

The limit is ``ulimit -v`` (RLIMIT_AS), which needs no root and which nothing in the process can get around. It counts
the whole address space, more than is ever resident. So what stays inside has certainly not taken more memory; but what
breaks it might have reserved what it would not have used. Hence the limit is put between two measured peaks:

    student's peak address space (VmPeak)  <  limit  <  teacher's peak resident memory (VmHWM)

where the student fits by the strictest count, and the teacher does not by the most generous one. Exits with 1 when
there is no such limit, or when one of the two does not behave as it says. What it is at goes to standard error; most of
the time is in the two exports.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

MIB = 2**20
REFUSED = 3
"""Exit code of a process that was not given the memory it asked for."""
TIMESTEPS = 1000
ENVIRONMENT = {
    # one thread everywhere: others would reserve address space of their own
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    # what is freed goes back to the system; glibc would keep more and more of it to itself
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(128 * 1024),
}


STARTED = time.perf_counter()


def say(doing: str) -> None:
    """Progress, with the seconds since the start."""
    print(f"[{time.perf_counter() - STARTED:4.0f} s] {doing}", file=sys.stderr, flush=True)


def sample_here(file: str, noise: str, output: str, steps: int, limit: int) -> dict[str, Any]:
    """The process that is limited: DDIM steps of an epsilon network, ``noise`` (B, C, H, W) -> ``output``, in [-1, 1].

    Formula 12 of Song et al. 2021 (arXiv 2010.02502), eta 0, trailing timesteps; betas from 0.0001 to 0.02.
    """
    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # memory goes back when nothing reads it
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, TIMESTEPS, dtype=np.float32))  # share of the image at each timestep
    timesteps = np.round(np.arange(TIMESTEPS, 0, -TIMESTEPS / steps)).astype(np.int64) - 1
    x = np.load(noise, allow_pickle=False)
    started = time.process_time()  # on one thread: what others do on the machine does not count
    for t, following in zip(timesteps, [*timesteps[1:], -1], strict=True):
        epsilon = session.run(None, {"sample": x, "timestep": np.full(len(x), t)})[0]
        image = ((x - np.sqrt(1 - kept[t]) * epsilon) / np.sqrt(kept[t])).clip(-1, 1)
        share = kept[following] if following >= 0 else np.float32(1)
        x = np.sqrt(share) * image + np.sqrt(1 - share) * epsilon
    seconds = time.process_time() - started
    np.save(output, x)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peaks = {name: int(status[name].split()[0]) * 1024 for name in ("VmPeak", "VmHWM")}
    return {**peaks, "seconds": seconds}


def run(file: Path, noise: Path, output: Path, steps: int, limit: int = 0) -> dict[str, Any]:
    """Sample in a process of its own -> its peaks in bytes; {} when the limit refused it memory.

    Raises:
        RuntimeError: it failed in another way.
    """
    command = [sys.executable, __file__, "--child", *map(str, (file, noise, output, steps, limit))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT})
    if limit and done.returncode in (REFUSED, -6, -9, -11):  # said so itself, or was ended by a signal
        return {}
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return dict(json.loads(done.stdout))


def make_files(folder: Path, image_size: int, batch_size: int) -> dict[str, Path]:
    """Teacher and x2 student as ONNX files of a fixed batch size; they predict epsilon."""
    import torch
    from architectures import CELEBAHQ
    from diffusers import DDPMScheduler, UNet2DModel

    from ddpm_redistill import RedDDPMPipeline, plan_student
    from ddpm_redistill.export.description import describe
    from ddpm_redistill.export.onnx_export import write_onnx
    from ddpm_redistill.export.tracing import trace
    from ddpm_redistill.students.derive import build_student

    channels = [width // 4 for width in CELEBAHQ["block_out_channels"]]
    config = {**CELEBAHQ, "block_out_channels": channels, "sample_size": image_size}
    torch.manual_seed(0)
    networks = {"teacher": UNet2DModel.from_config(config), "student": build_student(config, plan_student(config))}
    files = {}
    for name, unet in networks.items():
        say(f"exporting the {name}")
        files[name] = folder / f"{name}.onnx"
        pipeline = RedDDPMPipeline(unet.eval(), DDPMScheduler(num_train_timesteps=TIMESTEPS))
        write_onnx(trace(unet, batch_size), files[name], describe(pipeline, batch_size, "random weights"))
    return files


def by_diffusers(file: Path, noise: np.ndarray, steps: int) -> np.ndarray:
    """What the package's own sampler makes of the same file and noise."""
    import torch

    from ddpm_redistill import load_onnx_pipeline

    pipeline = load_onnx_pipeline(str(file)).set_scheduler("ddim")
    pipeline.scheduler.set_timesteps(steps)
    x = torch.from_numpy(noise)
    for t in pipeline.scheduler.timesteps:
        x = pipeline.scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    return x.numpy()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_size", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=4, help="images at once: the maps must outweigh the runtime")
    parser.add_argument("--steps", type=int, default=2, help="DDIM steps; the peak is reached in each")
    parser.add_argument("--child", nargs=5, metavar=("FILE", "NOISE", "OUTPUT", "STEPS", "LIMIT"))
    arguments = parser.parse_args()
    if arguments.child:
        file, noise, output, steps, limit = arguments.child
        try:
            print(json.dumps(sample_here(file, noise, output, int(steps), int(limit))))
        except Exception as error:  # onnxruntime's own class says it in words
            said = str(error).lower()
            if not isinstance(error, MemoryError) and "alloc" not in said and "memory" not in said:
                raise
            return REFUSED
        return 0

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        say("importing torch")
        files = make_files(folder, arguments.image_size, arguments.batch_size)
        noise, output = folder / "noise.npy", folder / "images.npy"
        shape = (arguments.batch_size, 3, arguments.image_size, arguments.image_size)
        start = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        np.save(noise, start)
        free = {}
        for name, file in files.items():
            say(f"the {name} samples without a limit")
            free[name] = run(file, noise, output, arguments.steps)
        size = f"{arguments.image_size} px, batch {arguments.batch_size}"
        print(
            f"celebahq layout, a quarter of its channels, {size}, one thread, onnxruntime; peaks without a limit, MiB:"
        )
        print(f"{'':<9}{'file':>8}{'resident (VmHWM)':>18}{'address space (VmPeak)':>24}{'CPU s a step':>14}")
        for name, row in free.items():
            weights = files[name].stat().st_size / MIB
            peaks = f"{row['VmHWM'] / MIB:>18.0f}{row['VmPeak'] / MIB:>24.0f}"
            print(f"{name:<9}{weights:>8.0f}{peaks}{row['seconds'] / arguments.steps:>14.1f}")
        fits, misses = free["student"]["VmPeak"], free["teacher"]["VmHWM"]
        if fits >= misses:
            print(
                "no limit lies between the student's address space and the teacher's resident memory: more --batch_size"
            )
            return 1
        limit = (fits + misses) // 2
        print(f"limit (RLIMIT_AS, half-way between the two): {limit / MIB:.0f} MiB")
        inside = {}
        for name, file in files.items():
            say(f"the {name} inside the limit")
            inside[name] = row = run(file, noise, output, arguments.steps, limit)
            peaks = (
                f"samples inside it, at most {row['VmPeak'] / MIB:.0f} MiB" if row else "is refused memory, and ends"
            )
            print(f"{name:<9}{peaks}")
        if inside["teacher"] or not inside["student"]:
            return 1
        say("the student by diffusers' sampler")
        expected = by_diffusers(files["student"], start, arguments.steps)
        error = np.abs(np.load(output, allow_pickle=False) - expected).max()
        say(f"done, of which this process computed {time.process_time():.0f} s")
        print(f"the student's images differ from those of diffusers' sampler by at most {error:.1e}")
        return 0 if error < 1e-3 else 1


if __name__ == "__main__":
    sys.exit(main())
