"""evaluate: distances, memory and speed of a model and its teacher from the same noise, in one report."""

import json
import shutil
from importlib import resources

import jsonschema
import pytest
import torch
from training_helpers import SIZE, UNET_WEIGHTS, distill_config, make_images, make_tiny_teacher

from ddpm_redistill.cli import main
from ddpm_redistill.errors import UserError
from ddpm_redistill.evaluation import subjects
from ddpm_redistill.evaluation.evaluate import evaluate
from ddpm_redistill.evaluation.reference import reference_images
from ddpm_redistill.evaluation.sampling import open_for_sampling, sample_batches, sample_images
from ddpm_redistill.plan_facts import plan_facts
from ddpm_redistill.sources.teacher import sha256_of
from ddpm_redistill.training.distill import distill

pytest.importorskip("efficientnet_lite_pytorch", reason="distances need the extra demo")
COUNT = 8
PAIRS = ("student_to_data", "teacher_to_data", "student_to_teacher")
FD, KID = "fd_efficientnet_lite0", "kid_efficientnet_lite0"
DISTANCES = {FD, KID, f"{KID}_std", "precision", "recall", "f_score"}  # 8 images are too few for an interval
SETTINGS = {"extractor", "num_images", "num_inference_steps", "warnings"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """teacher/, images.npz and run/, a distillation of two steps."""
    place = tmp_path_factory.mktemp("place")
    inputs = {"teacher": str(make_tiny_teacher(place / "teacher")), "data": str(make_images(place / "images.npz"))}
    distill(distill_config(inputs, place / "run", steps=2))
    return place


@pytest.fixture(scope="module")
def no_cache(tmp_path_factory):
    """torch hub's cache of this machine must not choose the extractor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("torch_home")))
        patch.setattr(torch.hub, "_hub_dir", None)
        yield


@pytest.fixture(scope="module")
def arguments(place, no_cache):
    return {
        "model": str(place / "run" / "student"),
        "teacher": str(place / "teacher"),
        "data": str(place / "images.npz"),
        "num_images": COUNT,
        "steps": 2,
        "batch_size": 5,
        "seed": 3,
    }


@pytest.fixture(scope="module")
def report(arguments, tmp_path_factory):
    """(what evaluate returns, the folder it wrote to)"""
    folder = tmp_path_factory.mktemp("report")
    return evaluate(**arguments, output_dir=folder), folder


def test_files(report):
    returned, folder = report
    assert sorted(path.name for path in folder.iterdir()) == ["comparison.png", "report.html", "report.json"]
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(returned))
    page = (folder / "report.html").read_text()
    assert "<html" in page
    assert "data:image/" in page
    parts = {"distances", "memory", "speed", "plan", "provenance", "paired", "timestep_error", "nearest"}
    assert set(returned) == parts


def test_distances(report):
    distances = report[0]["distances"]
    assert distances["num_images"] == COUNT
    assert distances["extractor"]["name"] == "efficientnet-lite0-64px"
    for pair in PAIRS:
        assert distances[pair].keys() == DISTANCES
        assert distances[pair][FD] > 0
    assert any(f"{FD} of 8 images is biased" in warning for warning in distances["warnings"])


def test_memory_speed_plan(report):
    found = report[0]
    assert found["memory"].keys() == found["speed"].keys() == {"teacher", "student"}
    for name in ("paper_peak", "paper_peak_with_skips", "tensor_peak"):
        assert 3.5 < found["memory"]["teacher"][name] / found["memory"]["student"][name] < 4.5
    for speed in found["speed"].values():
        assert (speed["num_images"], speed["num_inference_steps"], speed["batch_size"]) == (COUNT, 2, 5)
        assert speed["images_per_second"] == pytest.approx(COUNT / speed["seconds"])
    assert (found["plan"]["reduction"], len(plan_facts(found["plan"])["blocks"])) == (2, 2)


def test_provenance(report, arguments, place):
    provenance = report[0]["provenance"]
    assert provenance["model_sha256"] == sha256_of(place / "run" / "student" / UNET_WEIGHTS)
    assert provenance["teacher_sha256"] == sha256_of(place / "teacher" / UNET_WEIGHTS)
    assert (provenance["data"], provenance["seed"], provenance["scheduler"]) == (arguments["data"], 3, "ddim")
    assert (provenance["dtype"], provenance["noise"]) == ("float32", "blocks of 16")
    assert {"torch", "diffusers", "device", "time"} < provenance.keys()


def test_half_precision_measures_other_images_and_says_so(arguments, report, tmp_path):
    found = evaluate(**{**arguments, "data": None}, dtype="bfloat16", output_dir=tmp_path)
    assert found["provenance"]["dtype"] == "bfloat16"
    distance, exact = (each["distances"]["student_to_teacher"][FD] for each in (found, report[0]))
    assert distance != exact
    assert distance == pytest.approx(exact, rel=0.2)
    assert found["memory"] == report[0]["memory"]  # of 32-bit floats, as the schema says


def test_the_batch_size_is_chosen_where_none_is_given(arguments, tmp_path):
    given = {key: value for key, value in arguments.items() if key not in ("batch_size", "data")}
    speed = evaluate(**given, output_dir=tmp_path)["speed"]
    assert speed["student"]["batch_size"] == speed["teacher"]["batch_size"] >= COUNT


def test_teacher_and_student_start_from_the_same_noise(arguments, tmp_path, monkeypatch):
    first = {}

    def opened(ref, scheduler, **sampler):
        pipeline = open_for_sampling(ref, scheduler, **sampler)
        seen = first.setdefault(ref, [])
        pipeline.unet.register_forward_pre_hook(lambda module, args: seen.append((args[0].clone(), int(args[1]))))
        return pipeline

    monkeypatch.setattr(subjects, "open_for_sampling", opened)
    evaluate(**{**arguments, "data": None}, output_dir=tmp_path)
    teacher, student = first[arguments["teacher"]][:4], first[arguments["model"]][:4]  # then memory is measured
    # two batches (5 and 3 images) of two steps each: the first of each begins from noise
    assert [len(x) for x, _ in teacher] == [len(x) for x, _ in student] == [5, 5, 3, 3]
    for i in (0, 2):
        assert torch.equal(teacher[i][0], student[i][0])
        assert teacher[i][1] == student[i][1]
    noise = torch.cat([teacher[0][0], teacher[2][0]])
    assert len(noise.flatten(1).unique(dim=0)) == COUNT
    assert abs(noise.std() - 1) < 0.1
    assert not torch.equal(teacher[1][0], student[1][0])


def test_a_model_is_at_no_distance_from_itself(arguments, place, tmp_path):
    distances = evaluate(**{**arguments, "model": arguments["teacher"], "data": None}, output_dir=tmp_path)["distances"]
    assert set(distances) == {*SETTINGS, "student_to_teacher"}
    assert abs(distances["student_to_teacher"][FD]) < 1


def test_without_a_teacher(arguments, tmp_path):
    found = evaluate(**{**arguments, "teacher": None}, output_dir=tmp_path)
    assert set(found["distances"]) == {*SETTINGS, "student_to_data"}
    assert found["memory"].keys() == found["speed"].keys() == {"student"}
    assert "teacher" not in found["provenance"]


def test_models_of_different_size_are_refused(arguments, tmp_path):
    other = make_tiny_teacher(tmp_path / "other", sample_size=2 * SIZE)
    with pytest.raises(UserError, match="different shape"):
        evaluate(**{**arguments, "teacher": str(other)}, output_dir=tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_another_noise_schedule_compares_all_but_the_error_by_timestep(arguments, place, tmp_path, caplog):
    other = tmp_path / "teacher"
    shutil.copytree(place / "teacher", other)
    path = other / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "beta_end": 0.01}))
    found = evaluate(**{**arguments, "teacher": str(other)}, output_dir=tmp_path / "report")
    assert "timestep_error" not in found
    assert {*PAIRS} < found["distances"].keys()
    assert "error by timestep is left out" in caplog.text


def test_a_folder_that_cannot_be_written_is_seen_before_sampling(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(subjects.Subject, "batches", lambda *_: pytest.fail("sampled"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        evaluate(**arguments, output_dir=tmp_path / "file" / "report")


def test_the_data_is_drawn_by_the_seed_alone(arguments, place):
    def drawn(seed: int, count: int = 6) -> list[int]:
        torch.manual_seed(count)
        size = {"image_size": SIZE, "channels": 1}
        return list(reference_images(arguments["data"], **size, num_images=count, seed=seed).indices)

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert sorted(drawn(0, 10)) == list(range(10))
    assert drawn(0, 10)[:6] == drawn(0, 6)


def test_several_numbers_of_steps(arguments, tmp_path):
    found = evaluate(**{**arguments, "steps": [1, 3]}, output_dir=tmp_path)
    assert [row["num_inference_steps"] for row in found["steps"]] == [1, 3]
    for row in found["steps"]:
        assert {*PAIRS, "speed"} < row.keys()
        assert row["speed"]["student"]["num_inference_steps"] == row["num_inference_steps"]
    last = found["steps"][-1]
    assert all(found["distances"][pair] == last[pair] for pair in PAIRS)
    assert found["steps"][0]["student_to_data"] != last["student_to_data"]
    alone = evaluate(**{**arguments, "steps": 3}, output_dir=tmp_path)["distances"]
    assert alone["student_to_data"] == last["student_to_data"]


def test_the_schema_describes_what_is_written(arguments, report, tmp_path):
    evaluate(**{**arguments, "steps": [1, 2]}, output_dir=tmp_path)
    schema = json.loads(resources.files("ddpm_redistill.evaluation").joinpath("report.schema.json").read_text())
    for folder in (tmp_path, report[1]):
        jsonschema.Draft202012Validator(schema).validate(json.loads((folder / "report.json").read_text()))
    config = report[0]["provenance"]["config"]
    assert (config["recipe"], config["training"]["steps"]) == ("saturated", 2)


# --- images made elsewhere


def test_a_model_its_folder_and_its_npz_have_the_same_figures(arguments, report, tmp_path):
    """To the last digit: the same pixels, and the extractor always sees them in the same portions."""
    settings = ["--num_images", str(COUNT), "--steps", "2", "--seed", "3", "--batch_size", "5"]
    expected = report[0]["distances"]["student_to_data"]
    for output in ("folder", "file.npz"):
        main(["sample", arguments["model"], *settings, "--output", str(tmp_path / output)])
        again = {**arguments, "model": str(tmp_path / output), "batch_size": 3}
        found = evaluate(**again, output_dir=tmp_path / f"{output}-report")
        assert found["distances"]["student_to_data"] == expected
        assert found["distances"].keys() == report[0]["distances"].keys()
        assert found["speed"].keys() == found["memory"].keys() == {"teacher"}
        assert "paired" not in found
        assert found["provenance"]["images_sha256"]


def test_images_made_elsewhere_alone(arguments, tmp_path):
    found = evaluate(**{**arguments, "model": arguments["data"], "teacher": None}, output_dir=tmp_path)
    assert found["distances"].keys() == {*SETTINGS, "student_to_data"} - {"num_inference_steps"}
    assert (found["memory"], found["speed"]) == ({}, {})
    assert "scheduler" not in found["provenance"]
    assert (tmp_path / "report.html").is_file()


def test_mistakes_with_images_made_elsewhere(arguments, tmp_path):
    few = {**arguments, "model": arguments["data"], "num_images": 1000}
    with pytest.raises(UserError, match=r"images.npz has \d+ images, 1000 are needed"):
        evaluate(**few, output_dir=tmp_path)
    with pytest.raises(UserError, match="batch_size must be at least 1, not 0"):
        evaluate(**{**arguments, "model": arguments["data"], "batch_size": 0}, output_dir=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        evaluate(**{**arguments, "model": str(tmp_path / "empty")}, output_dir=tmp_path)


# --- statistics


def test_statistics_stand_for_the_data(arguments, report, tmp_path):
    file = str(tmp_path / "data.npz")
    main(["statistics", arguments["data"], "--output", file, "--num_images", str(COUNT), "--seed", "3"])
    found = evaluate(**{**arguments, "data": file}, output_dir=tmp_path / "report")
    assert found["distances"]["student_to_data"] == report[0]["distances"]["student_to_data"]
    assert found["provenance"]["data_sha256"] == report[0]["provenance"]["data_sha256"]
    assert "nearest" not in found  # there are no images to show


# --- sampling


def test_samples_come_in_batches_and_do_not_depend_on_them(arguments):
    pipeline = open_for_sampling(arguments["model"], "ddpm")
    counts = {"num_images": 5, "num_inference_steps": 2, "seed": 1}
    batches = list(sample_batches(pipeline, batch_size=2, **counts))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    whole = sample_images(pipeline, batch_size=8, **counts)
    assert whole.images.dtype == torch.uint8
    assert whole.images.shape == (5, 1, SIZE, SIZE)
    assert (torch.cat(batches).int() - whole.images.int()).abs().max() <= 1
    assert whole.images_per_second == 5 / whole.seconds


@pytest.mark.parametrize("name", ["num_images", "batch_size", "num_inference_steps"])
def test_counts_below_one_are_refused(arguments, name):
    with pytest.raises(UserError, match="must be at least 1, not 0"):
        sample_images(open_for_sampling(arguments["teacher"], "ddim"), **{"num_images": 1, name: 0})


# --- the command line


def test_evaluate_verb_prints_one_json_object_and_writes_into_the_run(capsys, arguments, place):
    options = ["--teacher", arguments["teacher"], "--data", arguments["data"], "--num_images", "8", "--steps", "2"]
    capsys.readouterr()
    main(["evaluate", arguments["model"], *options, "--json"])
    out = capsys.readouterr().out
    assert json.loads(out)["distances"].keys() == {*SETTINGS, *PAIRS}
    assert json.loads((place / "run" / "report.json").read_text()) == json.loads(out)
    assert (place / "run" / "report.html").exists()


def test_evaluate_verb_as_text_into_a_folder(capsys, arguments, tmp_path):
    options = ["--data", arguments["data"], "--num_images", "8", "--steps", "1", "--output_dir", str(tmp_path)]
    main(["evaluate", arguments["model"], *options, "--dtype", "float16", "--compile", "off"])
    out = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["provenance"]["dtype"] == "float16"
    schema = json.loads(resources.files("ddpm_redistill.evaluation").joinpath("report.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(report)
    assert "student to data" in out
    assert "paper_peak" in out
    assert (tmp_path / "report.html").exists()
