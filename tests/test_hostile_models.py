"""What a stranger hands over runs nothing and touches nothing outside of its folder."""

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile_helpers import Payload, Spoil, assert_refused, pickled_weights, snapshot
from image_helpers import message
from PIL import Image
from report_helpers import Page, full_report
from student_helpers import old_plan
from teacher_kinds import edit
from training_helpers import UNET_WEIGHTS, make_images, make_tiny_teacher

from ddpm_redistill import (
    RedDDPMPipeline,
    StudentPlan,
    UserError,
    derive_student,
    load_pipeline,
    load_teacher,
    plan_student,
)
from ddpm_redistill.cli import main
from ddpm_redistill.evaluation.extractors import choose_extractor
from ddpm_redistill.evaluation.pages.compare_page import write_comparison
from ddpm_redistill.evaluation.report import write_report
from ddpm_redistill.sources import npz_files


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_teacher(tmp_path_factory.mktemp("plain") / "teacher")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "owned"


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return shutil.copytree(plain, tmp_path / "in" / "model")


def test_the_payload_would_work(marker: Path) -> None:
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()


def pickle_named_safetensors(folder: Path, marker: Path) -> None:
    (folder / UNET_WEIGHTS).write_bytes(pickle.dumps(Payload(marker)))


def quantizer_that_would_be_imported(folder: Path, marker: Path) -> None:
    edit(folder / "unet" / "config.json", quantization_config={"quant_method": "torchao", "quant_type": "int4wo"})


def unknown_class_of_its_own_code(folder: Path, marker: Path) -> None:
    own_code(folder, marker)
    edit(folder / "unet" / "config.json", _class_name="EvilModel")


def own_code(folder: Path, marker: Path) -> None:
    """As a student folder that opens without this package has it, but for what the code does."""
    code = f"import os\nos.mkdir({str(marker)!r})\nfrom diffusers import UNet2DModel as RedUNet2DModel\n"
    for name in ("unet/modeling_red_unet.py", "pipeline.py", "unet/__init__.py", "__init__.py"):
        (folder / name).write_text(code)
    auto_map = {"AutoModel": "modeling_red_unet.RedUNet2DModel"}
    edit(folder / "unet" / "config.json", auto_map=auto_map)
    edit(folder / "model_index.json", _class_name=["pipeline", "Evil"], unet=["modeling_red_unet", "RedUNet2DModel"])


REFUSED: list[tuple[Spoil, str]] = [
    (pickled_weights, "has only pickled weights (diffusion_pytorch_model.bin)"),
    (pickle_named_safetensors, "cannot be loaded"),
    (quantizer_that_would_be_imported, "a quantized network cannot be loaded"),
    (unknown_class_of_its_own_code, "holds EvilModel, not a UNet2DModel"),
]


@pytest.mark.parametrize(("spoil", "words"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_hostile_folder(spoil, words, folder, marker, tmp_path, capsys) -> None:
    spoil(folder, marker)
    assert_refused(folder, words, tmp_path, capsys)


def test_code_of_its_own_is_not_run(folder, marker, tmp_path) -> None:
    """The network's class is this package's, whatever the folder says; so the folder can be used."""
    own_code(folder, marker)
    before = snapshot(tmp_path)
    assert type(load_teacher(str(folder)).unet).__module__.startswith("diffusers.")
    assert snapshot(tmp_path) == before


def test_a_students_code_is_the_packages(plain, marker, tmp_path) -> None:
    teacher = load_teacher(str(plain))
    student = derive_student(teacher.unet, plan_student(dict(teacher.unet.config)))
    folder = tmp_path / "student"
    RedDDPMPipeline(student, teacher.scheduler).save_pretrained(folder)
    own_code(folder, marker)
    assert type(load_pipeline(str(folder)).unet).__module__ == "ddpm_redistill.pipelines.modeling_red_unet"
    assert not marker.exists()


SPOILT_PLANS: list[tuple[dict[str, Any], str]] = [
    ({"widen": [1, 1, 1, 2]}, "widened: give the teacher that it was made from"),
    ({"widen": "ab"}, "not a student plan: widen has 2 factors for 4 levels"),
    ({"reduction": 2**40}, "not a student plan: "),
    ({"teacher_strides": [0, 2, 2, 2]}, "not a student plan"),
    ({"teacher_strides": [4, 2, 1, 1]}, "not a student plan: "),
    ({"sample_size": None}, "not a student plan: sample_size is"),
    ({"blocks": None}, "not a student plan"),
    ({"blocks": [{"name": "conv_in.red_out"}]}, "not a student plan"),
]


@pytest.mark.parametrize(("spoil", "words"), SPOILT_PLANS, ids=str)
def test_a_students_plan_that_is_none(spoil, words, plain, tmp_path, capsys) -> None:
    """As a teacher: nothing is built from what it says but networks on no memory."""
    teacher = load_teacher(str(plain))
    folder = tmp_path / "in" / "student"
    student = derive_student(teacher.unet, plan_student(dict(teacher.unet.config)))
    RedDDPMPipeline(student, teacher.scheduler).save_pretrained(folder)
    config = json.loads((folder / "unet" / "config.json").read_text())
    edit(
        folder / "unet" / "config.json",
        student_plan={**old_plan(StudentPlan.from_dict(config["student_plan"])), **spoil},
    )
    before = snapshot(tmp_path)
    for argv in (["plan", str(folder)], ["distill", "--teacher", str(folder), "--output_dir", str(tmp_path / "run")]):
        with pytest.raises(SystemExit) as ended:
            main(argv)
        assert ended.value.code == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert words in line or argv[0] == "distill"  # whose weights are read first
    assert snapshot(tmp_path) == before


def test_diffusers_asks_for_consent_too(folder, marker) -> None:
    """What a folder's own code needs of ``from_pretrained``, which is diffusers': the person's word."""
    own_code(folder, marker)
    with pytest.raises(ValueError, match="trust_remote_code"):
        RedDDPMPipeline.from_pretrained(folder)
    assert not marker.exists()


def test_diffusers_does_not_unpickle_for_us(folder, marker) -> None:
    pickled_weights(folder, marker)
    with pytest.raises((OSError, pickle.UnpicklingError)):
        RedDDPMPipeline.from_pretrained(folder, use_safetensors=True)
    assert not marker.exists()


# --- other files that could carry a pickle


def test_arrays_of_objects(tmp_path, marker) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([Payload(marker)], dtype=object))
    assert "Python objects, which are never loaded" in message(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Payload(marker)))
    assert "it is not an archive" in message(tmp_path / "b.npz")
    assert not marker.exists()


def test_weights_of_an_extractor(tmp_path, marker) -> None:
    torch.save({"a": Payload(marker)}, tmp_path / "inception.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Payload(marker), protocol=2))
    for name in ("inception.pth", "plain.pth"):
        with pytest.raises(UserError, match="cannot be read as tensors"):
            choose_extractor(str(tmp_path / name))
    assert not marker.exists()


def test_yaml_that_would_run(tmp_path, marker, capsys) -> None:
    (tmp_path / "a.yaml").write_text(f"data: !!python/object/apply:os.mkdir [{marker}]")
    with pytest.raises(SystemExit) as ended:
        main(["distill", "--config", str(tmp_path / "a.yaml")])
    assert ended.value.code == 2
    assert not marker.exists()


def test_an_npz_that_would_fill_the_memory(tmp_path) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((200, 64, 64, 1), np.uint8))
    assert npz_files.read_arrays(tmp_path / "a.npz", list)["images"].shape == (200, 64, 64, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npz_files, "LARGE", 2**19)
        assert "'images' would fill the memory" in message(tmp_path / "a.npz")
    make_images(tmp_path / "b.npz", count=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(npz_files, "LARGE", 0)  # not packed: as large as it says
        assert "images" in npz_files.read_arrays(tmp_path / "b.npz", list)


# --- the page


EVIL = "</title><script>alert(1)</script><img src=x onerror='alert(1)'>\"&"


def spoilt(value: Any) -> Any:
    """Every key and text of a report with markup in it; the keys that the page looks for are kept beside."""
    if isinstance(value, dict):
        return {key: spoilt(item) for key, item in value.items()} | {EVIL: EVIL}
    if isinstance(value, list | tuple):
        return [*map(spoilt, value), EVIL] if any(isinstance(item, str | dict) for item in value) else value
    return EVIL + value if isinstance(value, str) else value


def test_every_string_of_a_report_is_escaped(tmp_path) -> None:
    report = spoilt(full_report())
    report["distances"]["extractor"] |= {"fid_name": EVIL, "kid_name": EVIL}
    report["distances"]["student_to_data"] |= {EVIL: 3.0, f"{EVIL}_interval": [1.0, 2.0]}
    grid = Image.new("RGB", (8, 8))
    rows = [{"step": 1, "loss": 0.5, EVIL: 1.0}, {"step": 2, "loss": 0.25, EVIL: 1.0}]
    write_report(report, tmp_path / EVIL.replace("/", "_"), grids={EVIL: grid, "data": grid}, metrics_rows=rows)
    runs = [str(tmp_path / EVIL.replace("/", "_"))]
    write_comparison(runs, tmp_path / "comparison.html")
    for page in (Path(runs[0]) / "report.html", tmp_path / "comparison.html"):
        checked = Page(page)
        assert "script&gt;" in checked.source
        assert re.findall(r"<script|<img src=x|onerror='", checked.source) == []
        assert [tag for tag, attributes in checked.tags if tag == "script" or "onerror" in attributes] == []
