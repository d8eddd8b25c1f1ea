"""2 then 2 as a person runs it: a student is distilled, given as a teacher, and what comes of it is used."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from sharing_helpers import read_card
from training_helpers import (
    SIZE,
    TRAIN,
    UNET_WEIGHTS,
    Killed,
    arguments,
    assert_same_run,
    distill_config,
    kill_at,
    make_images,
    make_tiny_teacher,
    metrics,
    refused,
)

from ddpm_redistill import StudentConfig, load_pipeline
from ddpm_redistill.cli import main
from ddpm_redistill.recipes import resolve
from ddpm_redistill.sharing.card import write_card
from ddpm_redistill.sources.teacher import load_teacher, sha256_of
from ddpm_redistill.students.footprint import network_memory
from ddpm_redistill.students.plan import plan_student
from ddpm_redistill.training.comparison import comparing
from ddpm_redistill.training.distill import distill
from ddpm_redistill.training.objective import distillation_objective


def run(inputs: dict[str, str], folder: Path, **settings: Any) -> Path:
    training = {**TRAIN, "steps": 2}
    main(["distill", *arguments({**inputs, "output_dir": str(folder), "training": training, **settings})])
    return folder / "student"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """teacher/ with a licence, images.npz, half/student and, made from that, quarter/student."""
    place = tmp_path_factory.mktemp("place")
    make_tiny_teacher(place / "teacher")
    (place / "teacher" / "README.md").write_text("---\nlicense: mit\n---\n")
    data = str(make_images(place / "images.npz"))
    half = run({"teacher": str(place / "teacher"), "data": data}, place / "half", student={"red_placement": "full"})
    run({"teacher": str(half), "data": data}, place / "quarter")
    return place


@pytest.fixture(scope="module")
def chain(place: Path) -> dict[str, str]:
    """Teacher, a student, and data of another run."""
    return {"teacher": str(place / "half" / "student"), "data": str(place / "images.npz")}


def output(capsys: pytest.CaptureFixture[str], *argv: Any) -> str:
    capsys.readouterr()
    main([str(part) for part in argv])
    return capsys.readouterr().out


# --- made, planned, measured


def test_what_was_made(place: Path) -> None:
    plan = json.loads((place / "quarter" / "plan.json").read_text())
    assert (plan["reduction"], plan["teacher_strides"], plan["student_strides"]) == (4, [2, 2, 2, 1], [4, 2, 1, 1])
    student = load_pipeline(str(place / "quarter" / "student")).unet
    assert json.loads(json.dumps(dict(student.config)["student_plan"])) == plan
    kept = json.loads((place / "quarter" / "provenance.json").read_text())
    assert kept["teacher"] == str(place / "half" / "student")
    assert kept["teacher_sha256"] == sha256_of(place / "half" / "student" / UNET_WEIGHTS)
    assert kept["teacher_config"]["unet"]["student_plan"]["reduction"] == 2


def test_plan_says_what_is_made(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(output(capsys, "plan", place / "half" / "student", "--json"))
    assert found["plan"] == json.loads((place / "quarter" / "plan.json").read_text())
    peaks = {}
    for name, folder in (("teacher", "half"), ("student", "quarter")):
        peaks[name] = network_memory(load_pipeline(str(place / folder / "student")).unet).tensor_peak
        assert found["memory"][name]["tensor_peak"] == peaks[name]
    both = ["memory", place / "quarter" / "student", "--teacher", place / "half" / "student", "--json"]
    memory = json.loads(output(capsys, *both))
    assert memory["memory"]["tensor_peak"] == peaks["student"]
    assert memory["teacher_memory"]["tensor_peak"] == peaks["teacher"]
    text = output(capsys, "plan", place / "half" / "student", "--budget", f"{peaks['student']}B", "--reduction", "2")
    assert "--student.reduction 2" in text
    assert "-> [4, 2, 1, 1]: feature maps 2x smaller a side than its teacher's, a student's: 4x in all" in text


def test_sampled_here_and_elsewhere(place: Path, tmp_path: Path) -> None:
    student = place / "quarter" / "student"
    main(["sample", str(student), "--num_images", "2", "--steps", "2", "--output", str(tmp_path / "images")])
    assert len(list((tmp_path / "images").glob("*.png"))) == 2
    theirs = DiffusionPipeline.from_pretrained(student, trust_remote_code=True)
    mine = load_pipeline(str(student))
    noise = torch.randn(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs.unet.eval()(noise, 10).sample, mine.unet(noise, 10).sample)


def test_evaluated_beside_its_teacher(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="distances need the extra demo")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    folder = shutil.copytree(place / "quarter", tmp_path / "quarter")
    sets = ["--teacher", place / "half" / "student", "--data", place / "images.npz", "--num_images", 8]
    report = json.loads(output(capsys, "evaluate", folder / "student", *sets, "--steps", 2, "--json"))
    assert {"student_to_data", "teacher_to_data", "student_to_teacher"} <= report["distances"].keys()
    peaks = {name: report["memory"][name]["tensor_peak"] for name in ("teacher", "student")}
    assert peaks["teacher"] == network_memory(load_pipeline(str(place / "half" / "student")).unet).tensor_peak
    assert peaks["teacher"] > 2 * peaks["student"]
    assert {"paired", "timestep_error"} <= report.keys()
    assert "| student to teacher |" in read_card(folder / "student")


# --- its card


def test_the_card_names_both_teachers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = read_card(place / "quarter" / "student")
    hashes = [sha256_of(place / name / UNET_WEIGHTS) for name in ("half/student", "teacher")]
    for row in (
        "# A student of `student (a local one)`: feature maps 4x smaller a side than those of the first teacher",
        f"| sha256 of the teacher's weights | `{hashes[0]}` |\n| the teacher's own teacher | `teacher (a local one)` |",
        f"| sha256 of its weights | `{hashes[1]}` |",
        "| plan: strides by level | of the teacher 2, 2, 2, 1; of the student 4, 2, 1, 1 |",
        "carried over from its own card: mit",
    ):
        assert row in words, row
    assert "own teacher" not in read_card(place / "half" / "student")
    pushed = output(capsys, "push", place / "quarter" / "student", "me/mine", "--dry_run")
    assert all(name in pushed for name in ("README.md", "unet/config.json", "unet/modeling_red_unet_"))


@pytest.mark.parametrize("lost", ["the records", "the folder", "the licence"])
def test_a_card_without_its_teachers_records(place: Path, tmp_path: Path, lost: str) -> None:
    """What is not at hand is said to be unknown; "unknown" is no licence to carry over."""
    half = shutil.copytree(place / "half", tmp_path / "half")
    if lost == "the licence":
        (half / "student" / "README.md").write_text("---\nlicense: unknown\n---\n")
    quarter = run({"teacher": str(half / "student"), "data": str(place / "images.npz")}, tmp_path / "quarter")
    if lost == "the records":
        (half / "provenance.json").write_text("{")
    if lost == "the folder":
        shutil.rmtree(half)
    write_card(str(quarter))
    words = read_card(quarter)
    unknown = "| the teacher's own teacher | not recorded here; the teacher is a student itself |"
    assert (unknown in words) == (lost != "the licence")
    assert ("carried over from its own card: mit" in words) == (lost == "the records")


# --- trained


@pytest.mark.parametrize(
    "settings",
    [
        {"recipe": "redistill"},
        {"student": {"red_placement": "full"}, "loss": {"red": 1.0, "feature_share": 1.0}},
        {"loss": {"task": 0, "red": 0, "output": 1}},
        {"student": {"widen": [1, 1, 1, 2]}},
    ],
    ids=str,
)
def test_recipes(chain: dict[str, str], tmp_path: Path, settings: dict[str, Any]) -> None:
    student = run(chain, tmp_path / "run", **settings)
    rows = metrics(tmp_path / "run")
    assert len(rows) == 2
    assert all(value > 0 for row in rows for name, value in row.items() if name.startswith("loss"))
    assert load_pipeline(str(student)).unet.config.student_plan["reduction"] == 4


def test_a_killed_run_goes_on(chain: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"steps": 6, "checkpoint_every": 2, "student": {"red_placement": "full"}, "loss": {"red": 1.0}}
    distill(distill_config(chain, tmp_path / "one", **config))
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            distill(distill_config(chain, tmp_path / "killed", **config))
    distill(distill_config(chain, tmp_path / "killed", **config), resume=True)
    assert_same_run(tmp_path / "one", tmp_path / "killed")


def objective_of(chain: dict[str, str], prediction_type: Any, loss: dict[str, float]) -> Any:
    teacher = load_teacher(chain["teacher"])
    config = dict(teacher.unet.config)
    plan = plan_student(config, StudentConfig(prediction_type=prediction_type, red_placement="none"))
    settings = resolve(distill_config(chain, Path("x"), loss={"red": 0.0, **loss})).loss
    cpu = torch.device("cpu")
    with comparing(teacher.unet, teacher.unet, ()) as compared:
        return teacher, distillation_objective(teacher, plan, settings, compared, cpu)


@pytest.mark.parametrize("clips", [False, True])
def test_the_output_loss_reads_the_teachers_own_quantity(chain: dict[str, str], clips: bool) -> None:
    """A student predicts the image: against itself there is no loss, taken for noise there is; and nothing of the
    frozen teacher moves, its BatchNorm included."""
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, 3, 1, SIZE, SIZE, generator=generator)
    batch = {"images": images.clamp(-1, 1), "noise": noise, "timesteps": torch.tensor([5, 400, 900])}
    losses = {}
    for prediction_type in ("sample", "epsilon"):
        teacher, objective = objective_of(chain, prediction_type, {"output": 1.0, "clip_sample": clips})
        assert teacher.scheduler.config.prediction_type == "sample"
        before = {name: value.clone() for name, value in teacher.unet.state_dict().items()}
        with torch.no_grad():
            losses[prediction_type] = float(objective(teacher.unet, batch)["output"])
        assert all(torch.equal(value, before[name]) for name, value in teacher.unet.state_dict().items())
        assert not any(parameter.requires_grad for parameter in teacher.unet.parameters())
    assert losses["sample"] < 1e-6
    assert losses["epsilon"] > 1e-2


# --- refused, by plan and distill alike


@pytest.mark.parametrize(
    ("widen", "reduction", "words"),
    [
        ([1, 1, 1, 1], 8, "has 2 left: the largest that it can take is 4"),
        ([1, 1, 2, 1], 2, "is a student that is widened: give the teacher that it was made from"),
    ],
)
def test_refused_in_one_line(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    widen: list[int],
    reduction: int,
    words: str,
) -> None:
    data = str(place / "images.npz")
    student = place / "half" / "student"
    if max(widen) > 1:
        student = run({"teacher": str(place / "teacher"), "data": data}, tmp_path / "wide", student={"widen": widen})
    settings = {"teacher": str(student), "data": data, "output_dir": str(tmp_path / "run")}
    assert words in refused(capsys, caplog, ["plan", str(student), "--reduction", str(reduction)])
    assert words in refused(capsys, caplog, ["distill", *arguments({**settings, "student": {"reduction": reduction}})])
    assert not (tmp_path / "run").exists()
