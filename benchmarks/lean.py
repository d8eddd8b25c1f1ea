"""Lean against eager execution: exact tensor peak, time of a forward, and what the device really took.

    python benchmarks/lean.py                              # the CIFAR-10 architecture, teacher and x2 student
    python benchmarks/lean.py --batch_sizes 1 16 128
    python benchmarks/lean.py --process                    # on a CPU: what the process took, a process for each row

Every ratio is against eager execution of the same network in the same run; timed runs take turns, so that a slow
moment of the machine falls on all of them. On a GPU times are by CUDA's events, ``cuda peak`` is the most that torch's
allocator held above the network, and each execution has a row of its forward replayed as a CUDA graph (``+ graph``),
whose peak is what the graph keeps. ``--process`` is the most resident memory during three forwards, above what the
process held with the network loaded: the convolutions' own workspace and the allocator's habits are in it.
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from architectures import ARCHITECTURES
from diffusers import UNet2DModel

from ddpm_redistill import StudentConfig, lean_execution, plan_student
from ddpm_redistill.pipelines.lean import LEAN_SETTINGS
from ddpm_redistill.pipelines.replay import Captured
from ddpm_redistill.students.derive import build_student
from ddpm_redistill.students.footprint import network_memory

MIB = 2**20
EXECUTIONS = ("eager", *LEAN_SETTINGS)
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
GRAPH = " + graph"

Call = Callable[[], Any]


def network(architecture: str, name: str) -> UNet2DModel:
    """Random weights: neither time nor memory depends on them."""
    config = ARCHITECTURES[architecture]
    if name == "teacher":
        return UNet2DModel.from_config(config).eval()
    return build_student(config, plan_student(config, StudentConfig(red_placement="full"))).eval()


def running(unet: UNet2DModel, execution: str) -> AbstractContextManager[Any]:
    return nullcontext() if execution == "eager" else lean_execution(unet, execution)


def inputs_of(unet: UNet2DModel, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    size = unet.config.sample_size
    sample = torch.randn(batch_size, unet.config.in_channels, size, size, device=DEVICE)
    return sample, torch.tensor(10, device=DEVICE)


def calls(unet: UNet2DModel, batch_size: int) -> tuple[dict[str, Call], dict[str, int]]:
    """One forward of each row, by its name; and on a GPU the most bytes that its first forwards held."""
    sample, timestep = inputs_of(unet, batch_size)

    def forward(execution: str) -> Any:
        with running(unet, execution):
            return (unet(sample, timestep).sample,)

    made: dict[str, Call] = {}
    peaks: dict[str, int] = {}
    for execution in EXECUTIONS:
        made[execution] = lambda execution=execution: forward(execution)
        if not ON_GPU:
            continue
        peaks[execution] = cuda_peak(made[execution])
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved()
        captured = Captured(lambda sample, execution=execution: forward(execution), (sample,))
        peaks[execution + GRAPH] = torch.cuda.memory_reserved() - before
        made[execution + GRAPH] = lambda captured=captured: captured(sample)
    return made, peaks


def cuda_peak(call: Call) -> int:
    call()  # libraries set themselves up
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - held


def seconds_of(call: Call) -> float:
    if not ON_GPU:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1000


def seconds(made: dict[str, Call], repeats: int) -> dict[str, float]:
    """Median time of a forward of each row, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(repeats + 1):
        for name, call in made.items():
            times[name].append(seconds_of(call))
    return {name: statistics.median(values[1:]) for name, values in times.items()}  # the first warms up


def status_bytes(field: str) -> int:
    """A field of /proc/self/status: VmRSS, or VmHWM, the most there has been."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(line.split()[1]) * 1024


def measure_process(architecture: str, name: str, execution: str, batch_size: int) -> int:
    """Bytes above the loaded network; run in a process of its own."""
    unet = network(architecture, name)
    sample, timestep = inputs_of(unet, batch_size)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what loading has freed must not be there to be used again
    loaded = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
    with running(unet, execution):
        for _ in range(3):
            unet(sample, timestep)
    return status_bytes("VmHWM") - loaded


def process_of(architecture: str, name: str, execution: str, batch_size: int) -> int:
    row = ["--architecture", architecture, "--measure", name, execution, str(batch_size)]
    done = subprocess.run([sys.executable, __file__, *row], check=True, capture_output=True, text=True)
    return int(done.stdout)


def rows(arguments: argparse.Namespace) -> Any:
    for name in ("teacher", "student"):
        unet = network(arguments.architecture, name).to(DEVICE)
        # of one image, which takes seconds; that of a batch is as many times that, but for the timestep's 8 bytes
        settings = {execution: None if execution == "eager" else execution for execution in EXECUTIONS}
        tensor_peaks = {execution: network_memory(unet, lean=lean).tensor_peak for execution, lean in settings.items()}
        for batch_size in arguments.batch_sizes:
            made, cuda_peaks = calls(unet, batch_size)
            times = seconds(made, arguments.repeats)
            for row in made:
                execution = row.removesuffix(GRAPH)
                peak = tensor_peaks[execution] * batch_size
                found = {"network": name, "batch_size": batch_size, "execution": row, "tensor_peak": peak}
                found |= {"less": tensor_peaks["eager"] / tensor_peaks[execution]}
                found |= {"ms": times[row] * 1e3, "time": times[row] / times["eager"]}
                if ON_GPU:
                    found["cuda_peak"] = cuda_peaks[row]
                elif arguments.process:
                    found["process"] = process_of(arguments.architecture, name, execution, batch_size)
                yield found
            made.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="cifar10")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--process", action="store_true", help="on a CPU: resident memory, by a process for each row")
    parser.add_argument("--json", action="store_true", help="print one JSON object a row instead")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    if arguments.measure:
        name, execution, batch_size = arguments.measure
        print(measure_process(arguments.architecture, name, execution, int(batch_size)))
        return
    if arguments.process and ON_GPU:
        parser.error("--process is for a CPU: a GPU's own peak is in the table")
    last = "cuda peak" if ON_GPU else "process" if arguments.process else ""
    if not arguments.json:
        threads = f"{torch.get_num_threads()} threads"
        print(f"{arguments.architecture}, float32, {DEVICE}, {threads}, torch {torch.__version__}")
        print(
            f"{'network':<9}{'batch':>6} {'execution':<17}{'tensor peak':>12}{'less':>8}{'ms':>10}{'time':>8}{last:>11}"
        )
    for row in rows(arguments):
        if arguments.json:
            print(json.dumps(row), flush=True)
            continue
        extra = row.get("cuda_peak", row.get("process"))
        held = "" if extra is None else f"{extra / MIB:>11.1f}"
        print(
            f"{row['network']:<9}{row['batch_size']:>6} {row['execution']:<17}{row['tensor_peak'] / MIB:>12.3f}"
            f"{row['less']:>7.2f}x{row['ms']:>10.1f}{row['time']:>7.2f}x{held}",
            flush=True,
        )


if __name__ == "__main__":
    main()
