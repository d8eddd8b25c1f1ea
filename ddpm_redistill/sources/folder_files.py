"""Files of a folder that is read as a stranger's: a JSON file of a sane size, and nothing outside of the folder."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import UserError
from .image_files import one_line

LARGEST_JSON = 16 * 2**20
"""Bytes of a JSON file; a model's are a few thousand."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a sane size. Raises UserError naming the file."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"it has more than {LARGEST_JSON // 2**20} MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content


def read_part(root: Path, path: Path) -> dict[str, Any]:
    """``read_json`` of a file of the model in ``root``. Raises UserError as that and ``check_inside``."""
    check_inside(root, path)
    return read_json(path)


def check_inside(root: Path, path: Path) -> None:
    """Raises UserError when a link leads out of the model's folder."""
    home = _home(root.resolve())
    if not path.resolve().is_relative_to(home):
        raise UserError(f"{path} is a link out of the model's folder, to {path.resolve()}: put the file itself there")


def check_names(path: Path, names: list[Any]) -> None:
    """Raises UserError when one of the ``names`` that the file at ``path`` has is a path out of the model's folder."""
    for name in names:
        if isinstance(name, str) and _climbs(name):
            raise UserError(f"{path} names {name!r}, a path out of the model's folder: it is not to be trusted")


def _home(root: Path) -> Path:
    """What the files of a model may not leave: its folder, or its repository's in the hub's cache, whose snapshots
    are links to ``blobs/`` beside them."""
    for folder in (root, root.parent):
        if folder.parent.name == "snapshots" and (folder.parent.parent / "blobs").is_dir():
            return folder.parent.parent
    return root


def _climbs(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return ".." in parts or name[:1] in ("/", "\\", "~") or name[1:3] in (":/", ":\\")
