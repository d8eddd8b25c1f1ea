"""Students of cheap convolutions through the verbs: distilled, resumed, saved, exported, given away, as a teacher."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classifier_runs import distill_argv, make_labelled, teach_argv
from training_helpers import TRAIN, Killed, arguments, assert_same_run, distill_config, kill_at, metrics, refused

from ddpm_redistill import StudentConfig, UserError, load_classifier, load_pipeline, plan_student
from ddpm_redistill.cli import main
from ddpm_redistill.config import DistillConfig, LossConfig
from ddpm_redistill.core.feature_losses import attention_mean_square, attention_norm
from ddpm_redistill.families.classifier_files import find_config
from ddpm_redistill.recipes import classifier_loss, resolve, resolve_classifier
from ddpm_redistill.students.derive import student_on_meta
from ddpm_redistill.training.comparison import Compared, alignment, feature_parts, feature_terms
from ddpm_redistill.training.distill import distill

SHORT = {"steps": 6, "batch_size": 4, "checkpoint_every": 2}
CHEAP = {"cheap": ["S", "DConv", "A2B2", "A2B2"], "widen": [1, 1, 1, 2]}


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.npz, the run of a teacher, teach, and of its Moonshine student, distill."""
    place = tmp_path_factory.mktemp("cheap")
    data = make_labelled(place / "data.npz")
    main(teach_argv(data, place / "teach"))
    options = {"recipe": "moonshine", "student": {"cheap": "G4B2"}}
    main(distill_argv(place / "teach" / "teacher", data, place / "distill", **options))
    return place


# --- runs


def test_red_cheap_and_wide_survive_a_kill_and_a_folder(
    inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, run = tmp_path / "one", tmp_path / "killed"
    distill(distill_config(inputs, one, student=CHEAP, **SHORT))
    kill_at(monkeypatch, 3)
    with pytest.raises(Killed):
        distill(distill_config(inputs, run, student=CHEAP, **SHORT))
    monkeypatch.undo()
    distill(distill_config(inputs, run, student=CHEAP, **SHORT), resume=True)
    assert_same_run(one, run)

    student = load_pipeline(str(one / "student")).unet
    edits = student.config.student_plan["edits"]
    assert {edit["edit"] for edit in edits} == {"width", "stem", "stride", "head", "cheap", "red"}
    student.save_pretrained(tmp_path / "again")
    opened = type(student).from_pretrained(tmp_path / "again")
    x, timesteps = torch.randn(2, 1, 16, 16), torch.tensor([3, 900])
    with torch.no_grad():
        assert opened(x, timesteps).sample.equal(student(x, timesteps).sample)


def test_a_ddpm_by_the_recipe_moonshine(inputs: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    argv = arguments({**inputs, "output_dir": str(run), "training": {**TRAIN, **SHORT}, "student": {"cheap": "DConv"}})
    main(["distill", *argv, "--recipe", "moonshine"])
    rows = metrics(run)
    for row in rows:
        assert row["loss"] == pytest.approx(row["task"] + 1000 * row["attention_mean_square"], rel=1e-4)
    plan = json.loads((run / "plan.json").read_text())
    assert (plan["reduction"], plan["options"]["start"], plan["options"]["red_placement"]) == (1, "random", "none")
    assert {edit["edit"] for edit in plan["edits"]} == {"cheap"}
    main(["sample", str(run / "student"), "--output", str(tmp_path / "images"), "--num_images", "2", "--steps", "2"])
    assert len(list((tmp_path / "images").glob("*.png"))) == 2
    assert ": cheap convolutions\n" in (run / "student" / "README.md").read_text()


def test_a_classifier_by_the_recipe_moonshine(classifiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = classifiers / "distill"
    plan = json.loads((run / "plan.json").read_text())
    assert (plan["reduction"], plan["options"]["start"], plan["options"]["cheap_norm"]) == (1, "random", "batch")
    for row in metrics(run):
        assert row["loss"] == pytest.approx(row["task"] + 1000 * row["attention_mean_square"], rel=1e-4)
    network, config = load_classifier(str(run / "student"))
    assert config.student_plan == plan
    assert {name.rsplit(".", 2)[1] for name in network.state_dict() if "conv1.down" in name} >= {"down", "down_norm"}
    capsys.readouterr()
    main(["evaluate", str(run / "student"), "--json"])
    assert json.loads(capsys.readouterr().out)["plan"]["edits"][0]["convolution"] == "G4B2"
    main(["push", str(run / "student"), "me/mine", "--dry_run"])
    main(["memory", str(run / "student"), "--json"])
    assert "so that it needs less memory for its weights." in (run / "student" / "README.md").read_text()


def test_a_classifier_resumes(classifiers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = distill_argv(
        classifiers / "teach" / "teacher",
        classifiers / "data.npz",
        tmp_path / "run",
        recipe="moonshine",
        student={"cheap": "G4B2"},
    )
    kill_at(monkeypatch, 3)
    with pytest.raises(Killed):
        main(argv)
    monkeypatch.undo()
    main([*argv, "--resume"])
    assert metrics(tmp_path / "run") == metrics(classifiers / "distill")


@pytest.mark.parametrize("kind", ["classifier", "ddpm"])
def test_exported(kind: str, classifiers: Path, inputs: dict[str, str], tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    if kind == "classifier":
        folder, shape = classifiers / "distill" / "student", (1, 1, 16, 16)
    else:
        distill(distill_config(inputs, tmp_path / "run", student=CHEAP, **SHORT))
        folder, shape = tmp_path / "run" / "student", (1, 1, 16, 16)
    main(["export", str(folder), "--format", "onnx", "--output", str(tmp_path / "network.onnx")])
    session = runtime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    names = [given.name for given in session.get_inputs()]
    with torch.no_grad():
        if kind == "classifier":
            wanted = load_classifier(str(folder))[0](torch.from_numpy(image))
            feeds: dict[str, Any] = {names[0]: image}
        else:
            wanted = load_pipeline(str(folder)).unet(torch.from_numpy(image), torch.tensor([500])).sample
            feeds = {names[0]: image, names[1]: np.array([500])}
    np.testing.assert_allclose(session.run(None, feeds)[0], wanted.numpy(), rtol=1e-3, atol=1e-4)


# --- a teacher


def test_a_cheap_student_is_no_teacher_of_layers(
    classifiers: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    student, data = classifiers / "distill" / "student", classifiers / "data.npz"
    words = "this teacher is a student of cheap convolutions, from which no layers are taken: give the teacher that it"
    assert words in refused(capsys, caplog, ["plan", str(student)])
    assert words in refused(capsys, caplog, distill_argv(student, data, classifiers / "none"))
    assert not (classifiers / "none").exists()


def test_of_a_reduced_teacher_the_red_blocks_stay(tiny_config: dict[str, Any]) -> None:
    """Moonshine on a student: the same maps, and its RED blocks, each matched to the teacher's own."""
    half = plan_student(tiny_config, StudentConfig(reduction=2, red_placement="full"))
    config = {**tiny_config, "_class_name": "RedUNet2DModel", "student_plan": half.to_dict()}
    plan = plan_student(config, StudentConfig(reduction=1, cheap="DConv"))
    assert (plan.reduction, plan.options.red_placement, plan.student_strides) == (2, "full", half.student_strides)
    assert [edit for edit in plan.edits if edit not in (*plan.cheap, *plan.blocks)] == [
        edit for edit in half.edits if edit not in half.blocks
    ]
    assert [block.name for block in plan.blocks] == [block.name for block in half.blocks]
    assert {(block.path, block.teacher_channels) for block in plan.blocks} == {
        (block.path, block.channels) for block in plan.blocks
    }
    assert "feature maps as large as its teacher's, a student's, 2x smaller in all" in str(plan)
    places = alignment(config, plan, "levels")
    assert [place.student for place in places] == [place.teacher for place in places]
    assert len(places) == 8


# --- places and terms


@pytest.mark.parametrize(
    ("ref", "reduction", "wanted"),
    [
        ("wrn:16-1", 1, [("group1", "group1"), ("group2", "group2"), ("group3", "group3")]),
        ("wrn:16-1", 2, [("group1", "group2"), ("group3", "group3")]),
    ],
)
def test_ends_of_groups(ref: str, reduction: Any, wanted: list[tuple[str, str]]) -> None:
    config = find_config(ref).to_dict()
    plan = plan_student(config, StudentConfig(reduction=reduction, cheap="DConv"))
    places = alignment(config, plan, "levels")
    assert [(place.student.path, place.teacher.path) for place in places] == wanted


def test_ends_of_levels(tiny_config: dict[str, Any]) -> None:
    plan = plan_student(tiny_config, StudentConfig(reduction=2, cheap="S"))
    places = alignment(tiny_config, plan, "levels")
    pairs = {tuple(".".join(tap.path.split(".")[:2]) for tap in place[:2]) for place in places}
    assert pairs == {
        ("down_blocks.0", "down_blocks.1"),
        ("down_blocks.1", "down_blocks.2"),
        ("down_blocks.3", "down_blocks.3"),
        ("up_blocks.0", "up_blocks.0"),
        ("up_blocks.2", "up_blocks.1"),
        ("up_blocks.3", "up_blocks.2"),
    }
    student = student_on_meta(tiny_config, plan)
    assert all(student.get_submodule(place.student.path) for place in places)


def test_attention_transfer_is_a_sum_over_levels() -> None:
    torch.manual_seed(0)
    loss = LossConfig(attention_mean_square=1.0, attention_norm=1.0, red_distance="mse")
    taps = [("a", "A"), ("b", "B"), ("c", "C")]
    ours = {own: torch.randn(3, 4, 8 // 2**i, 8 // 2**i) for i, (own, _) in enumerate(taps)}
    theirs = {its: torch.randn(3, 6, 8 // 2**i, 8 // 2**i) for i, (_, its) in enumerate(taps)}
    compared: Any = Compared(None, None, taps)  # type: ignore[arg-type]
    found = feature_parts(feature_terms(loss), compared, ours, theirs, None, "levels")  # type: ignore[arg-type]
    for name, term in (("attention_mean_square", attention_mean_square), ("attention_norm", attention_norm)):
        assert found[name].item() == pytest.approx(sum(term(ours[own], theirs[its]).item() for own, its in taps))
    mean = feature_parts(feature_terms(loss), compared, ours, theirs)["attention_norm"]  # type: ignore[arg-type]
    assert (3 * mean).item() == pytest.approx(found["attention_norm"].item())


def test_the_recipe() -> None:
    given = DistillConfig(recipe="moonshine", student=StudentConfig(cheap="G8B2"))
    for settled in (resolve(given), resolve_classifier(given)):
        weights = {name: value for name, value in vars(settled.loss).items() if value}
        assert (weights["task"], weights["attention_mean_square"], weights["feature_places"]) == (1.0, 1000.0, "levels")
        assert not {"red", "output", "attention_norm", "similarity"} & weights.keys()
        assert (settled.student.reduction, settled.student.start, settled.student.cheap) == (1, "random", "G8B2")
        assert settled.training == given.training
    reduced = resolve(DistillConfig(recipe="moonshine", student=StudentConfig(cheap="S", reduction=2)))
    assert (reduced.student.reduction, reduced.loss.feature_places) == (2, "levels")
    assert resolve(DistillConfig()).loss.feature_places == "red"
    assert resolve(DistillConfig(student=StudentConfig(cheap="S", reduction=1))).loss.feature_places == "levels"
    assert classifier_loss(LossConfig()).feature_places == "red"
    for resolved in (resolve, resolve_classifier):
        with pytest.raises(UserError, match=r"recipe moonshine is of cheap convolutions: set student\.cheap"):
            resolved(DistillConfig(recipe="moonshine"))
