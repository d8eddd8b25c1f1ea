"""Another checkout of this project as what ``import ddpm_redistill`` finds, for benchmarks with ``--against PATH``.

A script beside this file imports it by name.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def environment_of(checkout: str | None) -> Iterator[dict[str, str]]:
    """The environment in which a new Python imports the package of ``checkout``; None: the one that is installed.

    The package as it is installed has ``pipelines`` inside, which in a checkout lies beside it.
    """
    if checkout is None:
        yield dict(os.environ)
        return
    root = Path(checkout).resolve()
    if not (root / "ddpm_redistill").is_dir():
        raise SystemExit(f"{checkout} is no checkout of this project: it has no folder ddpm_redistill")
    with tempfile.TemporaryDirectory() as name:
        package = Path(name) / "ddpm_redistill"
        package.mkdir()
        for entry in (*(root / "ddpm_redistill").iterdir(), root / "pipelines"):
            if not (package / entry.name).exists():
                (package / entry.name).symlink_to(entry)
        yield {**os.environ, "PYTHONPATH": name}
