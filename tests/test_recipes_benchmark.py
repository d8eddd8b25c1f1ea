"""benchmarks/recipes.py: what an arm may say, no work twice, a killed run goes on, a failed one is named."""

import importlib
import json
import subprocess
import sys
import zlib
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from training_helpers import UNET_WEIGHTS, Killed, kill_at

from ddpm_redistill.errors import UserError
from ddpm_redistill.evaluation.evaluate import evaluate
from ddpm_redistill.recipes import resolve
from ddpm_redistill.sources.teacher import sha256_of

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
recipes, recipe_run, recipe_table = map(importlib.import_module, ("recipes", "recipe_run", "recipe_table"))


@pytest.fixture
def arms(tmp_path, monkeypatch):
    folder = tmp_path / "arms"
    folder.mkdir()
    (folder / "default.yaml").write_text("# ours\nrecipe: default\n")
    (folder / "small.yaml").write_text("student:\n  red_placement: none\ntraining:\n  learning_rate: 5.0e-4\n")
    monkeypatch.setattr(recipes, "ARMS", folder)
    return folder


@pytest.fixture
def trained(monkeypatch):
    """Runs are made in this process, not in one of their own, and measured by a number that changes with the weights
    and the images asked for; -> the names of those that were made."""
    names = []

    def distances(job):
        weights = (Path(job.model) / UNET_WEIGHTS).read_bytes()
        return {"fd_efficientnet_lite0": job.num_images + zlib.crc32(weights) / 2**32}

    def start(run):
        names.append(run.name)
        Path(run.job.folder).mkdir(parents=True, exist_ok=True)
        run.failure.unlink(missing_ok=True)
        code, line = 0, ""
        try:
            recipe_run.run(run.job)
        except Killed:
            code = -9
        except UserError as mistake:
            code, line = 1, f"training: 5%|\n{mistake}\n"
        (Path(run.job.folder) / "log.txt").write_text(line)
        return SimpleNamespace(poll=lambda: code, returncode=code)

    monkeypatch.setattr(recipes, "start", start)
    monkeypatch.setattr(recipe_run, "distances", distances)
    return names


def call(inputs, tmp_path, *more, num_images=8):
    sampling = {"num_images": num_images, "sampling_steps": 2}
    shared = {**inputs, **sampling, "batch_size": 4, "output_dir": tmp_path / "out"}
    return recipes.main([*more, *(f"--{key}={value}" for key, value in shared.items())])


def test_a_table_and_no_work_twice(inputs, tmp_path, arms, trained, capsys):
    order = ["--arms", "default", "small@3", "--steps", "2", "3", "--seeds", "5", "--baseline", "default"]
    assert call(inputs, tmp_path, *order) == 0
    assert trained == ["teacher", "default-2-5", "default-3-5", "small-3-5"]
    first = capsys.readouterr().out.splitlines()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {tuple(row["seeds"]) for row in results["rows"]} == {(5,)}
    rows = {(row["arm"], row["steps"]): row for row in results["rows"]}
    assert rows.keys() == {("default", 2), ("default", 3), ("small", 3)}
    values = {key: row["runs"][0]["distances"]["fd_efficientnet_lite0"] for key, row in rows.items()}
    assert len(set(values.values())) == 3
    assert rows["small", 3]["ratio"] == pytest.approx(values["small", 3] / values["default", 3])
    config = yaml.safe_load((tmp_path / "out" / "small-3-5" / "config.yaml").read_text())
    assert (config["student"]["red_placement"], config["training"]["learning_rate"]) == ("none", 5e-4)
    assert (config["training"]["steps"], config["training"]["schedule"], config["seed"]) == (3, "cosine", 5)
    assert (tmp_path / "out" / "recipes.png").read_bytes().startswith(b"\x89PNG")

    # again: nothing is made, the table is the same; --table_only needs nothing either
    for more in ((), ("--table_only",)):
        assert call(inputs, tmp_path, *order, *more) == 0
        assert capsys.readouterr().out.splitlines() == first[-len(rows) - 3 :]
    assert len(trained) == 4

    # more images: the same students are measured again, and nothing is trained
    paths = [tmp_path / "out" / name / "metrics.jsonl" for name in trained[1:]]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]
    assert call(inputs, tmp_path, *order, num_images=9) == 0
    assert trained[4:] == trained[:4]
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths] == before
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["runs"][0]["num_images"] for row in results["rows"]} == {9}
    for row in results["rows"]:
        assert row["mean"] == pytest.approx(values[row["arm"], row["steps"]] + 1)


def test_a_killed_run_goes_on_to_the_same_student(inputs, tmp_path, arms, trained, monkeypatch, capsys):
    monkeypatch.setitem(recipes.HOUSEKEEPING, "checkpoint_every", 2)
    one, two = tmp_path / "one", tmp_path / "two"
    order = ["--arms", "default@5", "small@5", "--seeds", "0"]
    assert call(inputs, one, *order) == 0
    with monkeypatch.context() as patch:
        kill_at(patch, 3)
        assert call(inputs, two, *order) == 1
    text = capsys.readouterr().out
    assert "default-5-0 failed: killed by signal 9" in text
    assert [path.name for path in (two / "out" / "default-5-0" / "checkpoints").iterdir()] == ["step-000002"]
    assert call(inputs, two, *order) == 0
    assert "failed" not in capsys.readouterr().out
    for name in ("default-5-0", "small-5-0"):
        weights = [place / "out" / name / "student" / UNET_WEIGHTS for place in (one, two)]
        assert sha256_of(weights[0]) == sha256_of(weights[1])
        rows = (two / "out" / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["step"] for row in rows] == [2, 4, 5]


def test_a_failed_run_is_named_and_the_rest_goes_on(inputs, tmp_path, arms, trained, capsys):
    (arms / "diverging.yaml").write_text("training:\n  learning_rate: 1.0e+30\n  max_grad_norm: 1.0e+30\n")
    assert call(inputs, tmp_path, "--arms", "diverging@4", "small@2", "--seeds", "0") == 1
    out = capsys.readouterr().out
    named = [line for line in out.splitlines() if line.startswith("diverging-4-0 failed: ")]
    assert len(named) == 1
    assert "not finite" in named[0]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["failed"]) == ["diverging-4-0"]
    assert [row["arm"] for row in results["rows"]] == ["small"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("nowhere", None, "there is no arm 'nowhere'"),
        ("arm@x", "", "give NAME or NAME@STEPS"),
        ("arm@0", "recipe: default", "training.steps must be at least 1, not 0"),
        ("arm", "", "names no number of steps"),
        ("arm@2", "nonsense: 1", "nonsense is the harness's"),
        ("arm@2", "seed: 1", "seed is the harness's"),
        ("arm@2", "training:\n  steps: 7", "training.steps is the harness's"),
        ("arm@2", "student:\n  nonsense: 1", "Group 'student' does not accept option 'nonsense'"),
        ("arm@2", "student:\n  red_norm: layer", "red_norm"),
        ("arm@2", "loss:\n  output: -1.0", "loss.output must be zero or positive"),
        ("arm@2", "training: 3", "arm.yaml"),
        ("arm@2", "training: [1,\n b", "arm.yaml"),
        ("arm@2", "- 1", "arm.yaml"),
    ],
)
def test_mistakes_are_one_line(inputs, tmp_path, arms, trained, capsys, name, text, message):
    if text is not None:
        (arms / "arm.yaml").write_text(text)
    assert call(inputs, tmp_path, "--arms", "default@2", name) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("recipes.py: error: ")
    assert message in err
    assert trained == []
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_settings_is_refused(inputs, tmp_path, arms, trained, capsys):
    order = ["--arms", "default@2", "small@2", "--seeds", "0"]
    assert call(inputs, tmp_path, *order) == 0
    assert call(inputs, tmp_path, *order, "--learning_rate=3e-3") == 2
    assert "default-2-0: training.learning_rate was 0.004 and is now 0.003" in capsys.readouterr().err
    # an option that this program has, and the one that made the run did not, is no difference
    path = tmp_path / "out" / "default-2-0" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    del config["loss"]["red_distance"]
    path.write_text(yaml.safe_dump(config))
    assert call(inputs, tmp_path, *order) == 0
    assert len(trained) == 3


def test_every_arm_of_the_project_is_a_config_of_its_own(inputs, tmp_path):
    arguments = recipes.parse_arguments(["--arms", "default", f"--output_dir={tmp_path}"])
    seen = {}
    for arm in sorted(set(recipes.arm_names()) - {"saturated"}):  # which the default is on the harness's own data
        settings = asdict(resolve(recipes.arm_config(arm, 10, 0, arguments), "saturated"))
        del settings["output_dir"], settings["recipe"]
        text = json.dumps(settings, sort_keys=True)
        assert text not in seen, f"{arm} is {seen[text]}"
        seen[text] = arm
        assert (recipes.ARMS / f"{arm}.yaml").read_text().startswith("# "), arm
    assert {"default", "redistill", "redistill_cosine", "random_task", "student_plus"} <= set(seen.values())


def test_the_summary_against_numbers_by_hand():
    def made(arm, steps, seed, distance, seconds):
        result = {"distances": {"fd": distance, "kid": 0.1}, "seconds": seconds, "images_per_second": 2.0}
        return {"arm": arm, "steps": steps, "seed": seed, **result}

    found = [made("a", 10, 0, 8.0, 1.0), made("a", 10, 1, 4.0, 3.0), made("b", 10, 1, 2.0, 5.0), made("b", 20, 0, 1, 1)]
    a, b, late = sorted(recipe_table.summarise(found, "a"), key=lambda row: (row["steps"], row["arm"]))
    assert (a["mean"], a["lowest"], a["highest"], a["seconds"], a["ratio"]) == (6.0, 4.0, 8.0, 2.0, 1.0)
    assert (b["ratio"], b["seeds"]) == (0.5, [1])  # over seed 1 alone, which both have
    assert late["ratio"] is None


def test_the_distances_are_those_of_the_report(inputs, tmp_path):
    job = recipe_run.Job(folder="", model=inputs["teacher"], data=inputs["data"], num_images=10, sampling_steps=2)
    found = recipe_run.distances(job)
    batch_size = recipe_run.SAMPLING["batch_size"]  # a GPU would choose another, and so other last digits
    report = evaluate(job.model, data=job.data, num_images=10, steps=2, batch_size=batch_size, output_dir=tmp_path)
    names = ["fd_efficientnet_lite0", "kid_efficientnet_lite0", "kid_efficientnet_lite0_std", "precision", "recall"]
    assert list(found) == names
    assert found.items() <= report["distances"]["student_to_data"].items()


def test_a_run_ends_with_the_harness(tmp_path):
    settings = {"data": "builtin:digits", "num_images": 9, "sampling_steps": 9}
    job = recipe_run.Job(folder=str(tmp_path / "run"), model="builtin:digits", **settings)
    command = [sys.executable, str(BENCHMARKS / "recipe_run.py"), json.dumps(asdict(job))]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, b"")
    assert not (tmp_path / "run").exists()
