"""The licence of a teacher, from its own card: carried over, never invented."""

import re
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from ..sources.model_folder import BUILTIN, HUB_ID, find_model
from ..sources.teacher import sha256_of

KEYS = ("license", "license_name", "license_link")
HEAD = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
LARGEST_CARD = 2**20
"""Bytes of a README.md that is read."""


def is_hub_id(teacher: str) -> bool:
    """Does this name a model on the hub, and no folder here?"""
    return teacher not in BUILTIN and HUB_ID.fullmatch(teacher) is not None and not Path(teacher).expanduser().exists()


def teacher_folder(teacher: str | None, sha256: str | None) -> Path | None:
    """Where the teacher is on this machine, a folder or in the hub's cache; None unless its weights are those recorded.

    A name alone says little: a relative path looks like a hub id, and both may hold another model by now.
    """
    if teacher is None or sha256 is None:
        return None
    folder = BUILTIN.get(teacher, Path(teacher).expanduser())
    try:
        if is_hub_id(teacher):
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(teacher, local_files_only=True))
        return folder if folder.is_dir() and sha256_of(*find_model(str(folder)).weights) == sha256 else None
    except (UserError, OSError, ValueError):  # not in the cache, or no model any more
        return None


def licence_of(teacher: str, folder: Path) -> dict[str, Any]:
    """``license`` and what belongs to it, as the metadata of the teacher's README.md has them; empty if unknown.

    Args:
        folder: the teacher's own (``teacher_folder``). Of one on the hub, whose cache holds no card as a rule, the card
            is fetched if the hub can be reached.
    """
    card = _card(folder / "README.md")
    if card is None and is_hub_id(teacher):
        from huggingface_hub import hf_hub_download

        try:
            card = _card(Path(hf_hub_download(teacher, "README.md")))
        except Exception:  # offline, missing, gated: the licence is then unknown
            return {}
    found = HEAD.match(card) if card else None
    try:
        metadata = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    # "unknown" is what our own cards say where nobody knew: a student's teacher may be a student
    if not isinstance(metadata, dict) or not _is_text(metadata.get("license")) or metadata["license"] == "unknown":
        return {}
    return {key: metadata[key] for key in KEYS if _is_text(metadata.get(key))}


def _card(path: Path) -> str | None:
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_CARD:
            return None
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _is_text(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(text, str) and text.strip() for text in texts)
