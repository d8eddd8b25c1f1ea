"""The autoencoder of a model of latents is loaded as the network is: shards, prefixes, old names, half precision."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import VQModel
from safetensors.torch import load_file, save_file
from teacher_kinds import Kind, edit, latent, make_kind, old_name

from ddpm_redistill import UserError, load_pipeline, load_teacher
from ddpm_redistill.sources.teacher import find_model
from ddpm_redistill.sources.weights import WEIGHTS

VQVAE = Path("vqvae")


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    return make_kind(Kind("", then=latent(VQModel)), tmp_path / "teacher")


def autoencoder_in(latents: Path) -> VQModel:
    """As diffusers loads it."""
    return VQModel.from_pretrained(latents / VQVAE, disable_mmap=True)


def in_shards(folder: Path) -> None:
    autoencoder = autoencoder_in(folder)
    (folder / VQVAE / WEIGHTS).unlink()
    autoencoder.save_pretrained(folder / VQVAE, max_shard_size="8KB")
    assert len(list((folder / VQVAE).glob("*.safetensors"))) > 2


def renamed(folder: Path, name: Callable[[str], str]) -> None:
    weights = folder / VQVAE / WEIGHTS
    save_file({name(key): tensor for key, tensor in load_file(weights).items()}, weights)


def in_half_precision(folder: Path) -> None:
    weights = folder / VQVAE / WEIGHTS
    state = {name: tensor.half() for name, tensor in load_file(weights).items()}
    weights.unlink()
    save_file(state, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))


@pytest.mark.parametrize(
    "then",
    [
        in_shards,
        in_half_precision,
        lambda folder: renamed(folder, old_name),
        lambda folder: renamed(folder, lambda name: f"module.{name}"),
    ],
    ids=["shards", "half", "old names", "prefix"],
)
def test_an_autoencoder_as_people_have_it(
    latents: Path, then: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    expected, names = autoencoder_in(latents).state_dict(), set(load_file(latents / VQVAE / WEIGHTS))
    assert sum(".to_q." in name for name in names) == 4  # weight and bias, encoder and decoder
    then(latents)
    with caplog.at_level(logging.INFO, logger="ddpm_redistill"):
        teacher = load_teacher(str(latents))
    assert teacher.vqvae is not None
    found = teacher.vqvae.state_dict()
    assert found.keys() == expected.keys()
    half = then is in_half_precision
    assert all(torch.equal(found[name], tensor.half().float() if half else tensor) for name, tensor in expected.items())
    assert not any(parameter.requires_grad for parameter in teacher.vqvae.parameters())
    assert not teacher.vqvae.training
    files = sorted((latents / VQVAE).glob("*.safetensors"))
    sha256 = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    assert teacher.autoencoder_records == {"autoencoder_sha256": sha256, "autoencoder_scaling_factor": 0.18215}
    prefix = f"the autoencoder of {latents}: the names of all its tensors begin with module., which is left out"
    assert caplog.messages == ([prefix] if any("module." in name for name in load_file(files[0])) else [])


def test_weights_that_are_not_of_the_autoencoder(latents: Path) -> None:
    def said() -> str:
        with pytest.raises(UserError) as raised:
            load_pipeline(str(latents))
        return str(raised.value)

    weights, ref = latents / VQVAE / WEIGHTS, f"the autoencoder of {latents}"
    state = load_file(weights)
    gone = "quantize.embedding.weight"
    save_file({name: tensor for name, tensor in state.items() if name != gone}, weights)
    assert said() == f"the weights of {ref} are not of its config: 1 tensors differ, first {gone}"
    save_file({**state, gone: state[gone][:-1]}, weights)
    rows, width = state[gone].shape
    differ = f"first {gone}, [{rows - 1}, {width}] for [{rows}, {width}]"
    assert said() == f"the weights of {ref} are not of its config: 1 tensors differ, {differ}"
    edit(latents / VQVAE / "config.json", num_vq_embeddings=60_000, vq_embed_dim=60_000)
    assert "it tells of 3,600" in said()  # 13 GiB, which are not asked for
    edit(latents / VQVAE / "config.json", num_vq_embeddings=rows, vq_embed_dim=width)
    weights.write_bytes(weights.read_bytes()[:100])
    assert said().startswith(f"the weights of {ref} cannot be loaded")
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    assert said().startswith(f"{ref} has only pickled weights (diffusion_pytorch_model.bin)")
    weights.with_name("diffusion_pytorch_model.bin").unlink()
    assert said() == f"{ref} has no weights: {WEIGHTS} is missing in {latents / VQVAE}"
    assert find_model(str(latents)).pixels_per_latent == 2  # for a plan no weights are needed


def test_a_missing_shard_of_an_autoencoder(latents: Path) -> None:
    in_shards(latents)
    shards = sorted((latents / VQVAE).glob("*.safetensors"))
    shards[1].unlink()
    line = f"the autoencoder of {latents} has its weights in shards, {len(shards)} by its index, and {shards[1].name}"
    with pytest.raises(UserError, match=line):
        load_teacher(str(latents))
