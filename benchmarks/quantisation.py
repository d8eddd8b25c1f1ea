"""A student in float32, bfloat16, with int8 weights, and in int8: size, memory, speed and distance to the data.

    python benchmarks/quantisation.py runs/digits_x2/student

float32 is run by torch and by onnxruntime, bfloat16 by torch alone (onnxruntime has no such convolutions on a CPU), the
int8 files by onnxruntime. Each row samples in a process of its own, on one thread, from the same noise. Memory is the
most resident memory of that process above what it held with its libraries imported: weights, activations, and the
runtime's own buffers. Speed is images for a second of CPU time, which other work on the machine changes little.
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from ddpm_redistill import export_model, load_onnx_pipeline, load_pipeline, open_images, sample_images
from ddpm_redistill.evaluation.extractors import choose_extractor
from ddpm_redistill.evaluation.metrics import extract_features, frechet_and_kid
from ddpm_redistill.units import MIB

ROWS = {  # what is run, by what
    "fp32, torch": "torch",
    "bf16, torch": "torch",
    "fp32": "onnxruntime",
    "int8 weights": "onnxruntime",
    "int8": "onnxruntime",
}
REFERENCE = "fp32"
"""What sizes and distances are compared with: the same runtime and the same kind of file."""


def make_files(student: str, data: str, calibration_images: int, folder: Path) -> dict[str, Path]:
    """What each row is run from, written into ``folder``."""
    files = {name: folder / f"{i}.onnx" for i, name in enumerate(ROWS)}
    export_model(student, files["fp32"], format="onnx")
    export_model(student, files["int8 weights"], format="onnx", quantise="int8_weights")
    options = {"data": data, "calibration_images": calibration_images}
    export_model(student, files["int8"], format="onnx", quantise="int8", **options)
    for name, dtype in (("fp32, torch", torch.float32), ("bf16, torch", torch.bfloat16)):
        files[name] = folder / name
        load_pipeline(student).to(dtype).save_pretrained(files[name])
    return files


def size_of(path: Path) -> int:
    """Bytes of the weights: of a pipeline folder's safetensors, or of the one file that holds all."""
    return sum(each.stat().st_size for each in path.rglob("*.safetensors")) if path.is_dir() else path.stat().st_size


def status_bytes(field: str) -> int:
    """A field of /proc/self/status: VmRSS, or VmHWM, the most there has been."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(line.split()[1]) * 1024


def sample_here(name: str, path: str, num_images: int, steps: int, batch_size: int, output: str) -> dict[str, float]:
    """Run in a process of its own; the images go to ``output``."""
    torch.set_num_threads(1)
    if ROWS[name] == "onnxruntime":
        import onnxruntime  # noqa: F401  # counted as a library
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    imported = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
    if ROWS[name] == "onnxruntime":
        pipeline = load_onnx_pipeline(path)
    else:
        pipeline = load_pipeline(path).to(torch.bfloat16 if name.startswith("bf16") else torch.float32)
    started = time.process_time()
    options = {"num_images": num_images, "num_inference_steps": steps, "batch_size": batch_size}
    images = sample_images(pipeline.set_scheduler("ddim"), label=name, **options).images
    seconds = time.process_time() - started
    peak = status_bytes("VmHWM")
    np.save(output, images.numpy())
    return {"peak": peak - imported, "images_per_second": num_images / seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", help="a model")
    parser.add_argument("--data", default="builtin:digits", help="for calibration and for the distance")
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=25, help="DDIM steps")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--calibration_images", type=int, default=256)
    parser.add_argument("--measure", nargs=3, metavar=("ROW", "PATH", "OUTPUT"), help="one row's process")
    arguments = parser.parse_args()
    counts = (arguments.num_images, arguments.steps, arguments.batch_size)
    if arguments.measure:
        name, path, output = arguments.measure
        print(json.dumps(sample_here(name, path, *counts, output)))
        return 0

    config = load_pipeline(arguments.student).unet.config
    data = open_images(arguments.data, image_size=config.sample_size, channels=config.in_channels)
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: arguments.num_images]
    extractor = choose_extractor()
    real = extract_features(torch.stack([data[int(i)] for i in chosen]), extractor)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(arguments.student, arguments.data, arguments.calibration_images, Path(folder))
        for name, path in files.items():
            output = Path(folder) / "images.npy"
            command = [sys.executable, __file__, *sys.argv[1:], "--measure", name, str(path), str(output)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            images = torch.from_numpy(np.load(output, allow_pickle=False))
            distance = frechet_and_kid(extract_features(images, extractor), real)[extractor.fid_name]
            rows[name] = {**json.loads(done.stdout), "size": size_of(path), "distance": distance}

    reference = rows[REFERENCE]
    print(f"{arguments.student}: {counts[0]} images, {counts[1]} DDIM steps, batch {counts[2]}, one thread")
    columns = (
        f"{'runtime':<13}{'MiB':>7}{'ratio':>7}{'peak MiB':>10}{'images/s':>10}{extractor.fid_name:>24}{'ratio':>7}"
    )
    print(f"{'':<14}{columns}")
    for name, row in rows.items():
        size, distance = row["size"] / reference["size"], row["distance"] / reference["distance"]
        figures = f"{row['size'] / MIB:>7.2f}{size:>6.2f}x{row['peak'] / MIB:>10.1f}{row['images_per_second']:>10.1f}"
        print(f"{name:<14}{ROWS[name]:<13}{figures}{row['distance']:>24.1f}{distance:>6.2f}x")
    weights = rows["int8 weights"]
    met = weights["size"] <= 0.3 * reference["size"] and weights["distance"] <= 1.1 * reference["distance"]
    print(f"int8 weights, at most 0.3x of the size and 1.1x of the distance: {'yes' if met else 'NO'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
