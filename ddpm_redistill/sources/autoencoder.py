"""The autoencoder of a latent diffusion folder (``LDMPipeline``): found, checked, loaded from safetensors, frozen."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..pipelines.latents import AUTOENCODERS, Autoencoder, pixels_per_latent
from .folder_files import read_part
from .image_files import one_line
from .model_config import check_values
from .weights import check_files, load_network, sha256_of, weights_files

PARTS = ("vqvae", "vae")
"""Names of the part in ``model_index.json``: LDMPipeline's, and that of diffusers' later pipelines."""


@dataclass(frozen=True)
class AutoencoderFolder:
    """Where an autoencoder is, checked but not loaded; ``config`` as its JSON has it, and its class's defaults."""

    ref: str
    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    """As ``weights_files`` gives them."""

    @property
    def pixels_per_latent(self) -> int:
        return pixels_per_latent(self.config)

    def records(self) -> dict[str, Any]:
        """What its latents depend on, as provenance has it: another value makes a run another."""
        factor = self.config["scaling_factor"]
        return {"autoencoder_sha256": sha256_of(*self.weights), "autoencoder_scaling_factor": factor}


def check_autoencoder(ref: str, root: Path, folder: Path) -> AutoencoderFolder:
    """The autoencoder in ``folder``, of the model in ``root``.

    Raises:
        UserError: it is of no kind that is known, a value of its config is no autoencoder's, or a part of it is outside
            of ``root``.
    """
    config = read_part(root, folder / "config.json")
    name = config.get("_class_name")
    if name not in AUTOENCODERS:
        known = " and ".join(AUTOENCODERS)
        what = one_line(ValueError(name or "model of no class name"))
        raise UserError(f"{ref} has an autoencoder that is a {what}: {known} can be used")
    kind = AUTOENCODERS[name]
    check_values(dict(config), kind, folder / "config.json")
    try:
        with torch.device("meta"):
            network = kind.from_config(dict(config))
    except Exception as error:  # a config of any kind meets diffusers' constructor
        raise UserError(f"diffusers cannot build the autoencoder of {ref}: {one_line(error)}") from error
    found = AutoencoderFolder(ref, folder, dict(network.config), weights_files(root, folder))
    if found.config["in_channels"] != found.config["out_channels"]:
        raise UserError(f"the autoencoder of {ref} gives back images of other channels than it takes")
    if found.config["scaling_factor"] <= 0:
        raise UserError(f"the autoencoder of {ref} has scaling_factor {found.config['scaling_factor']}: it is above 0")
    return found


def find_autoencoder(ref: str) -> AutoencoderFolder:
    """An autoencoder in a folder of its own, or that of a latent diffusion folder. Raises UserError."""
    root = Path(ref).expanduser()
    folder = next((root / part for part in PARTS if (root / part / "config.json").is_file()), root)
    if not (folder / "config.json").is_file():
        raise UserError(f"{ref} is no autoencoder's folder: there is no config.json in it")
    return check_autoencoder(ref, root, folder)


def autoencoder_of(ref: str, root: Path, index: Mapping[str, Any], unet: Mapping[str, Any]) -> AutoencoderFolder | None:
    """Of a model of latents, by the parts that its model_index.json names; None of a model of pixels.

    Raises:
        UserError: as ``check_autoencoder``; or it makes other latents than the network of config ``unet`` takes.
    """
    part = next((name for name in PARTS if isinstance(index.get(name), list) and any(index[name])), None)
    if part is None:
        return None
    found = check_autoencoder(ref, root, root / part)
    made, taken = found.config["latent_channels"], unet.get("in_channels", 3)
    if made != taken:
        raise UserError(f"the autoencoder of {ref} makes latents of {made} channels, and the network takes {taken}")
    return found


def load_autoencoder(found: AutoencoderFolder) -> Autoencoder:
    """Frozen, in eval mode and float32.

    Raises:
        UserError: as ``check_files`` and ``load_network``.
    """
    name = f"the autoencoder of {found.ref}"
    check_files(name, found.folder, found.weights)
    kind = AUTOENCODERS[found.config["_class_name"]]
    autoencoder: Autoencoder = load_network(name, kind, found.config, found.weights)
    return autoencoder.requires_grad_(False)
