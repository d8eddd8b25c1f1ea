"""The weights of a network, in one safetensors file or in shards: found, checked, loaded."""

import hashlib
import logging
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..errors import UserError
from .folder_files import check_inside, check_names, read_part
from .image_files import one_line

log = logging.getLogger("ddpm_redistill")

WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
VARIANTS = ("fp16", "bf16")
"""diffusers' names for a second set of the same weights, ``diffusion_pytorch_model.fp16.safetensors``."""
PREFIXES = ("_orig_mod.", "module.")
"""What torch.compile and DistributedDataParallel put before the name of every tensor."""
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Layers of an attention block as diffusers named them before version 0.15; google/ddpm-cifar10-32 has these."""
OLD_NAME = re.compile(rf"\.({'|'.join(RENAMED)})\.(weight|bias)$")


def weights_files(root: Path, folder: Path, file: str = WEIGHTS) -> tuple[Path, ...]:
    """The files that a network's weights are in, as diffusers chooses them: shards before one file, and the plain ones
    before a variant. Empty where there are none; a shard may be missing.

    Args:
        file: the name of the one file.

    Raises:
        UserError: the list of the shards cannot be read, or leads out of the model's folder.
    """
    for variant in (None, *VARIANTS):
        stem, suffix = file.rsplit(".", 1)
        middle = f".{variant}" if variant else ""
        index = folder / f"{file}.index{middle}.json"
        if index.is_file():
            files = _shards(root, index)
        else:
            files = tuple(path for path in [folder / f"{stem}{middle}.{suffix}"] if path.is_file())
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


def check_files(name: str, folder: Path, files: tuple[Path, ...], file: str = WEIGHTS) -> None:
    """Raises UserError unless the weights in ``folder`` are safetensors and all there; ``files`` as ``weights_files``.

    Args:
        name: of the network, as messages have it.
    """
    missing = next((path for path in files if not path.is_file()), None)
    if missing is not None:
        raise UserError(
            f"{name} has its weights in shards, {len(files)} by its index, and {missing.name} is missing in {folder}"
        )
    if files:
        return
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickled:
        raise UserError(
            f"{name} has only pickled weights ({pickled[0]}), which can run code and are not loaded: open it once where"
            f" you trust it, save the weights as {file}, and give that folder"
        )
    raise UserError(f"{name} has no weights: {file} is missing in {folder}")


def load_network(
    name: str,
    kind: Any,
    config: dict[str, Any],
    files: tuple[Path, ...],
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> Any:
    """``filled`` of a network of diffusers, of class ``kind``, by its config; its layers may have their older names."""
    return filled(
        name, lambda: kind.from_config(config), files, lambda tensors: change(_renamed(tensors)), saves_all=True
    )


def filled(
    name: str,
    make: Callable[[], nn.Module],
    files: tuple[Path, ...],
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    saves_all: bool = False,
) -> nn.Module:
    """A network with the tensors of its files: float32, in eval mode.

    Args:
        name: of the network, as messages have it.
        make: makes it, with any weights; first without memory for them, to compare it with the files.
        files: as ``weights_files`` gives them and ``check_files`` has passed them.
        change: what is done to the tensors, named as in the network, before they are compared with it.
        saves_all: every tensor that it has is in its files, so that it need not be made a second time; another network
            may have more (buffers that are not saved).

    Raises:
        UserError: the weights cannot be read, hold values that are not finite, or are not of the config. That may tell
            of a much larger network than they are: sizes are compared before memory is asked for.
    """
    try:
        with torch.device("meta"):
            network = make()
        own = network.state_dict()
        there, needed = _count_values(files), sum(value.numel() for value in own.values())
        if needed > 2 * there:
            raise UserError(
                f"the weights of {name} are not of its config: it tells of {needed:,} values, they are {there:,}"
            )
        tensors, prefix = _read_tensors(files, own)
        tensors = change(tensors)
        _check_tensors(name, own, tensors)
        if saves_all:
            network.to_empty(device="cpu")
        else:
            with torch.random.fork_rng(devices=[]):  # its random weights are of no use, and are nobody's draws
                network = make()
        network.load_state_dict(tensors)
    except UserError:
        raise
    except Exception as error:  # a config of any kind meets a file of any kind: the folder is the cause
        raise UserError(f"the weights of {name} cannot be loaded: {one_line(error)}") from error
    check_finite(name, network)
    if prefix:
        log.info("%s: the names of all its tensors begin with %s, which is left out", name, prefix)
    return network.eval()


def check_finite(name: str, network: nn.Module) -> None:
    """Raises UserError where a tensor of the network of ``name`` holds a value that is not finite."""
    bad = next((key for key, value in network.state_dict().items() if not value.isfinite().all()), None)
    if bad is not None:
        raise UserError(f"the weights of {name} hold values that are not finite, first in {bad}: the model is damaged")


def _check_tensors(name: str, own: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Raises UserError when the network, whose tensors are ``own``, has others than these, or not of these shapes, or
    whole numbers are weights."""
    wrong = [key for key in own if key not in tensors] + [key for key in tensors if key not in own]
    both = [(key, tensor, own[key]) for key, tensor in tensors.items() if key in own]
    wrong += [f"{key}, {list(a.shape)} for {list(b.shape)}" for key, a, b in both if a.shape != b.shape]
    wrong += [
        f"{key}, {str(a.dtype).removeprefix('torch.')} for floating point"
        for key, a, b in both
        if a.shape == b.shape and b.is_floating_point() and not a.is_floating_point()
    ]
    if wrong:
        raise UserError(f"the weights of {name} are not of its config: {len(wrong)} tensors differ, first {wrong[0]}")


def _count_values(files: tuple[Path, ...]) -> int:
    """By the headers; no tensor is read."""
    total = 0
    for path in files:
        with safe_open(path, "pt") as file:  # reads and checks the header
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def _read_tensors(files: tuple[Path, ...], own: Iterable[str]) -> tuple[dict[str, Tensor], str]:
    """The tensors by the names that they have in the network, and the prefix that every name had in the files.

    Args:
        own: the network's own names, which are left as they are.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name in tensors:
                    raise ValueError(f"{name} is in two of its files")
                tensors[name] = file.get_tensor(name)
    prefix = "" if tensors.keys() & own else _common_prefix(list(tensors))
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, prefix


def _renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {OLD_NAME.sub(lambda old: f".{RENAMED[old[1]]}.{old[2]}", name): value for name, value in tensors.items()}


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
