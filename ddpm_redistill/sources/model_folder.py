"""A folder that a model comes in, read as a stranger's: nothing in it is run or unpickled, nothing outside it is read.

What is checked here is checked before any weight is read; ``teacher.py`` loads what passes.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DDPMScheduler, UNet2DModel

from ..errors import UserError
from ..pipelines.conditioning import conditioning_of
from ..pipelines.modeling_red_unet import RedUNet2DModel
from .autoencoder import AutoencoderFolder, autoencoder_of
from .folder_files import read_part
from .image_files import one_line
from .model_config import check_values, why_no_ddpm, without_variance
from .noise_schedule import noise_schedule
from .pipeline_kind import INDEX, check_pipeline, read_index
from .weights import check_files, weights_files

log = logging.getLogger("ddpm_redistill")

BUILTIN = {"builtin:digits": Path(__file__).parent.parent / "builtin" / "digits_teacher"}
NETWORKS: dict[str, type[UNet2DModel]] = {"UNet2DModel": UNet2DModel, "RedUNet2DModel": RedUNet2DModel}
CLASSIFIERS = ("timm:", "wrn:")
"""How names of classifiers begin: for a clear line, no more."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
STUDENT_CODE = re.compile(r"modeling_red_unet_([0-9a-f]{12})")
"""The module that a student's model_index.json names, with its version."""


@dataclass(frozen=True)
class ModelFolder:
    """Where the parts of a model are, checked but not loaded.

    ``config`` and ``scheduler`` are as their JSON has them but for three things: a ``sample_size`` of two equal numbers
    is one, a ``variance_type`` of null, as samplers without a variance have it, is left out, and a network that
    predicts its variance too is told of without it (``drops_variance``).
    """

    ref: str
    unet: Path
    config: dict[str, Any]
    scheduler: dict[str, Any]
    weights: tuple[Path, ...] = ()
    """One file, or shards in the order of their names; empty where there are none."""
    code_version: str | None = None
    """Of the code that a student's folder carries, which is never run here."""
    id2label: dict[str, str] | None = None
    """Names of classes by number, and"""
    learned_guidance: float | None = None
    """the guidance scale that a student has learned: as ``model_index.json`` has them."""
    drops_variance: bool = False
    """Of the output channels in the file the second half is a learned variance, which is left out."""
    notes: tuple[str, ...] = ()
    """What a person should know of how the folder is taken, a line each."""
    autoencoder: AutoencoderFolder | None = None
    """Of a model of latents."""

    @property
    def pixels_per_latent(self) -> int:
        """A side; 1 of a network of pixels."""
        return self.autoencoder.pixels_per_latent if self.autoencoder else 1

    @property
    def network_class(self) -> str:
        return self.config["_class_name"]

    def say(self) -> None:
        for note in self.notes:
            log.info("%s", note)


def find_model(ref: str) -> ModelFolder:
    """Look at a model without loading its weights: a pipeline folder, one with all files at its root (as
    google/ddpm-cifar10-32 is laid out), or a bare ``UNet2DModel`` folder.

    Raises:
        UserError: there is no such model, it is not a DDPM's UNet2DModel, a value of its config is no network's or no
            noise schedule's, its pipeline is of another kind, or a part of it is outside its folder.
    """
    root = _locate(ref)
    index = read_index(root)
    unet = root / "unet" if (root / "unet" / "config.json").is_file() else root
    if not (unet / "config.json").is_file():
        raise UserError(f"{ref} is no diffusers model: {_what_instead(ref, root)}")
    config = read_part(root, unet / "config.json")
    _check_task(ref, root, config)
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in NETWORKS:
        architectures = config.get("architectures")
        what = name or (architectures[0] if isinstance(architectures, list) and architectures else "an unnamed model")
        raise UserError(f"{ref} holds {one_line(ValueError(what))}, not a UNet2DModel: a pretrained DDPM is needed")
    check_values(config, NETWORKS[name], unet / "config.json")
    notes = check_pipeline(ref, root, index)
    places = [root / "scheduler" / "scheduler_config.json", root / "scheduler_config.json"]
    found = next((place for place in places if place.is_file()), None)
    scheduler = read_part(root, found) if found else {}
    if scheduler.get("variance_type", "") is None:
        del scheduler["variance_type"]
    if found:
        check_values(scheduler, DDPMScheduler, found)
    size = config.get("sample_size")
    if isinstance(size, list):
        if len(size) != 2:
            raise UserError(f"{unet / 'config.json'} has sample_size {size}: one number of pixels is possible, or two")
        config = {**config, "sample_size": size[0] if size[0] == size[1] else size}
    mean = without_variance(config, scheduler, NETWORKS[name])
    if mean:
        notes += (
            f"{ref} predicts its variance too ({config['out_channels']} channels out for {config['in_channels']} in):"
            " the mean is used and the variance dropped; sampling by ddpm takes the smaller fixed one (fixed_small)",
        )
        config, scheduler = mean
    reason = why_no_ddpm(config, scheduler, NETWORKS[name])
    if reason:
        raise UserError(f"{ref} cannot be used: {reason}")
    noise_schedule(ref, scheduler)
    classes: dict[str, Any] = {key: index.get(key) for key in ("id2label", "learned_guidance")}
    _check_classes(root, config, classes)
    parts: dict[str, Any] = {"autoencoder": autoencoder_of(ref, root, index, config), "drops_variance": bool(mean)}
    weights, code = weights_files(root, unet), _code_version(index)
    return ModelFolder(ref, unet, config, scheduler, weights, code, **classes, **parts, notes=notes)


def check_weights_file(model: ModelFolder) -> None:
    """Raises UserError unless the weights of a model are safetensors, and all there."""
    check_files(model.ref, model.unet, model.weights)


def _check_task(ref: str, root: Path, config: dict[str, Any]) -> None:
    """Raises UserError for a classifier."""
    if isinstance(config.get("architecture"), str):
        raise UserError(f"{ref} is a classifier: a DDPM is needed here")


def _locate(ref: str) -> Path:
    if ref.startswith(CLASSIFIERS):
        raise UserError(f"{ref} is a classifier: a DDPM is needed here")
    if ref in BUILTIN:
        return BUILTIN[ref]
    if ref.startswith("builtin:"):
        raise UserError(f"there is no {ref}: built in is {', '.join(BUILTIN)}")
    path = Path(ref).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{ref} is a file: give the diffusers folder that holds the model")
    if not HUB_ID.fullmatch(ref):
        family = " and of no family of networks that is installed" if ":" in ref else ""
        raise UserError(f"there is no folder {ref}, and it is no hub id (owner/name){family}")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(ref, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the hub's many ways to say no: offline, missing, gated
        raise UserError(f"there is no folder {ref}, and the hub does not give it: {one_line(error)}") from error


def _what_instead(ref: str, root: Path) -> str:
    """Of a folder without a network: a run's has it one folder below, when it has come that far."""
    for name in ("student", "teacher"):
        if any((root / name / place).is_file() for place in ("unet/config.json", "config.json")):
            return f"it is the folder of a run, give {Path(ref) / name}"
    if (root / "config.yaml").is_file() and (root / "provenance.json").is_file():
        return "it is the folder of a run that has not finished, go on with --resume"
    return "there is no config.json or unet/config.json in it"


def _check_classes(root: Path, config: dict[str, Any], classes: dict[str, Any]) -> None:
    """Raises UserError when what model_index.json says of classes is not of this network."""
    try:
        conditioning_of(config.get("num_class_embeds"), **classes)
    except ValueError as error:
        raise UserError(f"{root / INDEX} is not of its network: {one_line(error)}") from error


def _code_version(index: dict[str, Any]) -> str | None:
    unet = index.get("unet")
    module = unet[0] if isinstance(unet, list) and unet else None
    found = STUDENT_CODE.fullmatch(module) if isinstance(module, str) else None
    return found[1] if found else None
