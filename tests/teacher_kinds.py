"""Kinds of teachers that people have, as folders of tiny random networks of 8 px; and what they are tried with."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    ScoreSdeVeScheduler,
    UNet2DModel,
    VQModel,
)
from safetensors.torch import load_file, save_file
from training_helpers import UNET_WEIGHTS

SIZE = 8
UNET = {
    "sample_size": SIZE,
    "block_out_channels": [4, 8],
    "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "attention_head_dim": None,
}
AUTOENCODER = {
    "block_out_channels": [4, 4],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 2,
    "latent_channels": 3,
}


class Kind(NamedTuple):
    """One kind of teacher: ``unet`` and ``scheduler`` are what differs, ``then`` what is done to the folder.

    ``words``: of the line that is said. ``refused``: the verbs that end with it; the others work.
    """

    what: str
    unet: Mapping[str, Any] = MappingProxyType({})
    scheduler: Mapping[str, Any] = MappingProxyType({})
    then: Callable[[Path], object] = str
    words: str = ""
    refused: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


VERBS = ("plan", "distill", "sample", "evaluate")
EVERY = VERBS
LOADING = VERBS[1:]
LEARNED = {"variance_type": "learned_range"}


OLD_NAMES = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


def old_name(name: str) -> str:
    """Of a tensor of an attention block, as diffusers named it before version 0.15."""
    for new, before in OLD_NAMES.items():
        name = name.replace(new, before)
    return name


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def index(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: edit(folder / "model_index.json", **changes)


def bare(folder: Path) -> None:
    """The network alone, without a pipeline or a scheduler."""
    (folder / "model_index.json").unlink()
    for path in (folder / "unet").iterdir():
        path.rename(folder / path.name)
    for path in [*(folder / "scheduler").iterdir(), folder / "scheduler", folder / "unet"]:
        path.rmdir() if path.is_dir() else path.unlink()


def latent(autoencoder: type, **more: Any) -> Callable[[Path], object]:
    def then(folder: Path) -> None:
        autoencoder(**AUTOENCODER, **more).save_pretrained(folder / "vqvae")
        edit(folder / "model_index.json", _class_name="LDMPipeline", vqvae=["diffusers", autoencoder.__name__])

    return then


def without_index(folder: Path) -> None:
    latent(VQModel)(folder)
    (folder / "model_index.json").unlink()


def schedule_of(scheduler: Any, name: str | None = None) -> Callable[[Path], object]:
    def then(folder: Path) -> None:
        scheduler.save_pretrained(folder / "scheduler")
        if name:
            edit(folder / "model_index.json", _class_name=name)

    return then


def prefixed(prefix: str) -> Callable[[Path], object]:
    def then(folder: Path) -> None:
        weights = folder / UNET_WEIGHTS
        save_file({prefix + name: tensor for name, tensor in load_file(weights).items()}, weights)

    return then


def sharded(folder: Path) -> None:
    unet = UNet2DModel.from_pretrained(folder / "unet")
    (folder / UNET_WEIGHTS).unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="8KB")
    assert len(list((folder / "unet").glob("*.safetensors"))) > 2


def shard_missing(folder: Path) -> None:
    sharded(folder)
    sorted((folder / "unet").glob("*.safetensors"))[1].unlink()


def shard_climbing(folder: Path) -> None:
    sharded(folder)
    edit(folder / f"{UNET_WEIGHTS}.index.json", weight_map={"conv_in.weight": "../../x.safetensors"})


def half(folder: Path) -> None:
    weights = folder / UNET_WEIGHTS
    state = load_file(weights)
    weights.unlink()
    save_file(
        {name: tensor.half() for name, tensor in state.items()},
        weights.with_name("diffusion_pytorch_model.fp16.safetensors"),
    )


CUSTOM = "is a MyPipeline, which is not known here: with no part but unet and scheduler, it is taken for a DDPM"
TRAINED = [0.001 * (k + 1) for k in range(20)]
NOT_SQUARE = "this network's sample_size is [8, 16], a rectangle"
NO_SIZE = "this network's config has no sample_size: give --image_size"
KINDS = [
    Kind("a DDPM of pixels (`DDPMPipeline`)"),
    Kind("the same, one channel", unet={"in_channels": 1, "out_channels": 1}),
    Kind("the same as `DDIMPipeline`", then=schedule_of(DDIMScheduler(), "DDIMPipeline")),
    Kind("all its files at the root, no `model_index.json`", then=bare),
    Kind('half-precision weights (`variant="fp16"`)', then=half),
    Kind("classes, each embedding a class", unet={"num_class_embeds": 2}),
    Kind("classes with a null class", unet={"num_class_embeds": 3}, then=index(id2label={"0": "a", "1": "b"})),
    Kind("predicts v", scheduler={"prediction_type": "v_prediction"}),
    Kind("predicts the sample", scheduler={"prediction_type": "sample"}),
    Kind("cosine schedule (`squaredcos_cap_v2`)", scheduler={"beta_schedule": "squaredcos_cap_v2"}),
    Kind("`sigmoid` schedule, which DDIM does not know by name", scheduler={"beta_schedule": "sigmoid"}),
    Kind("`trained_betas`", scheduler={"trained_betas": TRAINED, "num_train_timesteps": 20}),
    Kind(
        "`trained_betas` of another length",
        scheduler={"trained_betas": TRAINED},
        words="it has 20 trained_betas for num_train_timesteps 1000",
        refused=EVERY,
    ),
    Kind("the schedule of a `DPMSolverMultistepScheduler`", then=schedule_of(DPMSolverMultistepScheduler())),
    Kind(
        "zero terminal SNR, predicts v",
        scheduler={"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ),
    Kind("zero terminal SNR, the sample", scheduler={"rescale_betas_zero_snr": True, "prediction_type": "sample"}),
    Kind(
        "zero terminal SNR, epsilon",
        scheduler={"rescale_betas_zero_snr": True},
        words="prediction_type epsilon tells nothing of it",
        refused=EVERY,
    ),
    Kind(
        "learned variance (`learned_range`), twice the channels out",
        unet={"out_channels": 6},
        scheduler=LEARNED,
        words="predicts its variance too (6 channels out for 3 in): the mean is used and the variance dropped",
    ),
    Kind(
        "twice the channels out, no learned variance",
        unet={"out_channels": 6},
        words="3 channels in, 6 out, as with a learned variance, and its scheduler's variance_type is fixed_small",
        refused=EVERY,
    ),
    Kind(
        "learned variance, but no channels for it",
        scheduler=LEARNED,
        words="its scheduler's variance_type is learned_range, and the network predicts none",
        refused=EVERY,
    ),
    Kind("other channels in than out", unet={"in_channels": 4}, words="4 channels in, 3 out", refused=EVERY),
    Kind("`sample_size` as a list, `[8, 8]`", unet={"sample_size": [SIZE, SIZE]}),
    Kind(
        "rectangles, `sample_size` of `[8, 16]`",
        unet={"sample_size": [SIZE, 2 * SIZE]},
        words=NOT_SQUARE,
        refused=("plan", "distill", "evaluate"),
    ),
    Kind(
        "the same, with `--image_size 8`",
        unet={"sample_size": [SIZE, 2 * SIZE]},
        options=("--image_size", str(SIZE)),
        words="makes images of 8 x 16 pixels: squares alone are measured",
        refused=("evaluate",),
    ),
    Kind("`sample_size` of null", unet={"sample_size": None}, words=NO_SIZE, refused=EVERY),
    Kind(
        "the same, with `--image_size 8`, which plan, memory and distill take",
        unet={"sample_size": None},
        options=("--image_size", str(SIZE)),
        words="makes no images: its config has no sample_size",
        refused=("sample", "evaluate"),
    ),
    Kind("weights of a compiled network (`_orig_mod.`)", then=prefixed("_orig_mod."), words="begin with _orig_mod., "),
    Kind("weights of a DDP-wrapped network (`module.`)", then=prefixed("module."), words="begin with module., "),
    Kind("both", then=prefixed("module._orig_mod."), words="begin with module._orig_mod., "),
    Kind("sharded safetensors", then=sharded),
    Kind("a shard is missing", then=shard_missing, words="is missing in", refused=LOADING),
    Kind(
        "shards outside of the folder", then=shard_climbing, words="names '../../x.safetensors', a path", refused=EVERY
    ),
    Kind(
        "a pipeline of one's own, `MyPipeline`, of `unet` and `scheduler`",
        then=index(_class_name="MyPipeline"),
        words=CUSTOM,
    ),
    Kind(
        "one with another part",
        then=index(_class_name="MyPipeline", upscaler=["mine", "Upscaler"]),
        words="it is a MyPipeline with upscaler, and",
        refused=EVERY,
    ),
    Kind(
        "latents (`LDMPipeline`) of a `VQModel`",
        then=latent(VQModel),
    ),
    Kind(
        "latents (`LDMPipeline`) of an `AutoencoderKL`",
        then=latent(AutoencoderKL),
    ),
    Kind("latents, no `model_index.json`", then=without_index, words="a vqvae beside its unet", refused=EVERY),
    Kind(
        "a score-SDE (`ScoreSdeVePipeline`)",
        then=schedule_of(ScoreSdeVeScheduler(), "ScoreSdeVePipeline"),
        words="of the class ScoreSdeVePipeline",
        refused=EVERY,
    ),
    Kind(
        "its scheduler in a `DDPMPipeline`",
        then=schedule_of(ScoreSdeVeScheduler()),
        words="no DDPM noise schedule: it is of ScoreSdeVeScheduler",
        refused=EVERY,
    ),
    Kind(
        "a Fourier time embedding",
        unet={"time_embedding_type": "fourier"},
        words="a score-SDE network, not a DDPM",
        refused=EVERY,
    ),
    Kind(
        "a consistency model (`ConsistencyModelPipeline`)",
        then=index(_class_name="ConsistencyModelPipeline"),
        words="of the class ConsistencyModelPipeline",
        refused=EVERY,
    ),
]


def make_kind(kind: Kind, folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(**{**UNET, "in_channels": 3, "out_channels": 3, **kind.unet})
        DDPMPipeline(unet, DDPMScheduler(**kind.scheduler)).save_pretrained(folder)
        kind.then(folder)
    return folder


def make_data(path: Path, channels: int) -> Path:
    images = np.random.default_rng(0).integers(1, 255, (12, SIZE, SIZE, channels), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(12) % 2)
    return path
