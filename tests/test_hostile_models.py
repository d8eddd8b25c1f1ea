"""What a stranger hands over runs nothing and touches nothing outside of its folder; and no code here unpickles."""

import ast
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_helpers import message
from PIL import Image
from report_helpers import Page, full_report
from student_helpers import old_plan
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
from ddpm_redistill.sources.teacher import find_model

ROOT = Path(__file__).parents[1]
HUB_LAYOUT = Path("models--someone--ddpm")


class Payload:
    """Pickled, it is a call that makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_teacher(tmp_path_factory.mktemp("plain") / "teacher")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "owned"


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return shutil.copytree(plain, tmp_path / "in" / "model")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_payload_would_work(marker: Path) -> None:
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()


def pickled_weights(folder: Path, marker: Path) -> None:
    (folder / UNET_WEIGHTS).unlink()
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "model.ckpt"):
        torch.save(Payload(marker), folder / "unet" / name)


def pickle_named_safetensors(folder: Path, marker: Path) -> None:
    (folder / UNET_WEIGHTS).write_bytes(pickle.dumps(Payload(marker)))


def weights_linked_from_outside(folder: Path, marker: Path) -> None:
    outside = folder.parents[1] / "private.safetensors"
    (folder / UNET_WEIGHTS).rename(outside)
    (folder / UNET_WEIGHTS).symlink_to(outside)


def config_linked_from_outside(folder: Path, marker: Path) -> None:
    outside = folder.parents[1] / "private.json"
    (folder / "unet" / "config.json").rename(outside)
    (folder / "unet" / "config.json").symlink_to("../../../private.json")


def unet_linked_from_outside(folder: Path, marker: Path) -> None:
    (folder / "unet").rename(folder.parents[1] / "unet")
    (folder / "unet").symlink_to(folder.parents[1] / "unet")


def schedule_linked_from_outside(folder: Path, marker: Path) -> None:
    (folder / "scheduler").rename(folder.parents[1] / "scheduler")
    (folder / "scheduler").symlink_to(folder.parents[1] / "scheduler")


def index_that_climbs(folder: Path, marker: Path) -> None:
    edit(folder / "model_index.json", unet=["../../code", "UNet2DModel"])


def index_with_an_absolute_path(folder: Path, marker: Path) -> None:
    edit(folder / "model_index.json", _class_name=[str(marker.parent / "code"), "Pipeline"])


def part_with_a_name_that_climbs(folder: Path, marker: Path) -> None:
    edit(folder / "model_index.json", **{"..\\..\\unet": ["diffusers", "UNet2DModel"]})


def shard(folder: Path, name: object) -> None:
    index = {"metadata": {}, "weight_map": {"conv_in.weight": name}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def shards_that_climb(folder: Path, marker: Path) -> None:
    shard(folder, "../../../private.safetensors")


def shards_in_another_folder(folder: Path, marker: Path) -> None:
    shard(folder, "more/a.safetensors")


def shards_of_a_pickle(folder: Path, marker: Path) -> None:
    pickled_weights(folder, marker)
    shard(folder, "diffusion_pytorch_model.bin")


def shards_linked_from_outside(folder: Path, marker: Path) -> None:
    weights_linked_from_outside(folder, marker)
    (folder / UNET_WEIGHTS).rename(folder / "unet" / "a.safetensors")
    shard(folder, "a.safetensors")


def shards_that_are_no_names(folder: Path, marker: Path) -> None:
    shard(folder, ["a.safetensors"])


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


Spoil = Callable[[Path, Path], None]
REFUSED: list[tuple[Spoil, str]] = [
    (pickled_weights, "has only pickled weights (diffusion_pytorch_model.bin)"),
    (pickle_named_safetensors, "cannot be loaded"),
    (weights_linked_from_outside, "is a link out of the model's folder"),
    (config_linked_from_outside, "is a link out of the model's folder"),
    (unet_linked_from_outside, "is a link out of the model's folder"),
    (schedule_linked_from_outside, "is a link out of the model's folder"),
    (index_that_climbs, "names '../../code', a path out of the model's folder"),
    (index_with_an_absolute_path, "a path out of the model's folder"),
    (part_with_a_name_that_climbs, "a path out of the model's folder"),
    (shards_that_climb, "private.safetensors', a path out of the model's folder"),
    (shards_in_another_folder, "which is no .safetensors file beside it"),
    (shards_of_a_pickle, "which is no .safetensors file beside it"),
    (shards_linked_from_outside, "is a link out of the model's folder"),
    (shards_that_are_no_names, "names no file of weights"),
    (quantizer_that_would_be_imported, "a quantized network cannot be loaded"),
    (unknown_class_of_its_own_code, "holds EvilModel, not a UNet2DModel"),
]


def snapshot(place: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in place.rglob("*")}


@pytest.mark.parametrize(("spoil", "words"), REFUSED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_hostile_folder(spoil, words, folder, marker, tmp_path, capsys) -> None:
    spoil(folder, marker)
    before = snapshot(tmp_path)
    for load in (load_teacher, load_pipeline):
        with pytest.raises(UserError) as raised:
            load(str(folder))
        assert words in str(raised.value)
    with pytest.raises(SystemExit) as ended:
        main(["sample", str(folder), "--output", str(tmp_path / "out"), "--num_images", "1", "--steps", "1"])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
    assert snapshot(tmp_path) == before


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


def test_the_links_of_the_hubs_cache_are_its_own(plain: Path, tmp_path: Path) -> None:
    """A snapshot there is links to ``blobs`` beside it; one that leads out of the repository is refused."""
    repository = tmp_path / HUB_LAYOUT
    snapshot = shutil.copytree(plain, repository / "snapshots" / "0123")
    (repository / "blobs").mkdir()
    for path in (snapshot / UNET_WEIGHTS, snapshot / "unet" / "config.json"):
        blob = repository / "blobs" / path.name
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    assert load_teacher(str(snapshot)).sha256 == load_teacher(str(snapshot / "unet")).sha256
    (snapshot / UNET_WEIGHTS).unlink()
    (snapshot / UNET_WEIGHTS).symlink_to(plain / UNET_WEIGHTS)
    with pytest.raises(UserError, match="link out of"):
        find_model(str(snapshot))


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


# --- the code


def calls(source: str) -> list[tuple[str, set[str]]]:
    """(what is called, by its written name; the keywords with a constant value) in a source."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            keywords = {f"{k.arg}={k.value.value}" for k in node.keywords if isinstance(k.value, ast.Constant)}
            found.append((ast.unparse(node.func), keywords))
    return found


NEVER = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unsafe(path: str, source: str) -> list[str]:
    """Calls and imports by which a file could run code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"{path}: import {name}" for name in names if name.split(".")[0] in NEVER]
    for name, keywords in calls(source):
        wrong = {
            "torch.load": "weights_only=True" not in keywords or not path.endswith("evaluation/tensor_files.py"),
            "np.load": "allow_pickle=False" not in keywords,
            "np.savez": "allow_pickle=False" not in keywords,
            "yaml.load": True,
            "yaml.unsafe_load": True,
            "yaml.full_load": True,
            "eval": True,
            "exec": True,
        }
        if wrong.get(name) or "trust_remote_code=True" in keywords or "allow_pickle=True" in keywords:
            found.append(f"{path}: {name}")
    return found


def test_the_package_unpickles_nothing() -> None:
    paths = [path for folder in ("ddpm_redistill", "pipelines") for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 50
    found = [line for path in paths for line in unsafe(path.relative_to(ROOT).as_posix(), path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from joblib import load", "torch.load(f)", "np.load(f)", "yaml.load(f, Loader)", "eval('1')"],
)
def test_what_would_be_found(source: str) -> None:
    assert len(unsafe("a.py", source)) == 1
    assert unsafe("a/evaluation/tensor_files.py", "torch.load(f, weights_only=True)") == []
    assert unsafe("a.py", "torch.load(f, weights_only=True)") != []
