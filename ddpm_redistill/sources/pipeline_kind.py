"""Which pipelines have a network that is a DDPM, by ``model_index.json``; no other is taken for one."""

from pathlib import Path
from typing import Any

from ..errors import UserError
from . import autoencoder
from .folder_files import check_names, read_part

INDEX = "model_index.json"
PIXELS = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline", "RePaintPipeline", "RedDDPMPipeline")
"""Pipelines of a ``UNet2DModel`` that denoises pixels by a DDPM noise schedule, and nothing else."""
OTHERS = {
    "LDMSuperResolutionPipeline": "takes a small image beside the latents: super-resolution is not supported",
    "LDMTextToImagePipeline": "denoises latents and is conditioned on text, which is not supported",
    "ScoreSdeVePipeline": "is of a score-SDE with exploding variance, not a DDPM",
    "KarrasVePipeline": "is of a score-SDE with exploding variance, not a DDPM",
    "ConsistencyModelPipeline": "is a consistency model, not a DDPM: give the DDPM that it was made from",
}
"""diffusers' other pipelines of a ``UNet2DModel``: what their unet is or does."""
PARTS = ("unet", "scheduler")
LATENTS = "LDMPipeline"
"""The pipeline of a ``UNet2DModel`` that denoises latents, which has an autoencoder too (``autoencoder.py``)."""
AUTOENCODERS = (*autoencoder.PARTS, "movq")


def read_index(root: Path) -> dict[str, Any]:
    """model_index.json names parts and classes for diffusers; nothing here follows it, but what climbs is no model's.

    Raises:
        UserError: a part's name, library or class is a path out of the folder.
    """
    path = root / INDEX
    if not path.is_file():
        return {}
    index = read_part(root, path)
    for part, value in index.items():
        check_names(path, [part, *(value if isinstance(value, list) else [value] if part == "_class_name" else [])])
    return index


def check_pipeline(ref: str, root: Path, index: dict[str, Any]) -> tuple[str, ...]:
    """A line for each thing that a person should know of how this folder is taken; none of a plain DDPM's.

    Args:
        index: ``read_index(root)``.

    Raises:
        UserError: its network is no DDPM, or nothing says that it is.
    """
    alone = not index and root.name == "unet" and (root.parent / INDEX).is_file()
    if alone:  # what it denoises is known by the pipeline that it is a part of
        index = read_index(root.parent)
    if not index:
        beside = next((name for name in AUTOENCODERS if (root / name).is_dir()), None)
        if beside is not None:
            raise UserError(
                f"{ref} cannot be used: it has no {INDEX}, and a {beside} beside its unet, which then denoises latents,"
                " not pixels"
            )
        return ()
    name = index.get("_class_name")
    name = name[-1] if isinstance(name, list) and name else name  # [module, class] where a folder has code of its own
    name = name if isinstance(name, str) and name else "pipeline of no class name"
    if name in OTHERS:
        raise UserError(f"{ref} cannot be used: it is of the class {name}, whose unet {OTHERS[name]}")
    if name == LATENTS and alone:
        raise UserError(
            f"{ref} cannot be used: it denoises latents, and the autoencoder is beside it: give {root.parent}"
        )
    more = [part for part, value in index.items() if part not in (*PARTS, "_class_name") and _is_part(value)]
    if name == LATENTS:
        if len(more) != 1 or more[0] not in autoencoder.PARTS:
            has = " and ".join(more) or "none"
            raise UserError(f"{ref} cannot be used: a {name} has one autoencoder, vqvae or vae, and this has {has}")
        return ()
    if more:
        raise UserError(
            f"{ref} cannot be used: it is a {name} with {' and '.join(more)}, and what that does to images is not known"
            " here: a DDPM has the parts unet and scheduler alone"
        )
    if name in PIXELS:
        return ()
    return (f"{ref} is a {name}, which is not known here: with no part but unet and scheduler, it is taken for a DDPM",)


def _is_part(value: Any) -> bool:
    """[library, class], of which both are null where a pipeline can do without the part."""
    return isinstance(value, list) and len(value) == 2 and any(value)
