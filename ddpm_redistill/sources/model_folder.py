"""A folder that a model comes in, read as a stranger's: nothing in it is run or unpickled, nothing outside it is read.

What is checked here is checked before any weight is read; ``teacher.py`` loads what passes.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from diffusers import DDPMScheduler, UNet2DModel

from ..errors import UserError
from ..pipelines.conditioning import conditioning_of
from ..pipelines.modeling_red_unet import RedUNet2DModel
from .autoencoder import PARTS, AutoencoderFolder, check_autoencoder, check_latents
from .image_files import one_line
from .model_config import check_values, why_no_ddpm

BUILTIN = {"builtin:digits": Path(__file__).parent.parent / "builtin" / "digits_teacher"}
NETWORKS: dict[str, type[UNet2DModel]] = {"UNet2DModel": UNet2DModel, "RedUNet2DModel": RedUNet2DModel}
WEIGHTS = "diffusion_pytorch_model.safetensors"
VARIANTS = ("fp16", "bf16")
"""diffusers' names for a second file of the same weights, ``diffusion_pytorch_model.fp16.safetensors``."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
STUDENT_CODE = re.compile(r"modeling_red_unet_([0-9a-f]{12})")
"""The module that a student's model_index.json names, with its version."""
LARGEST_JSON = 16 * 2**20
"""Bytes of a JSON file; a model's are a few thousand."""


@dataclass(frozen=True)
class ModelFolder:
    """Where the parts of a model are, checked but not loaded; ``config`` and ``scheduler`` as their JSON has them."""

    ref: str
    unet: Path
    config: dict[str, Any]
    scheduler: dict[str, Any]
    code_version: str | None = None
    """Of the code that a student's folder carries, which is never run here."""
    id2label: dict[str, str] | None = None
    """Names of classes by number, and"""
    learned_guidance: float | None = None
    """the guidance scale that a student has learned: as ``model_index.json`` has them."""
    autoencoder: AutoencoderFolder | None = None
    """Of a model of latents."""

    @property
    def pixels_per_latent(self) -> int:
        """A side; 1 of a network of pixels."""
        return self.autoencoder.pixels_per_latent if self.autoencoder else 1

    @property
    def network_class(self) -> str:
        return self.config["_class_name"]

    @property
    def variant(self) -> str | None:
        """Which file of weights there is: None is the plain one, taken where both are and named where none is."""
        if (self.unet / WEIGHTS).is_file():
            return None
        return next((name for name in VARIANTS if (self.unet / _variant_file(name)).is_file()), None)

    @property
    def weights(self) -> Path:
        return self.unet / (_variant_file(self.variant) if self.variant else WEIGHTS)


def find_model(ref: str) -> ModelFolder:
    """Look at a model without loading its weights: a pipeline folder, one with all files at its root (as
    google/ddpm-cifar10-32 is laid out), or a bare ``UNet2DModel`` folder.

    Raises:
        UserError: there is no such model, it is not a DDPM's UNet2DModel, a value of its config is no network's, or a
            part of it is outside its folder.
    """
    root = _locate(ref)
    index = _check_index(root)
    unet = root / "unet" if (root / "unet" / "config.json").is_file() else root
    if not (unet / "config.json").is_file():
        raise UserError(f"{ref} is no diffusers model: {_what_instead(ref, root)}")
    config = _read_part(root, unet / "config.json")
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in NETWORKS:
        architectures = config.get("architectures")
        what = name or (architectures[0] if isinstance(architectures, list) and architectures else "an unnamed model")
        raise UserError(f"{ref} holds {one_line(ValueError(what))}, not a UNet2DModel: a pretrained DDPM is needed")
    check_values(config, NETWORKS[name], unet / "config.json")
    reason = why_no_ddpm(config, NETWORKS[name])
    if reason:
        raise UserError(f"{ref} cannot be used: {reason}")
    places = [root / "scheduler" / "scheduler_config.json", root / "scheduler_config.json"]
    found = next((place for place in places if place.is_file()), None)
    scheduler = _read_part(root, found) if found else {}
    if found:
        check_values(scheduler, DDPMScheduler, found)
    classes = {key: index.get(key) for key in ("id2label", "learned_guidance")}
    _check_classes(root, config, classes)
    autoencoder = _autoencoder(ref, root, index, config)
    model = ModelFolder(ref, unet, config, scheduler, _code_version(index), **classes, autoencoder=autoencoder)
    if model.weights.is_file():
        _check_inside(root, model.weights)
    return model


def check_weights_file(model: ModelFolder) -> None:
    """Raises UserError unless the weights of a model are one safetensors file."""
    shards = next(iter(sorted(model.unet.glob("*.safetensors.index*.json"))), None)
    if shards is not None:
        raise UserError(
            f"{model.ref} has its weights in several files ({shards.name}), which are not read: save it again in one,"
            ' unet.save_pretrained(folder, max_shard_size="100GB"), and give that folder'
        )
    if model.weights.is_file():
        return
    pickled = sorted(path.name for path in model.unet.iterdir() if path.suffix in PICKLES)
    if pickled:
        raise UserError(
            f"{model.ref} has only pickled weights ({pickled[0]}), which can run code and are not loaded: open it once"
            " where you trust it, unet.save_pretrained(folder, safe_serialization=True), and give that folder"
        )
    raise UserError(f"{model.ref} has no weights: {WEIGHTS} is missing in {model.unet}")


def _autoencoder(ref: str, root: Path, index: dict[str, Any], unet: dict[str, Any]) -> AutoencoderFolder | None:
    """Of a model of latents, by the parts that its model_index.json names. Raises UserError."""
    part = next((name for name in PARTS if index.get(name)), None)
    if part is None:
        return None
    config = _read_part(root, root / part / "config.json")
    found = check_autoencoder(ref, root / part, config)
    check_latents(found, unet)
    _check_inside(root, found.weights)
    return found


def find_autoencoder(ref: str) -> AutoencoderFolder:
    """An autoencoder in a folder of its own, or that of a latent diffusion folder. Raises UserError."""
    root = Path(ref).expanduser()
    folder = next((root / part for part in PARTS if (root / part / "config.json").is_file()), root)
    if not (folder / "config.json").is_file():
        raise UserError(f"{ref} is no autoencoder's folder: there is no config.json in it")
    return check_autoencoder(ref, folder, _read_part(root, folder / "config.json"))


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


def _variant_file(variant: str) -> str:
    stem, suffix = WEIGHTS.rsplit(".", 1)
    return f"{stem}.{variant}.{suffix}"


def _locate(ref: str) -> Path:
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
        raise UserError(f"there is no folder {ref}, and it is no hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(ref, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the hub's many ways to say no: offline, missing, gated
        raise UserError(f"there is no folder {ref}, and the hub does not give it: {one_line(error)}") from error


def _what_instead(ref: str, root: Path) -> str:
    """Of a folder without a network: a run's has it one folder below, when it has come that far."""
    for name in ("student", "teacher"):
        if (root / name / "unet" / "config.json").is_file():
            return f"it is the folder of a run, give {Path(ref) / name}"
    if (root / "config.yaml").is_file() and (root / "provenance.json").is_file():
        return "it is the folder of a run that has not finished, go on with --resume"
    return "there is no config.json or unet/config.json in it"


def _read_part(root: Path, path: Path) -> dict[str, Any]:
    _check_inside(root, path)
    return read_json(path)


def _check_inside(root: Path, path: Path) -> None:
    """Raises UserError when a link leads out of the model's folder."""
    home = _home(root.resolve())
    if not path.resolve().is_relative_to(home):
        raise UserError(f"{path} is a link out of the model's folder, to {path.resolve()}: put the file itself there")


def _home(root: Path) -> Path:
    """What the files of a model may not leave: its folder, or its repository's in the hub's cache, whose snapshots
    are links to ``blobs/`` beside them."""
    for folder in (root, root.parent):
        if folder.parent.name == "snapshots" and (folder.parent.parent / "blobs").is_dir():
            return folder.parent.parent
    return root


def _check_index(root: Path) -> dict[str, Any]:
    """model_index.json names parts and classes for diffusers; nothing here follows it, but what climbs is no model's.

    Raises UserError when a part's name, library or class is a path out of the folder.
    """
    path = root / "model_index.json"
    if not path.is_file():
        return {}
    index = _read_part(root, path)
    for part, value in index.items():
        names = value if isinstance(value, list) else [value] if part == "_class_name" else []
        for name in (part, *names):
            if isinstance(name, str) and _climbs(name):
                raise UserError(f"{path} names {name!r}, a path out of the model's folder: it is not to be trusted")
    return index


def _check_classes(root: Path, config: dict[str, Any], classes: dict[str, Any]) -> None:
    """Raises UserError when what model_index.json says of classes is not of this network."""
    try:
        conditioning_of(config.get("num_class_embeds"), **classes)
    except ValueError as error:
        raise UserError(f"{root / 'model_index.json'} is not of its network: {one_line(error)}") from error


def _code_version(index: dict[str, Any]) -> str | None:
    unet = index.get("unet")
    module = unet[0] if isinstance(unet, list) and unet else None
    found = STUDENT_CODE.fullmatch(module) if isinstance(module, str) else None
    return found[1] if found else None


def _climbs(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return ".." in parts or name[:1] in ("/", "\\", "~") or name[1:3] in (":/", ":\\")
