"""The command line: help, plan, memory, sample, and what each mistake says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from training_helpers import (
    SIZE,
    TRAIN,
    UNET,
    arguments,
    make_cifar10_config,
    make_images,
    make_tiny_teacher,
    refused,
)

from ddpm_redistill.cli import main
from ddpm_redistill.files import read_metrics
from ddpm_redistill.plan_facts import plan_facts
from ddpm_redistill.recipes import resolve

MIB = 2**20
VERBS = ("plan", "teach", "distill", "sample", "evaluate", "statistics", "memory", "report", "demo")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """teacher/, images.npz, cifar10/ (a config only) and run/, a distillation of two steps."""
    place = tmp_path_factory.mktemp("place")
    make_tiny_teacher(place / "teacher")
    make_images(place / "images.npz")
    make_cifar10_config(place / "cifar10")
    training = {**TRAIN, "steps": 2}
    config = {"teacher": str(place / "teacher"), "data": str(place / "images.npz"), "training": training}
    (place / "config.yaml").write_text(yaml.safe_dump(config))
    main(["distill", "--config", str(place / "config.yaml"), "--output_dir", str(place / "run")])
    return place


def output(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    main([str(part) for part in argv])
    return capsys.readouterr().out


def snapshot(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# --- help


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_help_names_every_verb(capsys, argv):
    try:
        main(argv)
    except SystemExit as ended:
        assert ended.code in (0, None)  # noqa: PT017
    text = capsys.readouterr().out
    assert all(f"    {verb} " in text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb(capsys, verb):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    wanted = {
        "plan": ["TEACHER", "--reduction", "--json"],
        "teach": ["--config", "--training.steps", "--unet", "--resume"],
        "distill": ["--config", "--student.reduction", "--loss.red", "optimizer steps", "--dry_run"],
        "sample": ["--num_images", "--output", "--scheduler", "--spacing", "--eta", "--seed", "--resume"],
        "evaluate": ["--teacher", "--data", "--inception_weights", "--output_dir"],
        "statistics": ["--output", "--image_size", "--channels", "--num_images", "--seed", "--extractor"],
        "memory": [
            "--batch_size",
            "--image_size",
            "--dtype",
            "--lean",
            "--fail_over",
            "--timeline",
            "--json",
            "Exit code",
        ],
        "report": ["RUNS", "--output", "runs/comparison.html", "--json"],
        "demo": ["--output_dir", "--seed"],
    }[verb]
    assert [word for word in wanted if word not in text and word.lower() not in text] == []


def test_help_and_mistyped_options_do_not_import_torch():
    script = f"""
import sys
from ddpm_redistill.cli import main
helps = [[verb, "--help"] for verb in {VERBS}]
for argv in [["--help"], *helps, ["plan"], ["nonsense"], ["sample", "x", "--nonsense"]]:
    try:
        main(argv)
    except SystemExit:
        pass
heavy = {{"torch", "diffusers", "accelerate", "torchvision", "matplotlib"}} & set(sys.modules)
sys.exit(f"imported {{sorted(heavy)}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# --- plan


def test_plan_of_the_cifar10_teacher(capsys, place):
    found = json.loads(output(capsys, "plan", place / "cifar10", "--red_placement", "full", "--json"))
    assert found["plan"]["teacher_strides"] == [1, 2, 2, 2]
    assert found["plan"]["student_strides"] == [2, 2, 2, 1]
    assert len(plan_facts(found["plan"])["blocks"]) == 10
    teacher, student = found["memory"]["teacher"], found["memory"]["student"]
    assert teacher["paper_peak"] == 3.50048828125 * MIB
    assert teacher["paper_peak_with_skips"] == 4.50048828125 * MIB
    assert teacher["tensor_peak"] == 7_342_600
    assert student["paper_peak"] == 0.87548828125 * MIB
    assert student["paper_peak_with_skips"] == 1.12548828125 * MIB
    assert teacher["parameters"] == 35_746_307


@pytest.mark.parametrize(("reduction", "strides"), [(2, [2, 2, 2, 1]), (4, [4, 2, 1, 1]), (8, [8, 1, 1, 1])])
def test_plan_of_each_reduction(capsys, place, reduction, strides):
    found = json.loads(output(capsys, "plan", place / "teacher", "--reduction", str(reduction), "--json"))
    assert found["plan"]["student_strides"] == strides


def test_plan_at_another_size_and_placement(capsys, place):
    argv = ["plan", place / "cifar10", "--image_size", "64", "--red_placement", "outer", "--json"]
    found = json.loads(output(capsys, *argv))
    assert found["memory"]["teacher"]["paper_peak"] == 14.00048828125 * MIB
    assert [block["name"] for block in plan_facts(found["plan"])["blocks"]] == [
        "conv_in.red_out",
        "conv_norm_out.red_in",
    ]


def test_plan_as_text(capsys, place):
    text = output(capsys, "plan", place / "cifar10")
    assert "[1, 2, 2, 2] -> [2, 2, 2, 1]" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.split()}
    assert rows["paper_peak"] == ["3.5005", "0.8755", "4.00x"]
    assert rows["paper_peak_with_skips"] == ["4.5005", "1.1255", "4.00x"]


# --- sample


def pictures(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


@pytest.mark.parametrize("model", ["teacher", "run/student"])
def test_sample_writes_the_same_images_at_any_batch_size(capsys, place, tmp_path, model):
    for batch_size in (2, 5):
        folder = tmp_path / str(batch_size)
        folder.mkdir()  # an empty folder is welcome
        counts = ["--num_images", "5", "--steps", "2", "--batch_size", str(batch_size), "--seed", "3"]
        output(capsys, "sample", place / model, "--output", folder, *counts)
        assert snapshot(folder) == {"sampling.json", *(f"00000{i}.png" for i in range(5))}
        assert (tmp_path / f"{batch_size}_grid.png").exists()
    one, other = pictures(tmp_path / "2"), pictures(tmp_path / "5")
    assert one.shape == (5, SIZE, SIZE)
    assert one.dtype == np.uint8
    assert np.abs(one.astype(int) - other.astype(int)).max() <= 1
    assert len(np.unique(one.reshape(5, -1), axis=0)) == 5


def test_sample_into_the_working_folder(capsys, place, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    output(capsys, "sample", place / "teacher", "--output", ".", "--num_images", "2", "--steps", "1")
    assert snapshot(tmp_path) == {"here", "here/000000.png", "here/000001.png", "here/sampling.json", "here_grid.png"}


def test_sample_refuses_a_folder_in_use(capsys, caplog, place, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    line = refused(capsys, caplog, ["sample", str(place / "teacher"), "--output", str(tmp_path)])
    assert "is not an empty folder" in line
    assert snapshot(tmp_path) == {"precious.txt"}


# --- teach and distill from a config file


def test_a_config_file_and_what_beats_it(place, tmp_path):
    settings = ["--config", str(place / "config.yaml"), "--output_dir", str(tmp_path / "run")]
    main(["distill", *settings, "--student.reduction", "4", "--training.steps=1", "--recipe", "redistill"])
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["training"] == {**config["training"], **TRAIN, "steps": 1}
    assert (config["student"]["reduction"], config["student"]["start"], config["loss"]["red"]) == (4, "random", 50.0)


def test_a_dry_run_leaves_nothing(place, tmp_path):
    settings = ["--config", str(place / "config.yaml"), "--output_dir", str(tmp_path / "run"), "--dry_run"]
    main(["distill", *settings])
    assert snapshot(tmp_path) == set()


def test_teach_then_resume_the_finished_run(place, tmp_path):
    settings = {
        "unet": UNET,
        "data": str(place / "images.npz"),
        "image_size": SIZE,
        "output_dir": str(tmp_path / "run"),
    }
    argv = ["teach", *arguments({**settings, "training": {**TRAIN, "steps": 2}})]
    main(argv)
    main([*argv, "--resume"])
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    assert (tmp_path / "run" / "teacher" / "unet" / "config.json").exists()


def test_a_reader_that_leaves_is_no_mistake(teacher_folder):
    command = [sys.executable, "-m", "ddpm_redistill", "memory", str(teacher_folder), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_the_demo_distils_and_evaluates(tmp_path, monkeypatch, capsys):
    """Its config is read and both steps get what belongs together; the work itself takes minutes."""
    seen = {}

    def distill(config):
        seen["config"] = resolve(config)
        return tmp_path / "run" / "student"

    def evaluate(model, **arguments):
        seen["evaluated"] = {"model": model, **arguments}
        return {}

    monkeypatch.setattr("ddpm_redistill.training.distill.distill", distill)
    monkeypatch.setattr("ddpm_redistill.evaluation.evaluate.evaluate", evaluate)
    monkeypatch.setattr("ddpm_redistill.cli.verbs.summary", lambda report: "figures")
    main(["demo", "--output_dir", str(tmp_path / "run"), "--seed", "3"])
    config, evaluated = seen["config"], seen["evaluated"]
    assert (config.recipe, config.teacher, config.seed) == ("natural", "builtin:digits", 3)  # no images here to go by
    assert (evaluated["model"], evaluated["seed"]) == (str(tmp_path / "run" / "student"), 3)
    assert (evaluated["teacher"], evaluated["output_dir"]) == (config.teacher, config.output_dir)
    assert capsys.readouterr().out.splitlines() == ["figures", f"open {tmp_path / 'run' / 'report.html'}"]
