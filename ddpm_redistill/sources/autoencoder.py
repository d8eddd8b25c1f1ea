"""The autoencoder of a latent diffusion folder (``LDMPipeline``): found, checked, loaded from safetensors, frozen."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..errors import UserError
from ..pipelines.latents import AUTOENCODERS, Autoencoder, pixels_per_latent
from .folder_files import check_inside, read_part
from .image_files import one_line
from .model_config import check_values

PARTS = ("vqvae", "vae")
"""Names of the part in ``model_index.json``: LDMPipeline's, and that of diffusers' later pipelines."""
LARGEST = 2**30
"""Values of an autoencoder's weights; those of Stable Diffusion are 84 million."""


@dataclass(frozen=True)
class AutoencoderFolder:
    """Where an autoencoder is, checked but not loaded; ``config`` as its JSON has it, and its class's defaults."""

    ref: str
    folder: Path
    config: dict[str, Any]

    @property
    def weights(self) -> Path:
        return self.folder / "diffusion_pytorch_model.safetensors"

    @property
    def pixels_per_latent(self) -> int:
        return pixels_per_latent(self.config)


def check_autoencoder(ref: str, folder: Path, config: Mapping[str, Any]) -> AutoencoderFolder:
    """The autoencoder in ``folder``, of this config.

    Raises:
        UserError: it is of no kind that is known, or a value of its config is no autoencoder's.
    """
    name = config.get("_class_name")
    if name not in AUTOENCODERS:
        known = " and ".join(AUTOENCODERS)
        raise UserError(f"{ref} has an autoencoder that is a {one_line(ValueError(name))}: {known} can be used")
    kind = AUTOENCODERS[name]
    check_values(dict(config), kind, folder / "config.json")
    try:
        with torch.device("meta"):
            network = kind.from_config(dict(config))
    except Exception as error:  # a config of any kind meets diffusers' constructor
        raise UserError(f"diffusers cannot build the autoencoder of {ref}: {one_line(error)}") from error
    if sum(value.numel() for value in network.state_dict().values()) > LARGEST:
        raise UserError(f"the autoencoder of {ref} has more than {LARGEST:,} values: no autoencoder has so many")
    found = AutoencoderFolder(ref, folder, dict(network.config))
    if found.config["in_channels"] != found.config["out_channels"]:
        raise UserError(f"the autoencoder of {ref} gives back images of other channels than it takes")
    return found


def find_autoencoder(ref: str) -> AutoencoderFolder:
    """An autoencoder in a folder of its own, or that of a latent diffusion folder. Raises UserError."""
    root = Path(ref).expanduser()
    folder = next((root / part for part in PARTS if (root / part / "config.json").is_file()), root)
    if not (folder / "config.json").is_file():
        raise UserError(f"{ref} is no autoencoder's folder: there is no config.json in it")
    return check_autoencoder(ref, folder, read_part(root, folder / "config.json"))


def autoencoder_of(ref: str, root: Path, index: Mapping[str, Any], unet: Mapping[str, Any]) -> AutoencoderFolder | None:
    """Of a model of latents, by the parts that its model_index.json names; None of a model of pixels.

    Raises:
        UserError: as ``check_autoencoder``; or it makes other latents than the network of config ``unet`` takes, or is
            a link out of the folder.
    """
    part = next((name for name in PARTS if isinstance(index.get(name), list) and any(index[name])), None)
    if part is None:
        return None
    found = check_autoencoder(ref, root / part, read_part(root, root / part / "config.json"))
    check_inside(root, found.weights)
    made, taken = found.config["latent_channels"], unet.get("in_channels", 3)
    if made != taken:
        raise UserError(f"the autoencoder of {ref} makes latents of {made} channels, and the network takes {taken}")
    return found


def load_autoencoder(found: AutoencoderFolder) -> Autoencoder:
    """Frozen, in eval mode and float32.

    Raises:
        UserError: the weights are not one safetensors file, damaged, or not of this autoencoder.
    """
    if not found.weights.is_file():
        raise UserError(
            f"the autoencoder of {found.ref} has no weights: {found.weights.name} is missing in {found.folder}"
        )
    kind = AUTOENCODERS[found.config["_class_name"]]
    try:
        with safe_open(found.weights, "pt") as file:  # reads and checks the header
            file.keys()
        autoencoder, info = kind.from_pretrained(
            found.folder,
            torch_dtype=torch.float32,
            use_safetensors=True,
            disable_mmap=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # as for networks: the folder is the cause
        raise UserError(f"the autoencoder of {found.ref} cannot be loaded: {one_line(error)}") from error
    wrong = info["missing_keys"] + info["unexpected_keys"] + [str(key) for key in info["mismatched_keys"]]
    if wrong:
        raise UserError(f"the weights of the autoencoder of {found.ref} are not of its config, first {wrong[0]}")
    bad = next((name for name, value in autoencoder.state_dict().items() if not value.isfinite().all()), None)
    if bad is not None:
        raise UserError(f"the autoencoder of {found.ref} holds values that are not finite, first in {bad}")
    return autoencoder.eval().requires_grad_(False)
