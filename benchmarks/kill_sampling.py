"""Kill a sampling run again and again, and see that the files are those of a run that was left alone.

    python benchmarks/kill_sampling.py --kills 3                # 500 images of builtin:digits: minutes
    python benchmarks/kill_sampling.py --output_name images.npz

Each kill is SIGKILL at a moment drawn from --seed, after some of the images are there. Exit code 1 if a byte differs.
"""

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin:digits")
    parser.add_argument("--num_images", type=int, default=500)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--output_name", default="images", help="a name, or one that ends in .npz")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    command = [sys.executable, "-m", "ddpm_redistill", "sample", arguments.model]
    for name in ("num_images", "batch_size", "steps"):
        command += [f"--{name}", str(getattr(arguments, name))]
    with tempfile.TemporaryDirectory() as place:
        alone, killed = Path(place, "alone", arguments.output_name), Path(place, "killed", arguments.output_name)
        started = time.perf_counter()
        subprocess.run([*command, "--output", str(alone)], check=True)
        print(f"{arguments.num_images} images left alone: {time.perf_counter() - started:.0f} s")
        for kill in range(arguments.kills):
            # so many images (or parts, of a batch each) more, and a moment of a batch's time
            files = arguments.num_images / (arguments.batch_size if killed.suffix == ".npz" else 1)
            aim = int(files * (kill + moments.random()) / arguments.kills)
            count = run_and_kill([*command, "--output", str(killed)], killed, aim, moments.random() / 2)
            print(f"killed with {count} files there")
        subprocess.run([*command, "--output", str(killed), "--resume"], check=True)
        one, other = contents(alone.parent), contents(killed.parent)
    differ = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    print(f"{len(one)} files, {len(differ)} differ {differ[:3]}")
    sys.exit(bool(differ))


def run_and_kill(command: list[str], output: Path, aim: int, wait: float) -> int:
    """Run until there are ``aim`` files, and ``wait`` seconds more -> files at the end."""
    folder = output.with_name(output.name + ".parts") if output.suffix == ".npz" else output
    process = subprocess.Popen(command + (["--resume"] if folder.exists() else []), stderr=subprocess.DEVNULL)
    while files(folder) < max(1, aim) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(wait)
    process.kill()
    if process.wait() != -signal.SIGKILL:
        sys.exit(f"the run ended by itself, with {process.returncode}: give more images, or fewer kills")
    return files(folder)


def files(folder: Path) -> int:
    return len(list(folder.glob("[0-9]*"))) if folder.exists() else 0


def contents(place: Path) -> dict[str, str]:
    paths = [path for path in place.rglob("*") if path.is_file()]
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


if __name__ == "__main__":
    main()
