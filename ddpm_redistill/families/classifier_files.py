"""Classifiers opened, built and saved: ``timm:NAME``, ``wrn:DEPTH-WIDTH``, a network of one's own, or a folder of
``config.json`` and ``model.safetensors``, which may be in shards."""

import difflib
import hashlib
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ..errors import UserError
from ..files import write_aside, written_aside
from ..pipelines.edits import edit_from_dict
from ..pipelines.wide_resnet import WideResNet
from ..sources.image_files import one_line
from ..sources.weights import check_files, filled, weights_files
from .classifier_config import ARCHITECTURE, CONFIG, WEIGHTS, ClassifierConfig, is_folder, read_config
from .own import is_own, own_networks

BROKEN = (TypeError, ValueError, LookupError, AttributeError, RuntimeError, ArithmeticError, AssertionError)
"""What arguments of any kind make timm raise, and torch where maps meet layers of other shapes."""
WIDE = re.compile(r"wrn:(\d{1,4})-(\d{1,3})")
MIDDLE = 0.5
"""Mean and standard deviation of pixels where an architecture tells of none: values from -1 to 1."""


def refers(ref: str) -> bool:
    """Is it one of ours? Nothing is loaded."""
    return _is_name(ref) or is_folder(ref)


def _is_name(ref: str) -> bool:
    return ref.startswith(("timm:", "wrn:")) or is_own(ref)


def find_config(
    ref: str, *, image_size: int | None = None, num_classes: int | None = None, in_channels: int | None = None
) -> ClassifierConfig:
    """What ``ref`` is, without weights. Where nothing is asked for, an architecture has the classes, channels and image
    size of its published weights; a wide residual network 10, 3 and 32.

    Raises:
        UserError: an unknown name, timm is not installed, or a folder has other classes or channels than are asked for.
    """
    if not _is_name(ref):
        config = read_config(ref)
        for key, asked in (("num_classes", num_classes), ("in_channels", in_channels)):
            has = getattr(config, key)
            if asked not in (None, has):
                raise UserError(f"{ref} has {key} {has}, and {asked} are needed: give a network that was made for them")
        return config if image_size is None else replace(config, image_size=image_size)
    if ref.startswith("wrn:"):
        _check_wide(ref)
        size, classes, channels, mean, std = 32, 10, 3, [MIDDLE] * 3, [MIDDLE] * 3
    elif is_own(ref):
        networks = own_networks(ref)
        try:
            own = networks.defaults(ref.partition(":")[2])
            size, classes, channels = own["image_size"], own["num_classes"], own["in_channels"]
        except BROKEN as error:
            raise UserError(f"there is no {ref}: {one_line(error)}") from error
        mean, std = ([MIDDLE] * channels,) * 2
    else:
        of_weights = _published(ref)
        channels, size, _ = of_weights.input_size
        classes, mean, std = of_weights.num_classes, of_weights.mean, of_weights.std
    channels = in_channels or channels
    told = channels == len(mean)
    return ClassifierConfig(
        architecture=ref,
        num_classes=num_classes or classes,
        in_channels=channels,
        image_size=image_size or size,
        mean=tuple(mean) if told else (MIDDLE,) * channels,
        std=tuple(std) if told else (MIDDLE,) * channels,
    )


def build(config: ClassifierConfig, *, pretrained: bool = False) -> nn.Module:
    """The network in eval mode, a student with its edits, on the default device: inside of
    ``with torch.device("meta")`` it takes no memory. Its attribute ``config`` is the config as JSON has it.

    Args:
        pretrained: with timm's published weights; else with random ones.

    Raises:
        UserError: timm is not installed, cannot build it, or cannot get the weights; the plan does not fit it.
    """
    network: Any = _architecture(config, pretrained)
    if config.student_plan is not None:
        try:
            for edit in config.student_plan["edits"]:
                edit_from_dict(edit).apply(network)
        except BROKEN as error:
            raise UserError(f"the plan does not fit {config.architecture}: {one_line(error)}") from error
    network.config = config.to_dict()
    return network.eval()


def _architecture(config: ClassifierConfig, pretrained: bool) -> nn.Module:
    name, channels, classes = config.architecture, config.in_channels, config.num_classes
    if name.startswith("wrn:"):
        _check_wide(name)
        depth, width = map(int, name.removeprefix("wrn:").split("-"))
        return WideResNet(depth, width, classes, channels)
    if is_own(name):
        try:
            made = own_networks(name).make(name.partition(":")[2], classes, channels, **config.arguments)
        except BROKEN as error:
            raise UserError(f"{name} cannot be built: {one_line(error)}") from error
        return made
    timm = _timm(name)
    published = _published(name)
    asked = {"num_classes": classes, "in_chans": channels, **config.arguments}
    try:
        if config.image_size != published.input_size[1] and _is_of_one_size(name):
            asked["img_size"] = config.image_size
        return timm.create_model(name.removeprefix("timm:"), pretrained=pretrained, **asked)
    except BROKEN as error:
        raise UserError(f"timm cannot build {name}: {one_line(error)}") from error


@cache
def _is_of_one_size(name: str) -> bool:
    """Is a network of timm made for images of one size, as most transformers are? Then it is told."""
    with torch.device("meta"):
        return hasattr(_timm(name).create_model(name.removeprefix("timm:")), "set_input_size")


def build_on_meta(config: ClassifierConfig) -> nn.Module:
    """``build`` without memory for weights."""
    with torch.device("meta"):
        return build(config)


def load_classifier(
    ref: str, *, num_classes: int | None = None, in_channels: int | None = None
) -> tuple[nn.Module, ClassifierConfig]:
    """A network with its weights, in float32 and eval mode: a folder's, or timm's published ones by its own loader.

    Raises:
        UserError: as ``find_config`` and ``build``; the weights cannot be reached, are damaged, or of another network.
    """
    config = find_config(ref, num_classes=num_classes, in_channels=in_channels)
    if ref.startswith("wrn:") or is_own(ref):
        raise UserError(f"{ref} has no published weights: train one with teach, and give its folder")
    if not ref.startswith("timm:"):
        folder = Path(ref).expanduser()
        files = weights_files(folder, folder, WEIGHTS)
        check_files(ref, folder, files, WEIGHTS)
        return filled(ref, lambda: build(config), files), config
    _check_reachable(ref)
    try:
        return build(config, pretrained=True).float(), config
    except UserError:
        raise
    except Exception as error:  # the hub's many ways to say no
        raise UserError(f"the weights of {ref} cannot be loaded: {one_line(error)}") from error


def save_classifier(network: nn.Module, config: ClassifierConfig, folder: Path) -> None:
    """``config.json`` and ``model.safetensors``, each written whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    with written_aside(folder / WEIGHTS) as aside:
        save_file(tensors, aside)
    write_aside(folder / CONFIG, json.dumps(config.to_dict(), indent=2) + "\n")


def state_sha256(network: nn.Module) -> str:
    """Of the names and values of all its tensors, wherever they were loaded from."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_reachable(ref: str) -> None:
    """timm's loader asks for minutes when there is no network, and opens pickled files: this asks once."""
    import huggingface_hub as hub

    home = _published(ref).hf_hub_id
    if home is None:
        raise UserError(f"{ref} has no published weights that are safetensors: give a folder of {CONFIG} and {WEIGHTS}")
    if isinstance(hub.try_to_load_from_cache(home, WEIGHTS), str):
        return
    try:
        there = hub.file_exists(home, WEIGHTS)
    except Exception as error:  # offline, gated, a proxy's page
        raise UserError(
            f"the weights of {ref} are on the hub as {home}, which cannot be reached: {one_line(error)}; give a folder"
            f" of {CONFIG} and {WEIGHTS}"
        ) from error
    if not there:
        raise UserError(f"the weights of {ref} on the hub, {home}, are pickled files alone, which are not loaded")


def _published(ref: str) -> Any:
    """timm's record of an architecture. Raises UserError when there is none."""
    timm = _timm(ref)
    name = ref.removeprefix("timm:")
    if ARCHITECTURE.fullmatch(ref) and timm.is_model(name):
        try:
            found = timm.get_pretrained_cfg(name)
        except BROKEN as error:
            raise UserError(f"there is no {ref}: {one_line(error)}") from error
        if found is not None and found.input_size is not None:
            return found
    near = difflib.get_close_matches(name, timm.list_models(), 3)
    hint = f"near it are {', '.join(f'timm:{each}' for each in near)}" if near else "timm.list_models() has all names"
    raise UserError(f"timm has no network {name}: {hint}")


def _timm(ref: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f'{ref} needs the package timm; install it with pip install "ddpm-redistill[classifiers]"'
        ) from error
    return timm


def _check_wide(ref: str) -> None:
    """Raises UserError unless it names a wide residual network."""
    found = WIDE.fullmatch(ref)
    if not found or int(found[1]) < 10 or int(found[1]) % 6 != 4 or int(found[2]) < 1:
        raise UserError(f"{ref} is no wide residual network: give wrn:DEPTH-WIDTH, a depth of 6 n + 4, as wrn:16-2")
