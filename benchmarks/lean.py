"""Lean against eager execution: exact tensor peak, time of a forward, and what the process really took.

    python benchmarks/lean.py                              # the CIFAR-10 architecture, teacher and x2 student
    python benchmarks/lean.py --batch_sizes 1 16 128       # on a GPU: adds CUDA's own peak

Every ratio is against eager execution of the same network in the same run; timed runs take turns, so that a slow
moment of the machine falls on all of them. The process is measured in a subprocess for each row: the most resident
memory during three forwards, above what it held with the network loaded. That figure holds the convolutions' own
workspace and the allocator's habits: it is this machine's, and no test asserts it.
"""

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from architectures import ARCHITECTURES
from diffusers import UNet2DModel

from ddpm_redistill import StudentConfig, lean_execution, plan_student
from ddpm_redistill.pipelines.lean import LEAN_SETTINGS
from ddpm_redistill.students.derive import build_student
from ddpm_redistill.students.footprint import unet_memory

MIB = 2**20
EXECUTIONS = ("eager", *LEAN_SETTINGS)


def network(architecture: str, name: str) -> UNet2DModel:
    """Random weights: neither time nor memory depends on them."""
    config = ARCHITECTURES[architecture]
    if name == "teacher":
        return UNet2DModel.from_config(config).eval()
    return build_student(config, plan_student(config, StudentConfig(red_placement="full"))).eval()


def running(unet: UNet2DModel, execution: str) -> AbstractContextManager[Any]:
    return nullcontext() if execution == "eager" else lean_execution(unet, execution)


def sample_of(unet: UNet2DModel, batch_size: int, device: str) -> torch.Tensor:
    size = unet.config.sample_size
    return torch.randn(batch_size, unet.config.in_channels, size, size, device=device)


def seconds(unet: UNet2DModel, batch_size: int, repeats: int, device: str) -> dict[str, float]:
    """Median time of a forward of each execution, taking turns."""
    sample = sample_of(unet, batch_size, device)
    times: dict[str, list[float]] = {execution: [] for execution in EXECUTIONS}
    for _ in range(repeats + 1):
        for execution in EXECUTIONS:
            with running(unet, execution):
                if device == "cuda":
                    torch.cuda.synchronize()
                started = time.perf_counter()
                unet(sample, 10)
                if device == "cuda":
                    torch.cuda.synchronize()
                times[execution].append(time.perf_counter() - started)
    return {execution: statistics.median(values[1:]) for execution, values in times.items()}  # the first warms up


def status_bytes(field: str) -> int:
    """A field of /proc/self/status: VmRSS, or VmHWM, the most there has been."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(line.split()[1]) * 1024


def measure_process(architecture: str, name: str, execution: str, batch_size: int, device: str) -> dict[str, int]:
    """Run in a subprocess of its own."""
    imported = status_bytes("VmRSS")
    unet = network(architecture, name).to(device)
    sample = sample_of(unet, batch_size, device)
    if device == "cuda":
        with running(unet, execution):
            unet(sample, 10)
            loaded = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            unet(sample, 10)
        return {"above_loaded": torch.cuda.max_memory_allocated() - loaded, "above_import": 0}
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what loading has freed must not be there to be used again
    loaded = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
    with running(unet, execution):
        for _ in range(3):
            unet(sample, 10)
    peak = status_bytes("VmHWM")
    return {"above_loaded": peak - loaded, "above_import": peak - imported}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="cifar10")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--measure", nargs=3, metavar=("NETWORK", "EXECUTION", "BATCH"), help="one row's process")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_grad_enabled(False)
    if arguments.measure:
        name, execution, batch_size = arguments.measure
        print(json.dumps(measure_process(arguments.architecture, name, execution, int(batch_size), device)))
        return
    print(f"{arguments.architecture}, float32, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    columns = f"{'tensor peak':>12}{'ratio':>8}{'ms':>9}{'ratio':>8}{'process':>11}{'over import':>13}"
    print(f"{'network':<9}{'batch':>6} {'execution':<10}{columns}   (MiB; ratios against eager)")
    for name in ("teacher", "student"):
        unet = network(arguments.architecture, name).to(device)
        for batch_size in arguments.batch_sizes:
            times = seconds(unet, batch_size, arguments.repeats, device)
            eager = unet_memory(unet, batch_size=batch_size).tensor_peak
            for execution in EXECUTIONS:
                lean = None if execution == "eager" else execution
                peak = unet_memory(unet, batch_size=batch_size, lean=lean).tensor_peak
                row = ["--architecture", arguments.architecture, "--measure", name, execution, str(batch_size)]
                done = subprocess.run([sys.executable, __file__, *row], check=True, capture_output=True, text=True)
                process = json.loads(done.stdout)
                print(
                    f"{name:<9}{batch_size:>6} {execution:<10}{peak / MIB:>12.3f}{eager / peak:>7.2f}x"
                    f"{times[execution] * 1e3:>9.1f}{times[execution] / times['eager']:>7.2f}x"
                    f"{process['above_loaded'] / MIB:>11.1f}{process['above_import'] / MIB:>13.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
