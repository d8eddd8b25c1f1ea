"""Files that are written whole or not at all, and rows read back."""

import json
import os
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


def write_aside(path: Path, text: str) -> None:
    """Write a file whole or not at all: beside its place, flushed, renamed."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
