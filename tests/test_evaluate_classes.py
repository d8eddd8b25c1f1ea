"""evaluate of networks with classes: labels that mean the same everywhere, guidance, and the figures of each class."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from feature_helpers import DIM, features
from PIL import Image
from report_helpers import Page
from torch_fidelity.metric_prc import prc_features_to_metric
from training_helpers import SIZE, make_images, make_tiny_teacher, refused

from ddpm_redistill.cli import main
from ddpm_redistill.cli.text import summary
from ddpm_redistill.errors import UserError
from ddpm_redistill.evaluation import subjects
from ddpm_redistill.evaluation.classes import figures_by_class
from ddpm_redistill.evaluation.evaluate import evaluate
from ddpm_redistill.evaluation.extractors import choose_extractor
from ddpm_redistill.evaluation.features import Features, extract_features
from ddpm_redistill.evaluation.metrics import compare, kernel_distance
from ddpm_redistill.evaluation.reference import reference_images
from ddpm_redistill.evaluation.sampling import open_for_sampling, sample_images
from ddpm_redistill.evaluation.set_grids import by_turns, set_grids
from ddpm_redistill.evaluation.shared_classes import SharedClasses, shared_classes
from ddpm_redistill.evaluation.subjects import open_subject
from ddpm_redistill.evaluation.timestep_error import error_by_timestep
from ddpm_redistill.pipelines.seeds import seeded_generator
from ddpm_redistill.sources.images import open_images
from ddpm_redistill.sources.teacher import load_pipeline

NAMES = ("wasp", "ant", "moth")  # not in the order of the folders' names
COUNT, EACH = 135, 48  # images of a set, 45 of each class where they are sampled, and of a class of the data
EXTRACTOR = "feature_helpers:Projection"
FD, KID_OWN = "fd_projection", "kid_projection"
SCHEMA = json.loads(resources.files("ddpm_redistill.evaluation").joinpath("report.schema.json").read_text())


def model(
    folder: Path, names: tuple[str, ...] | None = NAMES, embeddings: int = 4, learned: float | None = None
) -> str:
    """A random network with classes, the null class last; ``names``: None says nothing of them."""
    make_tiny_teacher(folder, num_class_embeds=embeddings)
    index = folder / "model_index.json"
    said = json.loads(index.read_text())
    said |= {} if names is None else {"id2label": {str(i): name for i, name in enumerate(names)}}
    said |= {} if learned is None else {"learned_guidance": learned}
    index.write_text(json.dumps(said))
    return str(folder)


def image_folder(folder: Path, each: int, names: tuple[str, ...] = NAMES) -> str:
    """A folder for each class of grey images, the brighter the later the class."""
    chance = np.random.default_rng(0)
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = chance.integers(60 * label, 60 * label + 80, (SIZE, SIZE), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03}.png")
    return str(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("place")
    return {
        "model": model(place / "student", learned=1.5),
        "teacher": model(place / "teacher"),
        "unnamed": model(place / "unnamed", None),
        "plain": str(make_tiny_teacher(place / "plain")),
        "data": image_folder(place / "data", EACH),
        "unlabelled": str(make_images(place / "images.npz")),
    }


def settings(place: dict[str, str], **changes: Any) -> dict[str, Any]:
    same = {name: place[name] for name in ("model", "teacher", "data")}
    return {**same, "num_images": COUNT, "steps": 1, "seed": 3, "extractor": EXTRACTOR, **changes}


@pytest.fixture(scope="module")
def run(place: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """(what evaluate returns, the folder it wrote to), with guidance that the student has learned."""
    folder = tmp_path_factory.mktemp("report")
    return evaluate(**settings(place, guidance=1.5), output_dir=folder), folder


def subjects_of(**refs: str) -> Any:
    return {name: open_subject(ref, "ddim") for name, ref in refs.items()}


# --- a whole evaluation


def test_the_report_tells_of_guidance_and_passes(run: Any) -> None:
    speed = run[0]["speed"]
    assert {name: (each["guidance"], each["passes_per_step"]) for name, each in speed.items()} == {
        "student": (1.5, 1),
        "teacher": (1.5, 2),
    }
    assert run[0]["provenance"]["guidance"] == 1.5
    assert not any("guidance" in warning for warning in run[0]["distances"]["warnings"])
    assert "timestep_error" in run[0]
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads((run[1] / "report.json").read_text()))


@pytest.mark.parametrize(("name", "who"), [("model", "student"), ("teacher", "teacher")])
def test_a_class_is_measured_on_its_own_images_alone(name: str, who: str, run: Any, place: dict[str, str]) -> None:
    """Sampled, chosen and extracted once more, class by class: names of folders are not in the network's order."""
    guidance = None if who == "student" else 1.5
    options = {"num_images": COUNT, "num_inference_steps": 1, "batch_size": 64, "seed": 3, "guidance": guidance}
    images = sample_images(open_for_sampling(place[name], "ddim"), **options).images
    data = reference_images(place["data"], image_size=SIZE, channels=1, num_images=COUNT, seed=3)
    chosen = torch.stack(list(data))
    folders = [sorted(NAMES)[int(data.dataset.labels[i])] for i in data.indices]
    extractor = choose_extractor(None, EXTRACTOR)
    assert [row["name"] for row in run[0]["classes"]["by_class"]] == list(NAMES)
    for label, row in enumerate(run[0]["classes"]["by_class"]):
        mine = extract_features(images[label::3], extractor)
        theirs = extract_features(chosen[[folder == NAMES[label] for folder in folders]], extractor)
        assert row["num_images"] == {"student": 45, "teacher": 45, "data": len(theirs)}
        found, expected = row[f"{who}_to_data"], compare(mine, theirs)
        assert found.keys() == expected.keys() >= {FD, f"{KID_OWN}_interval", "precision", "recall"}
        assert all(found[key] == pytest.approx(value, rel=1e-4) for key, value in expected.items())


def test_the_page_has_a_table_and_grids_by_class(run: Any) -> None:
    page = Page(run[1] / "report.html")
    page.check()
    assert "Classes" in page.words
    assert "Network passes a step" in page.words
    assert "grids classed" in page.source
    assert "45 / 45 / " in page.words
    assert "A column with a title is one class. The same place" in page.words
    with Image.open(run[1] / "comparison.png") as picture:
        assert picture.height > 5 * 66 + 18  # five rows under their titles


def test_the_terminal_shows_the_worst_class_first(run: Any) -> None:
    lines = summary(run[0]).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"{KID_OWN} to the data by class"))
    assert " ".join(lines[start + 1].split()) == (
        "class student images teacher images data images student KID teacher KID"
    )
    rows = [line.split() for line in lines[start + 2 : start + 5]]
    assert sorted(row[0] for row in rows) == sorted(NAMES)
    assert [float(row[4]) for row in rows] == sorted((float(row[4]) for row in rows), reverse=True)


def test_different_guidance_is_a_warning_and_unlabelled_data_leaves_parts_out(
    place: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = evaluate(**settings(place, data=place["unlabelled"], num_images=6), output_dir=tmp_path)
    assert {name: each["guidance"] for name, each in found["speed"].items()} == {"student": 1.5, "teacher": 1.0}
    assert found["provenance"]["guidance"] is None
    assert any(
        "different guidance (student 1.5 and teacher 1)" in warning for warning in found["distances"]["warnings"]
    )
    assert not {"classes", "timestep_error"} & found.keys()
    assert {"paired", "nearest", "memory"} <= found.keys()
    assert "figures by class are left out" in caplog.text
    assert "the error by timestep is left out: student has classes" in caplog.text
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads((tmp_path / "report.json").read_text()))


def test_images_made_elsewhere_in_folders_of_classes(place: dict[str, str], tmp_path: Path) -> None:
    made = image_folder(tmp_path / "made", 45)
    found = evaluate(**settings(place, model=made, teacher=None), output_dir=tmp_path / "alone")["classes"]
    rows = {row["name"]: row for row in found["by_class"]}
    assert [row["name"] for row in found["by_class"]] == sorted(NAMES)  # the data's, since there is no network
    assert {row["num_images"]["student"] for row in rows.values()} == {45}
    beside = evaluate(**settings(place, model=made), output_dir=tmp_path / "beside")["classes"]
    again = {row["name"]: row for row in beside["by_class"]}
    assert [row["name"] for row in beside["by_class"]] == list(NAMES)
    assert all(again[name]["student_to_data"] == rows[name]["student_to_data"] for name in NAMES)
    for row in again.values():  # like the data, as the teacher's images are not
        assert abs(row["student_to_data"][KID_OWN]) < row["teacher_to_data"][KID_OWN] / 20
        assert row["student_to_data"]["precision"] > 0.5


# --- labels that mean the same


def test_a_network_without_names_takes_those_of_the_other(place: dict[str, str]) -> None:
    found = subjects_of(student=place["model"], teacher=place["unnamed"])
    shared = shared_classes(found, None, None, 8)
    assert shared is not None
    assert (shared.names, shared.turns, shared.sampled) == (NAMES, (0, 1, 2), ("student", "teacher"))
    assert shared.labels.keys() == {"student", "teacher"}
    assert all(labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1] for labels in shared.labels.values())
    assert found["teacher"].conditioning == load_pipeline(place["teacher"]).conditioning  # and its null class
    assert found["teacher"].passes(2.0) == 2


def test_a_network_without_names_takes_those_of_the_data(place: dict[str, str]) -> None:
    images = reference_images(place["data"], image_size=SIZE, channels=1, num_images=20, seed=0)
    found = subjects_of(student=place["unnamed"])
    shared = shared_classes(found, images, place["data"], 8)
    assert shared is not None
    assert shared.names == tuple(sorted(NAMES))
    assert torch.equal(shared.labels["data"], images.dataset.labels[images.indices])
    assert found["student"].conditioning.null == 3
    numbered = shared_classes(subjects_of(student=place["unnamed"]), None, None, 8)
    assert numbered is not None
    assert numbered.names == ("0", "1", "2", "3")


def test_without_any_class_there_is_nothing_to_share(place: dict[str, str]) -> None:
    images = reference_images(place["data"], image_size=SIZE, channels=1, num_images=20, seed=0)
    assert shared_classes(subjects_of(student=place["plain"]), images, place["data"], 8) is None
    one = shared_classes(subjects_of(student=place["model"], teacher=place["plain"]), images, place["data"], 8)
    assert one is not None
    assert one.labels.keys() == {"student", "data"}


# --- mistakes


def test_mistakes_are_one_line_before_anything_is_sampled(
    place: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subjects.Subject, "batches", lambda *_: pytest.fail("sampled"))
    other = model(tmp_path / "other", ("wasp", "moth", "ant"))
    full = model(tmp_path / "full", (*NAMES, "fly"))
    cases = {
        "different classes (3: wasp, ant, moth; 3: wasp, moth, ant)": [place["model"], "--teacher", other],
        "has learned guidance 1.5": [place["model"], "--teacher", place["teacher"], "--guidance", "2"],
        "plain: this model has no classes": [place["plain"], "--teacher", place["plain"], "--guidance", "1.5"],
        "full: guidance needs a null class": [full, "--teacher", full, "--guidance", "1.5"],
        "guidance must be a finite number": [place["teacher"], "--teacher", place["teacher"], "--guidance", "-1"],
        "images made elsewhere are as they are": [place["data"], "--guidance", "1.5", "--data", "builtin:digits"],
    }
    for says, argv in cases.items():
        output = tmp_path / "report"
        options = ["--num_images", "4", "--extractor", EXTRACTOR, "--output_dir", str(output)]
        caplog.clear()
        with pytest.raises(SystemExit) as ended:
            main(["evaluate", *argv, *options])
        lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert ended.value.code == 2
        assert len(lines) == 1
        assert says in lines[0]
        assert not output.exists()
    assert "guidance" in refused(capsys, caplog, ["evaluate", place["model"], "--guidance", "much"])


# --- the figures by themselves


def made_up(counts: dict[str, list[int]], dim: int = DIM) -> tuple[SharedClasses, dict[str, Features]]:
    """Sets with so many images of each class, shuffled."""
    labels, sets = {}, {}
    for seed, (name, each) in enumerate(counts.items()):
        ordered = torch.repeat_interleave(torch.arange(len(each)), torch.tensor(each))
        labels[name] = ordered[torch.randperm(len(ordered), generator=torch.Generator().manual_seed(seed))]
        sets[name] = features(len(ordered), seed, dim=dim)
    names = tuple(f"class {i}" for i in range(len(counts["data"])))
    return SharedClasses(names, labels, ("student",)), sets


def test_a_class_of_few_images_has_its_counts_alone() -> None:
    classes, sets = made_up({"student": [40, 39, 60], "teacher": [45, 45, 45], "data": [50, 50, 12]})
    found = figures_by_class(classes, sets)
    assert [row["num_images"] for row in found["by_class"]] == [
        {"student": 40, "teacher": 45, "data": 50},
        {"student": 39, "teacher": 45, "data": 50},
        {"student": 60, "teacher": 45, "data": 12},
    ]
    pairs = [{key for key in row if key.endswith("_to_data")} for row in found["by_class"]]
    assert pairs == [{"student_to_data", "teacher_to_data"}, {"teacher_to_data"}, set()]
    assert found["notes"] == ["1 of 3 classes have fewer than 40 images in a set, and no figures"]
    row = found["by_class"][0]["student_to_data"]
    mine, theirs = (sets[name].values[classes.labels[name] == 0] for name in ("student", "data"))
    expected = prc_features_to_metric(mine, theirs, prc_neighborhood=3, verbose=False)
    assert {key: row[key] for key in expected} == expected
    whole = kernel_distance(
        Features(mine, None, sets["data"].extractor), Features(theirs, None, sets["data"].extractor)
    )
    assert row[KID_OWN] == whole["mean"]


def test_the_frechet_distance_needs_more_images_of_a_class_than_features() -> None:
    classes, sets = made_up({"student": [64, 65], "data": [70, 70]}, dim=64)
    first, second = (row["student_to_data"] for row in figures_by_class(classes, sets)["by_class"])
    assert FD not in first
    assert KID_OWN in first
    assert FD in second
    assert "no more images than the 64 features" in figures_by_class(classes, sets)["notes"][0]


def test_the_first_images_of_each_class_in_turn() -> None:
    labels = torch.tensor([1, 0, 0, 2, 1, 2, 2, 0, 1, 1])
    assert by_turns(labels, 3, 15) == [1, 0, 3, 2, 4, 5, 7, 8, 6]
    assert by_turns(labels, 3, 6) == [1, 0, 3, 2, 4, 5]
    assert by_turns(labels, 4, 20) == []


def test_grids_have_a_column_for_each_of_few_classes(place: dict[str, str]) -> None:
    images = reference_images(place["data"], image_size=SIZE, channels=1, num_images=60, seed=0)
    first = {"student": torch.zeros(40, 1, SIZE, SIZE, dtype=torch.uint8)}
    shared = shared_classes(subjects_of(student=place["model"]), images, place["data"], 40)
    grids, by_class = set_grids(first, images, shared)
    assert (list(grids), by_class) == (["data", "student"], True)
    assert {grid.size for grid in grids.values()} == {(3 * 66 + 2, 5 * 66 + 2 + 18)}
    brightness = np.asarray(grids["data"].convert("L"), dtype=float)[20:]
    wasp, ant, moth = (brightness[:, 2 + 66 * column : 66 + 66 * column].mean() for column in range(3))
    assert wasp + 40 < ant < moth - 40
    grids, by_class = set_grids(first, images, None)
    assert (grids["student"].size, by_class) == ((8 * 66 + 2, 5 * 66 + 2), False)


# --- the error by timestep


@pytest.mark.parametrize(("guidance", "name"), [(None, "teacher"), (2.0, "teacher"), (1.5, "model")])
def test_the_error_by_timestep_is_of_the_images_classes(guidance: Any, name: str, place: dict[str, str]) -> None:
    pipeline = load_pipeline(place[name]).set_scheduler("ddim")
    images = open_images(place["unlabelled"], image_size=SIZE, channels=1)
    labels = torch.tensor([0, 2, 1, 1, 0, 2, 2, 2, 0, 1])
    given = {"labels": {name: labels}, "guidance": guidance, "timesteps": [400], "batch_size": 4, "seed": 5}
    found = error_by_timestep({name: pipeline}, images, **given)[name]
    errors, abar = [], pipeline.scheduler.alphas_cumprod[400]
    for index in range(10):
        noise = torch.randn((1, 1, SIZE, SIZE), generator=seeded_generator(5, "timestep_error", index, 400))
        # as torch.randn of (1, SIZE, SIZE): the same numbers in the same order
        noisy = abar.sqrt() * (images[index][None] / 127.5 - 1) + (1 - abar).sqrt() * noise
        with torch.no_grad():
            told, untold = (pipeline.unet(noisy, 400, torch.tensor([label])).sample for label in (labels[index], 3))
        predicted = told if guidance != 2.0 else untold + 2.0 * (told - untold)
        errors.append(float((predicted - noise).square().mean()))
    assert found == pytest.approx([np.mean(errors)], rel=1e-4)
    with pytest.raises(UserError, match="has classes, and there are no labels"):
        error_by_timestep({name: pipeline}, images)
