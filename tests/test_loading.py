"""What is loaded of a folder as people have it: learned variances, prefixes, shards, old names, sizes."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel, VQModel
from safetensors.torch import load_file, save_file
from teacher_kinds import SIZE, Kind, edit, index, latent, make_kind, old_name, prefixed, sharded
from training_helpers import UNET_WEIGHTS, refused

from ddpm_redistill import UserError, load_pipeline, load_teacher
from ddpm_redistill.cli import main
from ddpm_redistill.sources.noise_schedule import SAMPLERS, noise_schedule
from ddpm_redistill.sources.teacher import find_model
from ddpm_redistill.students.footprint import network_memory, network_of

VARIANCE = Kind("", unet={"out_channels": 6}, scheduler={"variance_type": "learned_range"})


def original(folder: Path) -> UNet2DModel:
    """As diffusers loads it."""
    return UNet2DModel.from_pretrained(folder / "unet", disable_mmap=True).eval()


def assert_same(unet: UNet2DModel, expected: UNet2DModel) -> None:
    found, state = unet.state_dict(), expected.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_of_a_learned_variance_the_mean_is_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_kind(VARIANCE, tmp_path / "teacher")
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with caplog.at_level(logging.INFO, logger="ddpm_redistill"):
        teacher = load_teacher(str(folder))
    (line,) = caplog.messages
    assert line == (
        f"{folder} predicts its variance too (6 channels out for 3 in): the mean is used and the variance dropped;"
        " sampling by ddpm takes the smaller fixed one (fixed_small)"
    )
    with torch.no_grad():
        both = original(folder)(x, 300).sample
        mean = teacher.unet(x, 300).sample
    assert both.shape == (2, 6, SIZE, SIZE)
    torch.testing.assert_close(mean, both[:, :3])
    assert teacher.unet.config.out_channels == 3
    assert teacher.scheduler.config.variance_type == "fixed_small"
    assert teacher.sha256 == hashlib.sha256((folder / UNET_WEIGHTS).read_bytes()).hexdigest()


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_plan_and_memory_are_of_the_network_without_its_variance(tmp_path: Path, variance: str) -> None:
    folder = make_kind(VARIANCE._replace(scheduler={"variance_type": variance}), tmp_path / "teacher")
    plain = make_kind(Kind(""), tmp_path / "plain")
    found, expected = (network_memory(network_of(find_model(str(place)).config)) for place in (folder, plain))
    assert found.to_dict() == expected.to_dict()


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_a_common_prefix_is_left_out(tmp_path: Path, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    plain = make_kind(Kind(""), tmp_path / "plain")
    folder = make_kind(Kind("", then=prefixed(prefix)), tmp_path / "teacher")
    with caplog.at_level(logging.INFO, logger="ddpm_redistill"):
        pipeline = load_pipeline(str(folder))
    assert caplog.messages == [f"{folder}: the names of all its tensors begin with {prefix}, which is left out"]
    assert_same(pipeline.unet, original(plain))


def test_a_prefix_of_some_names_is_none(tmp_path: Path) -> None:
    folder = make_kind(Kind("", then=prefixed("module.")), tmp_path / "teacher")
    weights = folder / UNET_WEIGHTS
    save_file({**load_file(weights), "surplus": torch.zeros(1)}, weights)
    with pytest.raises(UserError, match=r"tensors differ, first conv_in\.weight"):
        load_teacher(str(folder))


def test_names_of_before_and_a_learned_variance_with_a_prefix(tmp_path: Path) -> None:
    """All that is done to names and tensors, on one file; attention had other names before diffusers 0.15."""
    folder = make_kind(VARIANCE, tmp_path / "teacher")
    expected, weights = original(folder), folder / UNET_WEIGHTS
    state = {f"module.{old_name(name)}": tensor for name, tensor in load_file(weights).items()}
    assert sum(".query." in name for name in state) == 2
    save_file(state, weights)
    expected.conv_out.weight = torch.nn.Parameter(expected.conv_out.weight[:3])
    expected.conv_out.bias = torch.nn.Parameter(expected.conv_out.bias[:3])
    assert_same(load_teacher(str(folder)).unet, expected)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_weights_that_are_no_real_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = make_kind(Kind(""), tmp_path / "teacher")
    weights = folder / UNET_WEIGHTS
    state = load_file(weights)
    save_file({name: tensor.to(dtype) for name, tensor in state.items()}, weights)
    first = next(iter(load_file(weights)))
    what = f"{len(state)} tensors differ, first {first}, {str(dtype).removeprefix('torch.')} for floating point"
    with pytest.raises(UserError) as raised:
        load_teacher(str(folder))
    assert str(raised.value) == f"the weights of {folder} are not of its config: {what}"


# --- shards


def test_shards(tmp_path: Path) -> None:
    plain, folder = make_kind(Kind(""), tmp_path / "plain"), make_kind(Kind("", then=sharded), tmp_path / "teacher")
    teacher = load_teacher(str(folder))
    assert_same(teacher.unet, original(plain))
    shards = sorted((folder / "unet").glob("*.safetensors"))
    assert find_model(str(folder)).weights == tuple(shards)
    assert teacher.sha256 == hashlib.sha256(b"".join(path.read_bytes() for path in shards)).hexdigest()
    shards[2].write_bytes(shards[2].read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_teacher(str(folder))
    shards[2].unlink()
    with pytest.raises(UserError, match=f"in shards, {len(shards)} by its index, and {shards[2].name} is missing in"):
        load_teacher(str(folder))
    assert find_model(str(folder)).config["sample_size"] == SIZE  # for a plan no weights are needed


def test_shards_of_half_precision(tmp_path: Path) -> None:
    folder = make_kind(Kind("", then=sharded), tmp_path / "teacher")
    for path in (folder / "unet").glob("*.safetensors"):
        save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    names = folder / f"{UNET_WEIGHTS}.index.json"
    names.rename(names.with_suffix(".fp16.json"))
    unet = load_pipeline(str(folder)).unet
    assert unet.dtype == torch.float32
    half = original(make_kind(Kind(""), tmp_path / "plain")).half().float()
    assert_same(unet, half)


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = make_kind(Kind("", then=sharded), tmp_path / "teacher")
    first, second = sorted((folder / "unet").glob("*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor}, second)
    with pytest.raises(UserError, match=f"cannot be loaded: {name} is in two of its files"):
        load_teacher(str(folder))


# --- sizes


def test_a_size_as_a_list_is_one_number(tmp_path: Path) -> None:
    plain = make_kind(Kind(""), tmp_path / "plain")
    folder = make_kind(Kind("", unet={"sample_size": [SIZE, SIZE]}), tmp_path / "teacher")
    assert json.loads((folder / "unet" / "config.json").read_text())["sample_size"] == [SIZE, SIZE]
    assert load_teacher(str(folder)).unet.config.sample_size == SIZE
    configs = [{**find_model(str(place)).config, "_diffusers_version": ""} for place in (folder, plain)]
    assert configs[0] == configs[1]  # all that plan and memory see
    main(["export", str(folder), "--format", "torch_export", "--output", str(tmp_path / "teacher.pt2")])
    assert (tmp_path / "teacher.pt2").stat().st_size > 0


@pytest.mark.parametrize("size", [None, [SIZE, 2 * SIZE]])
def test_plan_and_memory_take_image_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, size: Any
) -> None:
    plain = make_kind(Kind(""), tmp_path / "plain")
    folder = make_kind(Kind("", unet={"sample_size": size}), tmp_path / "teacher")
    for verb in ("plan", "memory"):
        assert "give --image_size, " in refused(capsys, caplog, [verb, str(folder)])
    main(["memory", str(plain), "--teacher", str(folder), "--image_size", str(SIZE), "--json"])
    both = json.loads(capsys.readouterr().out)
    assert both["memory"] == both["teacher_memory"]
    main(["plan", str(folder), "--image_size", str(SIZE), "--reduction", "2", "--json"])
    planned = json.loads(capsys.readouterr().out)
    assert planned["plan"]["sample_size"] == SIZE
    assert planned["memory"]["teacher"]["tensor_peak"] == both["memory"]["tensor_peak"]


@pytest.mark.parametrize("size", [[], [SIZE], [SIZE] * 3])
def test_a_size_of_other_than_two_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, size: list[int]
) -> None:
    folder = make_kind(Kind(""), tmp_path / "teacher")
    edit(folder / "unet" / "config.json", sample_size=size)
    line = f"has sample_size {size}: one number of pixels is possible, or two"
    for argv in (["plan", str(folder)], ["sample", str(folder), "--output", str(tmp_path / "out")]):
        assert line in refused(capsys, caplog, argv)


# --- schedules


@pytest.mark.parametrize("name", sorted(SAMPLERS - {"DPMSolverSDEScheduler"}))  # which needs a package of its own
def test_the_schedule_of_any_sampler(tmp_path: Path, name: str) -> None:
    folder = make_kind(Kind("", scheduler={"beta_schedule": "scaled_linear"}), tmp_path / "teacher")
    getattr(diffusers, name)(beta_start=0.001, beta_end=0.01).save_pretrained(folder / "scheduler")
    found = noise_schedule(str(folder), find_model(str(folder)).scheduler)
    expected = DDPMScheduler(beta_start=0.001, beta_end=0.01, beta_schedule=found.config.beta_schedule)
    assert torch.equal(found.alphas_cumprod, expected.alphas_cumprod)
    assert found.config.variance_type == "fixed_small"


def test_a_variance_that_is_not_known(tmp_path: Path) -> None:
    folder = make_kind(Kind(""), tmp_path / "teacher")
    edit(folder / "scheduler" / "scheduler_config.json", variance_type="fixed")
    with pytest.raises(UserError, match="is no DDPM noise schedule: its variance_type is fixed"):
        find_model(str(folder))


def test_a_schedule_that_ddim_does_not_know_by_name(tmp_path: Path) -> None:
    folder = make_kind(Kind("", scheduler={"beta_schedule": "sigmoid"}), tmp_path / "teacher")
    pipeline = load_pipeline(str(folder))
    expected = DDPMScheduler(beta_schedule="sigmoid").alphas_cumprod
    for name in ("ddpm", "ddim", "dpm++"):
        torch.testing.assert_close(pipeline.set_scheduler(name).scheduler.alphas_cumprod, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("predicts", ["v_prediction", "sample"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_zero_terminal_snr_is_sampled_from_its_last_timestep(tmp_path: Path, predicts: str, sampler: str) -> None:
    told = {"rescale_betas_zero_snr": True, "prediction_type": predicts}
    folder = make_kind(Kind("", scheduler=told), tmp_path / "teacher")
    pipeline = load_pipeline(str(folder)).set_scheduler(sampler)
    steps = 1000 if sampler == "ddpm" else 5
    table = pipeline.step_table(steps)
    assert table.timesteps[0] == 999
    assert table.factors.isfinite().all()
    if sampler != "ddpm":
        assert pipeline(1, num_inference_steps=steps, output_type="pt").images.isfinite().all()


# --- pipelines


def test_the_unet_of_a_latent_pipeline_given_alone(tmp_path: Path) -> None:
    folder = make_kind(Kind("", then=latent(VQModel)), tmp_path / "teacher")
    assert find_model(str(folder)).autoencoder is not None
    with pytest.raises(UserError, match="it denoises latents, and the autoencoder is beside it: give"):
        find_model(str(folder / "unet"))


@pytest.mark.parametrize("value", [[None, None], ["diffusers", "VQModel"]])
def test_a_part_that_is_named_and_left_out_is_none(tmp_path: Path, value: list[str | None]) -> None:
    folder = make_kind(Kind("", then=index(_class_name=["mine", "MyPipeline"], vae=value)), tmp_path / "teacher")
    if value == [None, None]:
        assert find_model(str(folder)).notes == (
            f"{folder} is a MyPipeline, which is not known here: with no part but unet and scheduler, it is taken for a"
            " DDPM",
        )
        return
    with pytest.raises(UserError, match="it is a MyPipeline with vae, and what that does to images is not known here"):
        find_model(str(folder))
    edit(folder / "model_index.json", _class_name="DDPMPipeline")
    with pytest.raises(UserError, match="it is a DDPMPipeline with vae"):
        find_model(str(folder))
