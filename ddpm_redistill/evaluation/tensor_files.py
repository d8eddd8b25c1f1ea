"""Tensors in files, read without any pickle that could run code, and hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError
from ..sources.image_files import one_line


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A state dict from ``.safetensors`` or torch's own format, on the CPU. Nothing but tensors is read: any
    other content makes the reader fail (``weights_only=True``).

    Raises: :class:`UserError` when the file is missing or is not a dictionary of tensors.
    """
    if not path.is_file():
        raise UserError(f"weights file {str(path)!r} does not exist")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a reader of unknown bytes fails in many ways: all mean "not a weights file"
        raise UserError(f"weights file {str(path)!r} cannot be read as tensors: {one_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"weights file {str(path)!r} holds no dictionary of tensors")
    return dict(state)


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Of names, dtypes, shapes and values, by name; the same wherever the tensors are."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
