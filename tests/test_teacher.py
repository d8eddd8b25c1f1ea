"""Models that come in: every layout that is accepted, and one line with the reason for each that is not."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from ddpm_redistill import RedDDPMPipeline, RedUNet2DModel, UserError, derive_student, plan_student
from ddpm_redistill.sources import teacher as teacher_module
from ddpm_redistill.sources.teacher import find_model, load_pipeline, load_teacher

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(teacher_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny teacher's pipeline folder, to be spoilt."""
    return shutil.copytree(teacher_folder, tmp_path / "model")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("Cannot find the requested files\nin the local cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)


def reason(ref: object, load: Callable[[str], object] = load_teacher) -> str:
    """Why it is refused: one line."""
    with pytest.raises(UserError) as raised:
        load(str(ref))
    assert str(raised.value).strip()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def flatten(folder: Path) -> Path:
    """All files at the root, as google/ddpm-cifar10-32 has them."""
    for path in [*(folder / "unet").iterdir(), *(folder / "scheduler").iterdir()]:
        path.rename(folder / path.name)
    (folder / "unet").rmdir()
    (folder / "scheduler").rmdir()
    return folder


def bare(folder: Path) -> Path:
    return folder / "unet"


@pytest.mark.parametrize("layout", [Path, flatten, bare])
def test_layouts(folder: Path, tiny_teacher: UNet2DModel, layout: Callable[[Path], Path]) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", beta_end=0.01)
    place = layout(folder)
    model = find_model(str(place))
    assert model.network_class == "UNet2DModel"
    assert model.config["sample_size"] == 16

    teacher = load_teacher(str(place))
    state = tiny_teacher.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in teacher.unet.state_dict().items())
    assert not any(module.training for module in teacher.unet.modules())
    assert not any(parameter.requires_grad for parameter in teacher.unet.parameters())
    assert type(teacher.scheduler) is DDPMScheduler
    assert teacher.scheduler.config.beta_end == (0.02 if layout is bare else 0.01)  # the schedule stays behind there
    assert teacher.ref == str(place)
    assert teacher.sha256 == hashlib.sha256(model.weights[0].read_bytes()).hexdigest()


def halve(folder: Path, name: str) -> Path:
    """The weights of a pipeline folder saved in float16, in a file of this name alone."""
    state = load_file(folder / "unet" / WEIGHTS)
    (folder / "unet" / WEIGHTS).unlink()
    path: Path = folder / "unet" / name
    save_file({key: value.half() for key, value in state.items()}, path, metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("layout", [Path, flatten, bare])
@pytest.mark.parametrize(
    ("name", "variant"),
    [(WEIGHTS, None), ("diffusion_pytorch_model.fp16.safetensors", "fp16")],
)
def test_half_precision_weights_load_as_float32(
    folder: Path, tiny_teacher: UNet2DModel, name: str, variant: str | None, layout: Callable[[Path], Path]
) -> None:
    digest = hashlib.sha256(halve(folder, name).read_bytes()).hexdigest()
    place = str(layout(folder))
    model = find_model(place)
    assert [path.name for path in model.weights] == [name]
    teacher = load_teacher(place)
    assert teacher.sha256 == digest
    state = tiny_teacher.state_dict()
    for key, value in teacher.unet.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[key].half().float()), key
    assert load_pipeline(place).unet.dtype == torch.float32


def test_full_precision_is_taken_where_both_are(folder: Path, tiny_teacher: UNet2DModel) -> None:
    tiny_teacher_copy = {key: torch.zeros_like(value) for key, value in tiny_teacher.state_dict().items()}
    save_file(tiny_teacher_copy, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert [path.name for path in find_model(str(folder)).weights] == [WEIGHTS]
    assert load_teacher(str(folder)).unet.conv_in.weight.any()


def test_half_precision_student(tiny_teacher: UNet2DModel, tmp_path: Path) -> None:
    student = derive_student(tiny_teacher, plan_student(dict(tiny_teacher.config)))  # BatchNorm: an integer buffer too
    RedDDPMPipeline(student.half(), DDPMScheduler()).save_pretrained(tmp_path, variant="fp16")
    assert not (tmp_path / "unet" / WEIGHTS).exists()
    assert load_pipeline(str(tmp_path)).unet.dtype == torch.float32


def test_schedule_of_another_sampler_becomes_ddpm(tiny_teacher: UNet2DModel, tmp_path: Path) -> None:
    scheduler = DDIMScheduler(beta_end=0.01, prediction_type="v_prediction")
    DDPMPipeline(tiny_teacher, scheduler).save_pretrained(tmp_path)
    found = load_pipeline(str(tmp_path)).scheduler
    assert type(found) is DDPMScheduler
    assert (found.config.beta_end, found.config.prediction_type) == (0.01, "v_prediction")


def test_pipeline_of_a_teacher_and_of_a_student(
    teacher_folder: Path, tiny_teacher: UNet2DModel, tmp_path: Path
) -> None:
    student = derive_student(tiny_teacher, plan_student(dict(tiny_teacher.config)))
    RedDDPMPipeline(student, DDPMScheduler()).save_pretrained(tmp_path)
    for place, network in ((teacher_folder, UNet2DModel), (tmp_path, RedUNet2DModel)):
        pipeline = load_pipeline(str(place))
        assert type(pipeline) is RedDDPMPipeline
        assert type(pipeline.unet) is network
        assert not pipeline.unet.training


@pytest.mark.parametrize("prefix", ["RedUNet2DModel.", ""])  # without: as students of before are
def test_a_student_is_a_teacher_too(tiny_teacher: UNet2DModel, tmp_path: Path, prefix: str) -> None:
    student = derive_student(tiny_teacher, plan_student(dict(tiny_teacher.config)))
    RedDDPMPipeline(student, DDPMScheduler(prediction_type="sample")).save_pretrained(tmp_path)
    config = tmp_path / "unet" / "config.json"
    config.write_text(config.read_text().replace("RedUNet2DModel.", prefix))
    teacher = load_teacher(str(tmp_path))
    assert type(teacher.unet) is RedUNet2DModel
    assert teacher.scheduler.config.prediction_type == "sample"
    assert not teacher.unet.training
    assert not any(parameter.requires_grad for parameter in teacher.unet.parameters())
    plan = plan_student(dict(teacher.unet.config))
    assert plan.reduction == 4
    assert derive_student(teacher.unet, plan)(torch.zeros(1, 1, 16, 16), 10).sample.shape == (1, 1, 16, 16)


def test_places_without_a_model(tmp_path: Path, folder: Path) -> None:
    assert "no folder" in reason(tmp_path / "missing")
    assert "is a file" in reason(folder / "unet" / WEIGHTS)
    assert "no config.json or unet/config.json" in reason(tmp_path)
    assert "there is no builtin:cats: built in is builtin:digits" in reason("builtin:cats")
    assert "no hub id" in reason("just-a-name")


def test_hub_offline(no_hub: None) -> None:
    found = reason("google/ddpm-cifar10-32")
    assert "no folder google/ddpm-cifar10-32" in found
    assert "Cannot find the requested files" in found


def test_hub_id_fetches_no_pickles(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    asked: dict[str, Any] = {}

    def download(repo: str, **options: Any) -> str:
        asked.update(repo=repo, **options)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_teacher("someone/model").ref == "someone/model"
    assert asked["repo"] == "someone/model"
    assert set(asked["allow_patterns"]) == {"*.json", "*.safetensors"}


def test_another_kind_of_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["ResNetForImageClassification"]}))
    assert "holds ResNetForImageClassification, not a UNet2DModel" in reason(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    assert "holds UNet2DConditionModel, not a UNet2DModel" in reason(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "holds an unnamed model" in reason(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b""])
@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_damaged_json(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    assert Path(name).name in reason(folder)


def test_pickled_weights_are_never_opened(folder: Path, tiny_teacher: UNet2DModel) -> None:
    (folder / "unet" / WEIGHTS).unlink()
    assert f"{WEIGHTS} is missing" in reason(folder)
    torch.save(tiny_teacher.state_dict(), folder / "unet" / "diffusion_pytorch_model.bin")
    found = reason(folder)
    assert "diffusion_pytorch_model.bin" in found
    assert "save the weights as diffusion_pytorch_model.safetensors" in found


@pytest.mark.parametrize("kept", [0, 4, 1000, -1])
def test_truncated_weights(folder: Path, kept: int) -> None:
    weights = folder / "unet" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:kept])
    assert "cannot be loaded" in reason(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"layers_per_block": 2},  # missing
        {"mid_block_type": None},  # left over
        {"in_channels": 3, "out_channels": 3},  # of another shape
        {"block_out_channels": [8, 8, 16, 32]},
        {"down_block_types": ["NoBlock2D"] * 4},  # no network at all
        {"block_out_channels": [8, 8, 16, 16 * 1024]},  # far more memory than the weights have
    ],
)
def test_weights_of_another_config(folder: Path, changes: dict[str, Any]) -> None:
    edit(folder / "unet" / "config.json", **changes)
    assert "weights of" in reason(folder)


def test_one_tensor_more_or_less(folder: Path) -> None:
    weights = folder / "unet" / WEIGHTS
    state = load_file(weights)
    save_file({**state, "surplus": torch.zeros(1)}, weights)
    assert "1 tensors differ, first surplus" in reason(folder)
    del state["conv_in.bias"]
    save_file(state, weights)
    assert "1 tensors differ, first conv_in.bias" in reason(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers_per_block": "two"}, "layers_per_block 'two', which must be a whole number"),
        ({"layers_per_block": 10**9}, "from 1 to 100"),
        ({"norm_num_groups": 0}, "norm_num_groups 0: whole numbers from 1"),
        ({"sample_size": [16, "16"]}, "sample_size"),
        ({"norm_eps": float("nan")}, "norm_eps nan, which must be a finite number"),
        ({"block_out_channels": [8] * 40}, "40 entries"),
        ({"quantization_config": {"quant_method": "torchao"}}, "a quantized network cannot be loaded"),
        ({"_class_name": ["code", "UNet2DModel"]}, "not a UNet2DModel"),
    ],
)
def test_values_that_no_network_has(folder: Path, changes: dict[str, Any], words: str) -> None:
    edit(folder / "unet" / "config.json", **changes)
    assert words in reason(folder, find_model)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"beta_schedule": "none of them"}, "no DDPM noise schedule"),
        ({"num_train_timesteps": "many"}, "must be a whole number"),
        ({"num_train_timesteps": 10**12}, "from 1 to 1000000"),
        ({"beta_start": -1.0}, "leave the range"),
        ({"trained_betas": []}, "no DDPM noise schedule"),
        ({"prediction_type": "flow"}, "prediction_type is flow"),
        ({"variance_type": "learned"}, "the network predicts none"),
        ({"trained_betas": [0.1, 0.2]}, "it has 2 trained_betas for num_train_timesteps 1000"),
        ({"rescale_betas_zero_snr": True}, "prediction_type epsilon tells nothing of it"),
        ({"_class_name": "EDMEulerScheduler"}, "it is of EDMEulerScheduler"),
        ({"_class_name": ["mine", "Scheduler"]}, "it is of ['mine', 'Scheduler']"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "its timesteps are continuous"),
    ],
)
def test_scheduler_that_is_none(folder: Path, changes: dict[str, Any], words: str) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", **changes)
    assert words in reason(folder)


def test_values_that_are_not_finite(folder: Path) -> None:
    weights = folder / "unet" / WEIGHTS
    state = load_file(weights)
    state["conv_out.bias"][0] = torch.nan
    save_file(state, weights)
    assert "not finite, first in conv_out.bias" in reason(folder)


def test_a_teacher_stays_as_it_was_loaded(folder: Path) -> None:
    teacher = load_teacher(str(folder))
    before = {name: value.clone() for name, value in teacher.unet.state_dict().items()}
    (folder / "unet" / WEIGHTS).write_bytes(bytes((folder / "unet" / WEIGHTS).stat().st_size))  # in place
    assert all(torch.equal(value, before[name]) for name, value in teacher.unet.state_dict().items())


def test_weights_that_change_while_they_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_load = teacher_module.load_pipeline

    def load(ref: str) -> RedDDPMPipeline:
        pipeline = true_load(ref)
        weights = folder / "unet" / WEIGHTS
        save_file({**load_file(weights), "conv_out.bias": torch.ones(1)}, weights)
        return pipeline

    monkeypatch.setattr(teacher_module, "load_pipeline", load)
    assert "changed while they were read" in reason(folder)
