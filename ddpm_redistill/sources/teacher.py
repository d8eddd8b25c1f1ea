"""Networks that come in: a folder, a hub id or a built-in one -> checked, loaded from safetensors, and frozen."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors import SafetensorError

from ..errors import UserError
from ..pipelines.modeling_red_unet import RedUNet2DModel
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline

BUILTIN = {"builtin:digits": Path(__file__).parent.parent / "builtin" / "digits_teacher"}
NETWORKS: dict[str, type[UNet2DModel]] = {"UNet2DModel": UNet2DModel, "RedUNet2DModel": RedUNet2DModel}
WEIGHTS = "diffusion_pytorch_model.safetensors"
VARIANTS = ("fp16", "bf16")
"""diffusers' names for a second file of the same weights, ``diffusion_pytorch_model.fp16.safetensors``."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ModelFolder:
    """Where the parts of a model are, checked but not loaded; ``config`` and ``scheduler`` as their JSON has them."""

    ref: str
    unet: Path
    config: dict[str, Any]
    scheduler: dict[str, Any]

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


@dataclass(frozen=True)
class Teacher:
    """A frozen network in eval mode, its noise schedule, where it came from and the sha256 of its weights."""

    unet: UNet2DModel
    scheduler: DDPMScheduler
    ref: str
    sha256: str


def find_model(ref: str) -> ModelFolder:
    """Look at a model without loading its weights: a pipeline folder, one with all files at its root (as
    google/ddpm-cifar10-32 is laid out), or a bare ``UNet2DModel`` folder.

    Raises:
        UserError: there is no such model, or it is not a DDPM's UNet2DModel.
    """
    root = _locate(ref)
    unet = root / "unet" if (root / "unet" / "config.json").is_file() else root
    if not (unet / "config.json").is_file():
        raise UserError(f"{ref} is no diffusers model: there is no config.json or unet/config.json in it")
    config = _read_json(unet / "config.json")
    name = config.get("_class_name")
    if name not in NETWORKS:
        what = name or next(iter(config.get("architectures") or []), None) or "an unnamed model"
        raise UserError(f"{ref} holds {what}, not a UNet2DModel: a pretrained DDPM is needed")
    places = [root / "scheduler" / "scheduler_config.json", root / "scheduler_config.json"]
    found = next((place for place in places if place.is_file()), None)
    return ModelFolder(ref, unet, config, _read_json(found) if found else {})


def load_pipeline(ref: str, *, lean: bool | str = False) -> RedDDPMPipeline:
    """A pipeline of the model, teacher or student, in float32 whatever the weights were saved in, with DDPM sampling
    over its own noise schedule.

    Args:
        lean: run the network lean, as ``RedDDPMPipeline``.

    Raises:
        UserError: as ``find_model``, or the weights are missing, pickled, damaged, or not of this network.
    """
    model = find_model(ref)
    if not model.weights.is_file():
        _refuse_weights(model)
    network = NETWORKS[model.network_class]
    try:
        # output_loading_info: diffusers would only warn about keys that are missing or left over.
        unet, info = network.from_pretrained(
            model.unet,
            variant=model.variant,
            torch_dtype=torch.float32,
            use_safetensors=True,
            disable_mmap=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise UserError(f"the weights of {ref} cannot be loaded: {str(error).splitlines()[0]}") from error
    wrong = info["missing_keys"] + info["unexpected_keys"] + [str(key) for key in info["mismatched_keys"]]
    if wrong:
        raise UserError(f"the weights of {ref} are not of its config: {len(wrong)} tensors differ, first {wrong[0]}")
    return RedDDPMPipeline(unet.eval(), _scheduler(model), lean)


def load_teacher(ref: str) -> Teacher:
    """A frozen teacher in eval mode.

    Raises:
        UserError: as ``load_pipeline``; or the model is itself a student.
    """
    model = find_model(ref)
    if model.network_class != "UNet2DModel":
        raise UserError(f"{ref} is a student already: give the teacher that it was made from")
    pipeline = load_pipeline(ref)
    pipeline.unet.requires_grad_(False)
    return Teacher(pipeline.unet, pipeline.scheduler, ref, sha256_of(model.weights))


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"there is no folder {ref}, and the hub does not give it: {reason}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content


def _refuse_weights(model: ModelFolder) -> None:
    pickled = [path.name for path in model.unet.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt")]
    if pickled:
        raise UserError(
            f"{model.ref} has only pickled weights ({pickled[0]}), which can run code and are not loaded: open it once"
            " where you trust it, unet.save_pretrained(folder, safe_serialization=True), and give that folder"
        )
    raise UserError(f"{model.ref} has no weights: {WEIGHTS} is missing in {model.unet}")


def _scheduler(model: ModelFolder) -> DDPMScheduler:
    """The DDPM noise schedule that the model was trained with; the sampler is chosen later."""
    if not model.scheduler:
        return DDPMScheduler()
    try:
        return DDPMScheduler.from_config(model.scheduler)
    except (TypeError, ValueError, RuntimeError) as error:  # diffusers' NotImplementedError is a RuntimeError
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"the scheduler of {model.ref} is no DDPM noise schedule: {reason}") from error
