"""Files that are written whole or not at all, and rows read back."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl; a torn last line is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk itself, so that a power cut does not undo them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write a file at: flushed and renamed to ``path`` at the end, deleted after an error.

    Its hidden name ends in no image's.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        flush(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_aside(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
