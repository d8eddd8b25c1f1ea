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
    """Write a file whole or not at all."""
    aside = path.with_name(f".{path.name}.writing")
    aside.write_text(text)
    os.replace(aside, path)
