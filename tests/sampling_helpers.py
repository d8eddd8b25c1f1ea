"""What the tests of sampling runs share: a small run, to a folder and to an .npz, and how to compare two."""

from pathlib import Path

from ddpm_redistill.cli import main

COUNT = 10
OPTIONS = ["--num_images", str(COUNT), "--batch_size", "4", "--steps", "3", "--seed", "7"]
KINDS = ["images", "images.npz"]


def sample(teacher: Path, output: Path, *more: str) -> None:
    main(["sample", str(teacher), "--output", str(output), *OPTIONS, *more])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(one: Path, other: Path) -> bool:
    """Of two folders, or two files: the same bytes."""
    if one.is_file():
        return one.read_bytes() == other.read_bytes()
    return snapshot(one) == snapshot(other)


def make_whole(teacher: Path, place: Path) -> Path:
    """images/, images.npz and their grids, each made in one go."""
    for kind in KINDS:
        sample(teacher, place / kind)
    return place
