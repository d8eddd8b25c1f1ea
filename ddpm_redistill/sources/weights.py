"""The weights of a network, in one file or in shards: which files, their sizes, and their tensors by today's names."""

import hashlib
import math
import re
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from ..errors import UserError
from .folder_files import check_inside, check_names, read_part

WEIGHTS = "diffusion_pytorch_model.safetensors"
VARIANTS = ("fp16", "bf16")
"""diffusers' names for a second set of the same weights, ``diffusion_pytorch_model.fp16.safetensors``."""
PREFIXES = ("_orig_mod.", "module.")
"""What torch.compile and DistributedDataParallel put before the name of every tensor."""
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Layers of an attention block as diffusers named them before version 0.15; google/ddpm-cifar10-32 has these."""
OLD_NAME = re.compile(rf"\.({'|'.join(RENAMED)})\.(weight|bias)$")


def weights_files(root: Path, unet: Path) -> tuple[Path, ...]:
    """The files that a network's weights are in, as diffusers chooses them: shards before one file, and the plain ones
    before a variant. Empty where there are none; a shard may be missing.

    Raises:
        UserError: the list of the shards cannot be read, or leads out of the model's folder.
    """
    for variant in (None, *VARIANTS):
        stem, suffix = WEIGHTS.rsplit(".", 1)
        middle = f".{variant}" if variant else ""
        index = unet / f"{WEIGHTS}.index{middle}.json"
        if index.is_file():
            files = _shards(root, index)
        else:
            files = tuple(path for path in [unet / f"{stem}{middle}.{suffix}"] if path.is_file())
        for path in files:
            check_inside(root, path)
        if files:
            return files
    return ()


def _shards(root: Path, index: Path) -> tuple[Path, ...]:
    """In the order of their names."""
    told = read_part(root, index).get("weight_map")
    names = sorted(set(told.values()), key=str) if isinstance(told, dict) and _texts(told.values()) else []
    check_names(index, names)
    wrong = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if not names or wrong:
        what = f"{wrong[0]!r}, which is no .safetensors file beside it" if wrong else "no file of weights"
        raise UserError(f"{index} names {what}")
    return tuple(index.parent / name for name in names)


def _texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def count_values(files: tuple[Path, ...]) -> int:
    """By the headers; no tensor is read."""
    total = 0
    for path in files:
        with safe_open(path, "pt") as file:  # reads and checks the header
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def read_tensors(files: tuple[Path, ...]) -> tuple[dict[str, Tensor], str]:
    """The tensors by the names that they have in the network, and the prefix that every name had in the files."""
    tensors: dict[str, Tensor] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name in tensors:
                    raise ValueError(f"{name} is in two of its files")
                tensors[name] = file.get_tensor(name)
    prefix = _common_prefix(list(tensors))
    return {
        OLD_NAME.sub(lambda found: f".{RENAMED[found[1]]}.{found[2]}", name.removeprefix(prefix)): tensor
        for name, tensor in tensors.items()
    }, prefix


def _common_prefix(names: list[str]) -> str:
    prefix = ""
    while True:
        more = next((p for p in PREFIXES if names and all(name.startswith(prefix + p) for name in names)), None)
        if more is None:
            return prefix
        prefix += more


def sha256_of(*paths: Path) -> str:
    """Of a file's bytes; of several, as the shards of a network, of their bytes one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
