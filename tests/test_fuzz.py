"""Whatever bytes and values come in: success, or one line that says what is wrong; never another exception."""

import contextlib
import io
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from image_helpers import noise
from PIL import Image
from property_helpers import assert_one_line, examples, values
from report_helpers import full_report
from student_helpers import old_plan
from training_helpers import UNET_WEIGHTS, make_images, make_tiny_teacher

from ddpm_redistill.cli import build_parser
from ddpm_redistill.cli.verbs import as_settings
from ddpm_redistill.config import DistillConfig
from ddpm_redistill.errors import UserError
from ddpm_redistill.evaluation.pages import compare_page
from ddpm_redistill.recipes import resolve
from ddpm_redistill.sources.image_files import decode
from ddpm_redistill.sources.images import open_images, read_npz
from ddpm_redistill.sources.teacher import find_model, load_pipeline
from ddpm_redistill.students.footprint import network_of
from ddpm_redistill.students.plan import plan_student

PARSER = build_parser()[0]
SETTINGS = [
    "teacher",
    "data",
    "image_size",
    "on_bad_image",
    "recipe",
    "seed",
    "student",
    "loss",
    "training",
    "nonsense",
]
NESTED = ["reduction", "widen", "task", "gamma", "steps", "learning_rate", "ema_decay", "red", "num_workers"]


@contextlib.contextmanager
def only_user_errors() -> Any:
    try:
        yield
    except UserError as error:
        assert_one_line(error)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def model(place: Path) -> Path:
    return make_tiny_teacher(place / "model")


# --- settings


def parsed(file: Path, text: str | bytes) -> None:
    """As the command line takes a config file: settings, or one line and exit code 2."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    printed, code = io.StringIO(), None
    try:
        with contextlib.redirect_stderr(printed), contextlib.suppress(UnicodeDecodeError), only_user_errors():
            arguments = PARSER.parse_args(["distill", "--config", str(file)])
            resolve(DistillConfig(**as_settings(arguments["distill"], DistillConfig)))
    except SystemExit as ended:
        code = ended.code
    if code is not None:
        assert code == 2
        assert printed.getvalue().startswith("ddpm-redistill: error: ")
        assert printed.getvalue().count("\n") == 1


settings_of = st.dictionaries(st.sampled_from(NESTED), values, max_size=3)
configs = st.dictionaries(st.sampled_from(SETTINGS), values | settings_of, max_size=4)


@examples(25)
@given(config=configs)
def test_configs_of_any_values(place: Path, config: dict[str, Any]) -> None:
    parsed(place / "config.yaml", yaml.safe_dump(config))


@examples(15)
@given(text=st.text(alphabet="abc:{}[]-!&*#'\"|>?%@\n \t\u2028", max_size=40) | st.binary(max_size=40))
def test_configs_of_any_text(place: Path, text: str | bytes) -> None:
    parsed(place / "config.yaml", text)


# --- images


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    noise(16).save(buffer, kind)
    return buffer.getvalue()


FILES = {kind: encoded(kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")}


@st.composite
def spoilt_bytes(draw: st.DrawFn, good: bytes) -> bytes:
    """`good` cut short, or with a few bytes changed, mostly at its front, where headers are."""
    if draw(st.booleans()):
        return good[: draw(st.integers(0, len(good) - 1))]
    changed = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, min(64, len(good)) - 1) | st.integers(0, len(good) - 1))
        changed[place] = draw(st.integers(0, 255))
    return bytes(changed)


@examples(150)
@given(data=st.binary(max_size=64) | st.sampled_from(sorted(FILES)).flatmap(lambda kind: spoilt_bytes(FILES[kind])))
def test_images_of_any_bytes(data: bytes) -> None:
    try:
        assert decode(data, 4, 3)[0].shape == (3, 4, 4)
    except ValueError as error:
        assert_one_line(error)


@examples(10)
@given(data=spoilt_bytes(FILES["PNG"]), suffix=st.sampled_from([".png", ".jpg", ".bmp"]), skip=st.booleans())
def test_folders_of_any_bytes(place: Path, data: bytes, suffix: str, skip: bool) -> None:
    folder = place / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / f"a{suffix}").write_bytes(data)
    Image.new("L", (4, 4)).save(folder / "b.png")
    with only_user_errors():
        source = open_images(folder, image_size=4, channels=1, on_bad_image="skip" if skip else "error")
        assert len([*source]) == 2


@examples(60)
@given(data=st.data())
def test_npz_of_any_bytes(place: Path, data: st.DataObject) -> None:
    good = make_images(place / "good.npz", count=2).read_bytes()
    path = place / "spoilt.npz"
    path.write_bytes(data.draw(spoilt_bytes(good)))
    with only_user_errors():
        assert read_npz(str(path)).dtype == np.uint8


# --- models


@examples(40)
@given(changes=st.dictionaries(st.text(max_size=4), values, max_size=1), data=st.data())
def test_model_configs_of_any_values(place: Path, model: Path, changes: dict[str, Any], data: st.DataObject) -> None:
    """In the network's config and in the schedule's: planned and its memory counted, loaded, or refused."""
    file = data.draw(st.sampled_from(["unet/config.json", "scheduler/scheduler_config.json"]))
    good = json.loads((model / file).read_text())
    keys = data.draw(st.lists(st.sampled_from(sorted(good)), min_size=1, max_size=2, unique=True))
    changes = {**changes, **{key: data.draw(values) for key in keys}}
    folder = place / "spoilt_model"
    shutil.copytree(model, folder, dirs_exist_ok=True)
    (folder / file).write_text(json.dumps({**good, **changes}))
    with only_user_errors():
        found = find_model(str(folder))
        load_pipeline(str(folder))
        network_of(found.config)
        plan_student(found.config)


headers = st.dictionaries(
    st.sampled_from(["conv_in.weight", "conv_out.bias", "__metadata__"]),
    values
    | st.fixed_dictionaries({"dtype": st.sampled_from(["F32", "U8", "X"]), "shape": values, "data_offsets": values}),
    max_size=2,
)  # fmt: skip


@examples(25)
@given(header=headers, length=st.none() | st.integers(0, 2**64 - 1), data=st.data())
def test_weights_of_any_header(
    place: Path, model: Path, header: dict[str, Any], length: int | None, data: st.DataObject
) -> None:
    folder = place / "spoilt_weights"
    shutil.copytree(model, folder, dirs_exist_ok=True)
    text = json.dumps(header).encode()
    whole = data.draw(st.booleans())
    good = (model / UNET_WEIGHTS).read_bytes()
    made = struct.pack("<Q", len(text) if length is None else length) + text + bytes(16)
    (folder / UNET_WEIGHTS).write_bytes(data.draw(spoilt_bytes(good)) if whole else made)
    with only_user_errors():
        load_pipeline(str(folder))


PLAN_KEYS = ["family", "reduction", "teacher_strides", "student_strides", "sample_size", "options", "edits", "x"]
OLD_PLAN_KEYS = [*PLAN_KEYS[1:5], "blocks", "widen", "red_norm", "x"]


@examples(20)
@given(data=st.data(), old=st.booleans())
def test_plans_of_any_values(tiny_config: dict[str, Any], data: st.DataObject, old: bool) -> None:
    """A student's config holds its plan; ``memory`` builds the network from it, ``plan`` plans from there."""
    plan = plan_student(tiny_config)
    keys = st.sampled_from(OLD_PLAN_KEYS if old else PLAN_KEYS)
    plan = {**(old_plan(plan) if old else plan.to_dict()), **data.draw(st.dictionaries(keys, values, min_size=1))}
    if not old and data.draw(st.booleans()):
        plan = {
            **plan_student(tiny_config).to_dict(),
            "edits": spoil(plan_student(tiny_config).to_dict()["edits"], data.draw),
        }
    config = {**tiny_config, "_class_name": "RedUNet2DModel", "student_plan": plan}
    for use in (network_of, plan_student):
        with only_user_errors():
            use(config)


# --- reports


def spoil(report: Any, draw: Any) -> Any:
    """One value somewhere in a report replaced by any other."""
    if isinstance(report, dict) and report and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(report)))
        return {**report, key: spoil(report[key], draw)}
    return draw(values)


@examples(25)
@given(data=st.data())
def test_reports_of_any_values(place: Path, data: st.DataObject) -> None:
    for name in ("one", "two"):
        (place / name).mkdir(exist_ok=True)
        report = json.loads(json.dumps(full_report()))
        for _ in range(data.draw(st.integers(1, 3))):
            report = spoil(report, data.draw)
        (place / name / "report.json").write_text(json.dumps(report))
    with pytest.MonkeyPatch.context() as patch, only_user_errors():
        patch.setattr(compare_page, "distance_against_memory", lambda *_: b"")  # drawing takes a second each
        compare_page.write_comparison([place / "one", place / "two"], place / "comparison.html")
