"""A student folder opens where this package is not, and cannot be taken for what it is not."""

import ast
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel
from safetensors.torch import load_file
from sharing_helpers import bare_site, hub_of, make_student, package_alone, run_elsewhere, with_other_code

from ddpm_redistill import load_pipeline
from ddpm_redistill.pipelines import modeling_red_unet
from ddpm_redistill.pipelines.modeling_red_unet import CODE, CODE_NAME, RedUNet2DModel, travelling_code
from ddpm_redistill.pipelines.red_block import REDBlock
from ddpm_redistill.sources.teacher import find_model

BLOCK = "        return torch.addcmul(residual, x, gate) if torch.is_grad_enabled() else residual.addcmul_(x, gate)\n"
OTHER_BLOCK = "        return x\n"


@pytest.fixture(scope="module")
def folder(tiny_teacher: UNet2DModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed by a test."""
    return make_student(tiny_teacher, tmp_path_factory.mktemp("sharing") / "student")


def images(pipeline: DDPMPipeline) -> torch.Tensor:
    """Two by the stock pipeline, (2, H, W, C)."""
    pipeline = DDPMPipeline(pipeline.unet, DDIMScheduler.from_config(pipeline.scheduler.config))
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return torch.from_numpy(pipeline(2, generator, num_inference_steps=4, output_type="np").images)


ELSEWHERE = """
import json
from pathlib import Path
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DiffusionPipeline, UNet2DModel
from safetensors.torch import save_file

ours, other, out, package = map(Path, sys.argv[1:])
said = {}

def images(pipeline):
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return torch.from_numpy(pipeline(2, generator, num_inference_steps=4, output_type="np").images)

def refusal(call, *arguments, **options):
    try:
        return f"no error, but {call(*arguments, **options)}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"

for name in ("ddpm_redistill", "pipelines", "accelerate", "jsonargparse", "pytest"):
    said[name] = refusal(__import__, name)
said["untrusted"] = refusal(DiffusionPipeline.from_pretrained, ours)

# two versions of the code in one process, one after the other, and both still in use after that
opened = {"ours": DiffusionPipeline.from_pretrained(ours, trust_remote_code=True)}
opened["other"] = DiffusionPipeline.from_pretrained(other, trust_remote_code=True)
made = {name: images(pipeline) for name, pipeline in opened.items()}
made["by name"] = images(DiffusionPipeline.from_pretrained("me/student", trust_remote_code=True))
made["ours, last"] = images(DiffusionPipeline.from_pretrained(ours, trust_remote_code=True))
said["class"] = type(opened["ours"]).__name__

# passed on from here, it is as complete as it came
opened["ours"].save_pretrained(out / "again")
made["again"] = images(DiffusionPipeline.from_pretrained(out / "again", trust_remote_code=True))
for lean in (True, False):
    said[f"as UNet2DModel, {lean}"] = refusal(UNet2DModel.from_pretrained, ours / "unet", ignore_mismatched_sizes=True,
                                              low_cpu_mem_usage=False if lean else None)

# the package comes in: its own class, without consent to the folder's code
sys.path.append(str(package))
from ddpm_redistill import RedDDPMPipeline
pipeline = DiffusionPipeline.from_pretrained(ours)
said["module"] = type(pipeline.unet).__module__
made["package"] = images(pipeline)
said["other, untrusted"] = refusal(DiffusionPipeline.from_pretrained, other)
said["accelerate, at the end"] = refusal(__import__, "accelerate")

save_file(made, out / "images.safetensors")
print(json.dumps(said))
"""


def test_a_student_elsewhere(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = with_other_code(folder, tmp_path / "other", BLOCK, OTHER_BLOCK)
    site, package = bare_site(tmp_path / "site"), package_alone(tmp_path / "package")
    with hub_of(folder, "me/student") as hub:
        done = run_elsewhere(ELSEWHERE, site, hub, folder, other, tmp_path, package)
    assert done.returncode == 0, done.stderr
    said: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    made = load_file(tmp_path / "images.safetensors")

    for name in ("ddpm_redistill", "pipelines", "accelerate", "jsonargparse", "pytest", "accelerate, at the end"):
        assert said[name].startswith("ModuleNotFoundError"), said[name]
    assert said["class"] == "DDPMPipeline"
    assert said["module"] == "ddpm_redistill.pipelines.modeling_red_unet"
    for name in ("untrusted", "other, untrusted"):
        assert said[name].startswith("ValueError")
        assert "trust_remote_code=True" in said[name]
    for name in ("as UNet2DModel, True", "as UNet2DModel, False"):
        assert said[name] == "ValueError: RedUNet2DModel.DownBlock2D does not exist."

    expected = images(load_pipeline(str(folder)))
    monkeypatch.setattr(REDBlock, "forward", lambda block, x: x)
    expected_other = images(load_pipeline(str(folder)))
    assert (expected - expected_other).abs().max() > 0.01
    torch.testing.assert_close(made["other"], expected_other, rtol=0, atol=1e-5)
    for name in ("ours", "by name", "ours, last", "again", "package"):
        torch.testing.assert_close(made[name], expected, rtol=0, atol=1e-5, msg=name)


# --- the guard against the stock class


@pytest.mark.parametrize(
    "options",
    [{}, {"low_cpu_mem_usage": False}, {"ignore_mismatched_sizes": True, "low_cpu_mem_usage": False}],
    ids=["as it is", "whole", "whatever the shapes"],
)
def test_the_stock_class_refuses_a_student(folder: Path, options: dict[str, Any]) -> None:
    for place, subfolder in ((folder, "unet"), (folder / "unet", None)):
        with pytest.raises(ValueError, match=r"RedUNet2DModel\.DownBlock2D does not exist"):
            UNet2DModel.from_pretrained(place, subfolder=subfolder, **options)


def test_the_stock_class_refuses_a_students_config(folder: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        UNet2DModel.from_config(UNet2DModel.load_config(folder / "unet"))
    with pytest.raises(ValueError, match="does not exist"):
        UNet2DModel.from_config(load_pipeline(str(folder)).unet.config)


def test_what_the_guard_does_not_hold(folder: Path) -> None:
    """Block names given by hand are the person's word; diffusers then only warns, as it does without the guard."""
    blocks = {key: tuple(name.split(".")[-1] for name in names) for key, names in block_types(folder).items()}
    assert type(UNet2DModel.from_pretrained(folder / "unet", **blocks)) is UNet2DModel


def block_types(folder: Path) -> dict[str, list[str]]:
    config = json.loads((folder / "unet" / "config.json").read_text())
    return {key: config[key] for key in ("down_block_types", "up_block_types")}


def test_block_names_go_round(folder: Path) -> None:
    """Guarded in the config, plain in the network, and never guarded twice."""
    assert block_types(folder)["up_block_types"] == [
        f"RedUNet2DModel.{name}" for name in ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    ]
    student = load_pipeline(str(folder)).unet
    again = RedUNet2DModel.from_config(student.config)
    assert again.config.down_block_types == student.config.down_block_types
    assert [type(block).__name__ for block in again.down_blocks][:2] == ["DownBlock2D", "AttnDownBlock2D"]


# --- the code that travels


def test_the_code_is_one_file_of_torch_and_diffusers() -> None:
    """diffusers takes one file from the hub, and reads its imports by a pattern at the start of lines."""
    imported = set()
    for node in ast.walk(ast.parse(CODE)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
    assert imported >= {"torch", "diffusers"}
    assert imported - {"torch", "diffusers"} <= sys.stdlib_module_names


def test_the_code_is_its_own_source(folder: Path, tmp_path: Path) -> None:
    """So a copy that is saved elsewhere has the same name."""
    written = folder / "unet" / f"{CODE_NAME}.py"
    assert written.read_text() == CODE == travelling_code(written)


def test_other_code_has_another_name(tmp_path: Path) -> None:
    for name in ("modeling_red_unet.py", "edits.py", "cheap.py", "red_block.py", "strides.py"):
        (tmp_path / name).write_text((Path(modeling_red_unet.__file__).with_name(name)).read_text())
    assert travelling_code(tmp_path / "modeling_red_unet.py") == CODE
    with (tmp_path / "red_block.py").open("a") as file:
        file.write("# another word\n")
    assert travelling_code(tmp_path / "modeling_red_unet.py") != CODE


def test_a_variant_is_saved_as_one(folder: Path, tmp_path: Path) -> None:
    """A pipeline hands on what it finds in the signature of the network's ``save_pretrained``."""
    load_pipeline(str(folder)).save_pretrained(tmp_path, variant="fp16")
    names = {path.name for path in (tmp_path / "unet").iterdir()}
    assert names == {"config.json", f"{CODE_NAME}.py", "diffusion_pytorch_model.fp16.safetensors"}
    assert type(DDPMPipeline.from_pretrained(tmp_path, variant="fp16").unet) is RedUNet2DModel


# --- our own loader


def test_code_of_another_version_is_told_and_not_run(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = with_other_code(folder, tmp_path / "other", BLOCK, f"        raise SystemExit({str(tmp_path)!r})\n")
    with caplog.at_level(logging.WARNING, "ddpm_redistill"):
        torch.testing.assert_close(images(load_pipeline(str(other))), images(load_pipeline(str(folder))))
    told = [record.getMessage() for record in caplog.records if record.name == "ddpm_redistill"]
    assert len(told) == 1
    assert told[0].startswith(
        f"{other} carries code of version {find_model(str(other)).code_version}, which is not run"
    )


def test_other_code_under_our_name_is_not_run(folder: Path, tmp_path: Path) -> None:
    """diffusers has the class of that name from this package, whatever the file in the folder says."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "unet" / f"{CODE_NAME}.py").write_text("raise SystemExit")
    for options in ({}, {"trust_remote_code": True}):
        assert type(DDPMPipeline.from_pretrained(copy, **options).unet) is RedUNet2DModel


@pytest.mark.parametrize("unet", [None, [], ["ddpm_redistill", "X"], [3, "X"], "x", ["modeling_red_unet_\x1b[2J", "X"]])
def test_a_folder_without_code_of_ours_has_no_version(teacher_folder: Path, tmp_path: Path, unet: Any) -> None:
    config = teacher_folder / "unet" / "config.json"
    (tmp_path / "config.json").write_text(config.read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({"unet": unet}))
    assert find_model(str(tmp_path)).code_version is None


def test_the_folder_says_the_version(folder: Path) -> None:
    assert f"modeling_red_unet_{find_model(str(folder)).code_version}" == CODE_NAME
