"""The same short distillation on several numbers of processes, and how far each is from the one on a single process.

    python benchmarks/processes.py                              # 1, 2 and 4 processes; minutes
    python benchmarks/processes.py --processes 2 --json
    python benchmarks/processes.py -- --recipe=redistill        # settings of distill after the two dashes

Without and with accumulation, with RED BatchNorm. One more
run is started on 2 processes, killed after a checkpoint and finished on 1.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from safetensors.torch import load_file

from ddpm_redistill.files import read_metrics

ROOT = Path(__file__).parent.parent
LOSSES = {"loss", "task", "output", "red"}
STATISTICS = ("running_mean", "running_var")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--accumulation", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch_size", type=int, default=32, help="global, of an optimizer step")
    parser.add_argument("--output_dir", type=Path, help="keep the runs here; default: a temporary folder")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("settings", nargs="*", help="of distill, as --recipe=redistill, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = arguments.output_dir or Path(place)
        shutil.rmtree(folder, ignore_errors=True)
        rows = []
        for accumulation in arguments.accumulation:
            settings = run_settings(arguments, accumulation)
            single = folder / f"single-{accumulation}"
            run(launch(1, torchrun=False) + settings + [f"--output_dir={single}"])
            for count in arguments.processes:
                other = folder / f"{count}-{accumulation}"
                run(launch(count) + settings + [f"--output_dir={other}"])
                rows.append({"processes": str(count), "accumulation": accumulation, **difference(single, other)})
        other, command = folder / "killed", [*settings, f"--output_dir={folder / 'killed'}"]
        run_and_kill(launch(2) + command, other / "checkpoints" / f"step-{arguments.steps // 3:06d}")
        run([*launch(1, torchrun=False), *command, "--resume"])
        rows.append({"processes": "2, killed, 1", "accumulation": accumulation, **difference(single, other)})
    print(json.dumps(rows, indent=2) if arguments.json else table(rows))


def run_settings(arguments: argparse.Namespace, accumulation: int) -> list[str]:
    training = {
        "steps": arguments.steps,
        "batch_size": arguments.batch_size,
        "gradient_accumulation": accumulation,
        "log_every": 1,
        "sample_every": 0,
        "checkpoint_every": max(1, arguments.steps // 3),
    }
    config = ["distill", f"--config={ROOT / 'configs' / 'tiny_cpu.yaml'}", "--loss.red=1"]
    return config + [f"--training.{name}={value}" for name, value in training.items()] + arguments.settings


def launch(count: int, *, torchrun: bool = True) -> list[str]:
    module = ["-m", "ddpm_redistill"]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    return [sys.executable, *(launcher if torchrun else []), *module]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def run(command: list[str]) -> None:
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}")


def run_and_kill(command: list[str], checkpoint: Path) -> None:
    """SIGKILL for torchrun and all that it started, as soon as the checkpoint is there."""
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not checkpoint.exists():
        if process.poll() is not None:
            sys.exit(f"the run to be killed ended by itself, with {process.returncode}")
        time.sleep(0.01)
    for pid in [process.pid, *descendants(process.pid)]:
        with suppress(ProcessLookupError):  # it ended with its parent
            os.kill(pid, signal.SIGKILL)
    process.wait()
    if (checkpoint.parent.parent / "student").exists():
        sys.exit("the run to be killed had ended: give more --steps")


def descendants(pid: int) -> list[int]:
    """By Linux' /proc: torchrun's processes have process groups of their own."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    children = [child for child, parent in parents.items() if parent == pid]
    return children + [grandchild for child in children for grandchild in descendants(child)]


def difference(one: Path, other: Path) -> dict[str, float | str]:
    """Largest differences of a run from another: losses relative to their own, weights absolute, BatchNorm statistics
    relative to the largest of their tensor."""
    rows, others = (read_metrics(path / "metrics.jsonl") for path in (one, other))
    assert [row["step"] for row in rows] == [row["step"] for row in others], "not the same steps, or written twice"
    found: dict[str, float | str] = {"rows": len(others)}
    for name, keys in {"loss": LOSSES, "grad_norm": {"grad_norm"}}.items():
        pairs = [(a[key], b[key]) for a, b in zip(rows, others, strict=True) for key in keys & a.keys()]
        found[name] = max(abs(a - b) / abs(a) for a, b in pairs)
    last = f"step-{int(rows[-1]['step']):06d}"
    for name, file in {"weights": "model", "ema": "ema"}.items():
        states = [load_file(path / "checkpoints" / last / f"{file}.safetensors") for path in (one, other)]
        apart = {key: float((value - states[1][key]).abs().max()) for key, value in states[0].items()}
        weights = {key: value for key, value in apart.items() if not key.endswith(STATISTICS)}
        found[name], found[f"{name}_furthest"] = max((value, key) for key, value in weights.items())
        found[f"{name}_statistics"] = max(
            (apart[key] / float(states[0][key].abs().max()) for key in apart.keys() - weights.keys()), default=0.0
        )
    return found


def table(rows: list[dict[str, float | str]]) -> str:
    heads = [
        "processes",
        "accumulation",
        "rows",
        "loss",
        "grad_norm",
        "weights",
        "ema",
        "weights_statistics",
        "ema_statistics",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [f"{row[head]:.1e}" if isinstance(row[head], float) else str(row[head]) for head in heads]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
