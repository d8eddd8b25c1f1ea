"""A classifier through the verbs: taught, distilled, killed and resumed, on two processes, measured, given away."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from classifier_runs import CLASSES, SIZE, TRAINING, distill_argv, make_labelled, teach_argv
from safetensors.torch import load_file, save_file
from training_helpers import assert_same_checkpoints, metrics, one_thread_environment, refused, tool

from ddpm_redistill import load_classifier, open_images
from ddpm_redistill.cli import main
from ddpm_redistill.core.augment import normalised
from ddpm_redistill.sources.held_out import split
from ddpm_redistill.training.checkpoint import list_checkpoints

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.npz; the run of a teacher, teach, and of its student, distill."""
    place = tmp_path_factory.mktemp("runs")
    data = make_labelled(place / "data.npz")
    main(teach_argv(data, place / "teach"))
    main(distill_argv(place / "teach" / "teacher", data, place / "distill"))
    return place


def evaluated(capsys: pytest.CaptureFixture[str], *argv: Any) -> dict[str, Any]:
    capsys.readouterr()
    main(["evaluate", *map(str, argv), "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


# --- evaluate


def test_the_held_out_images_are_measured(place, tmp_path, capsys):
    report = evaluated(capsys, place / "distill" / "student", "--output_dir", tmp_path)
    accuracy, made = report["accuracy"], report["provenance"]
    images = open_images(place / "data.npz", image_size=SIZE, channels=1)
    held = split(images, 0.1, 0, open_images)[1]
    assert (accuracy["held_out"], accuracy["num_images"], accuracy["warnings"]) == (True, 6, [])
    assert made["data_sha256"] == held.fingerprint
    for name, folder in (("teacher", place / "teach" / "teacher"), ("student", place / "distill" / "student")):
        network, config = load_classifier(str(folder))
        pixels = torch.stack([held[i] for i in range(len(held))])
        with torch.no_grad():
            logits = network(normalised(pixels, config.mean, config.std))
        figures = accuracy["networks"][name]
        assert figures["top1"] == (logits.argmax(1) == held.labels).float().mean().item()
        top5 = (logits.topk(5).indices == held.labels[:, None]).any(1).float().mean().item()
        assert figures["top5"] == pytest.approx(top5)
        assert sum(map(sum, figures["confusion"])) == 6
        assert len(figures["by_class"]) == CLASSES
        assert report["speed"][name]["images_per_second"] > 0
        assert report["speed"][name]["batch_size"] == 64
        assert report["memory"][name]["tensor_peak"] > 0
    assert made["teacher"] == str(place / "teach" / "teacher")
    assert len(accuracy["agreements"]) == 1
    schema = json.loads(resources.files("ddpm_redistill.evaluation").joinpath("report.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(report)
    page = (tmp_path / "report.html").read_text()
    for words in (
        "Top-1 accuracy",
        "held out",
        "Confusion of the student",
        "Confusion of the teacher",
        "Top 1 by class",
    ):
        assert words in page


def test_data_are_taken_whole(place, tmp_path, capsys, caplog):
    student, other = place / "distill" / "student", make_labelled(tmp_path / "other.npz", 20, seed=1)
    report = evaluated(capsys, student, "--data", other, "--output_dir", tmp_path, "--batch_size", 4)
    assert (report["accuracy"]["num_images"], report["accuracy"]["held_out"]) == (20, False)
    assert report["accuracy"]["warnings"] == []
    assert report["speed"]["student"]["batch_size"] == 4
    main(["evaluate", str(student), "--data", str(place / "data.npz"), "--output_dir", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "accuracy on 60 images, 6 classes" in shown
    assert "has learned from images of" in shown
    assert "top1" in shown
    assert "tensor_peak" in shown


def test_a_teacher_that_has_gone_is_left_out(place, tmp_path, capsys, caplog):
    for run in ("teach", "distill"):
        (tmp_path / run).mkdir()
        for name in ("config.yaml", "provenance.json", "metrics.jsonl"):
            (tmp_path / run / name).write_bytes((place / run / name).read_bytes())
    folder = tmp_path / "distill" / "student"
    folder.mkdir()
    for name in ("config.json", WEIGHTS):
        (folder / name).write_bytes((place / "distill" / "student" / name).read_bytes())
    records = json.loads((tmp_path / "distill" / "provenance.json").read_text())
    changed = {**records, "teacher_sha256": "0" * 64}
    (tmp_path / "distill" / "provenance.json").write_text(json.dumps(changed))
    report = evaluated(capsys, folder)
    assert set(report["accuracy"]["networks"]) == {"student"}
    assert "its teacher is left out" in caplog.text
    assert "| student | " in (folder / "README.md").read_text()
    changed = {**records, "held_out_sha256": "0" * 64}
    (tmp_path / "distill" / "provenance.json").write_text(json.dumps(changed))
    assert "are not there any more" in refused(capsys, caplog, ["evaluate", str(folder)])


MISTAKES = {
    "evaluate {student} --steps 10": "--steps is for DDPMs, which are sampled",
    "evaluate {student} --guidance 2": "--guidance is for DDPMs",
    "evaluate {student} --data_range 100": "--data_range is of the images that --data gives",
    "evaluate {student} --batch_size 0": "batch_size must be at least 1",
    "evaluate {student} --data {place}/bare.npz": "have no labels",
    "evaluate {student} --data {place}/seven.npz": "class '6' is none of the 6",
    "evaluate {student} --teacher {place}/seven": "has 6 classes and",
    "evaluate {place}/loose": "nothing to measure",
    "report {place}/report.json --output {place}/page.html": "is of a classifier",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_a_line(line, place, tmp_path, capsys, caplog):
    import numpy as np

    from ddpm_redistill.families.classifier_files import build, find_config, save_classifier

    np.savez(tmp_path / "bare.npz", images=np.full((4, SIZE, SIZE, 1), 255, np.uint8))
    make_labelled(tmp_path / "seven.npz", 14, classes=7)
    for name, count in (("seven", 7), ("loose", 6)):
        config = find_config("wrn:10-1", image_size=SIZE, num_classes=count, in_channels=1)
        save_classifier(build(config), config, tmp_path / name)
    (tmp_path / "report.json").write_text(json.dumps({"accuracy": {"num_images": 1}}))
    argv = [part.format(student=place / "distill" / "student", place=tmp_path) for part in line.split()]
    assert MISTAKES[line] in refused(capsys, caplog, argv)


# --- the card, and push


def test_the_card_opens_what_it_describes(place, tmp_path, capsys):
    folder = place / "distill" / "student"
    assert "Not measured yet" in (folder / "README.md").read_text()
    evaluated(capsys, folder)
    card = (folder / "README.md").read_text()
    for words in ("pipeline_tag: image-classification", "`wrn:10-1`", "## Accuracy", "## Memory", "license: unknown"):
        assert words in card
    program = card.split("```python\n")[1].split("```")[0].replace("PATH/TO/THIS/FOLDER", str(folder))
    exec(program, {})
    assert 0 <= int(capsys.readouterr().out.strip("tensor([])\n")) < CLASSES
    main(["push", str(folder), "me/mine", "--dry_run"])
    shown = capsys.readouterr().out
    for name in ("README.md", "config.json", WEIGHTS):
        assert name in shown
    state = load_file(folder / WEIGHTS)
    other = tmp_path / "run" / "student"
    other.mkdir(parents=True)
    (other / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_file(
        {name: value + 0 if value.dtype == torch.int64 else value * 1.5 for name, value in state.items()},
        other / WEIGHTS,
    )
    report = place / "distill" / "report.json"
    with pytest.raises(SystemExit):
        main(["push", str(other), "me/mine", "--dry_run", "--report", str(report)])
    assert "is of other weights than" in capsys.readouterr().err


# --- kill and resume to the byte; two processes


def run_verb(command: list[str], argv: list[str], **more: Any) -> Any:
    line = [*command, "-m", "ddpm_redistill", *argv]
    return subprocess.Popen(line, env=one_thread_environment(ACCELERATE_USE_CPU="true"), **more)


def test_a_killed_distillation_is_resumed_to_the_byte(place, tmp_path):
    data, teacher, folder = place / "data.npz", place / "teach" / "teacher", tmp_path / "killed"
    training = {**TRAINING, "steps": 60, "sample_every": 20, "keep_checkpoints": 2}
    argv = distill_argv(teacher, data, folder, training=training)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = run_verb([sys.executable], argv, **quiet)
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "step-000006").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list_checkpoints(folder / "checkpoints")[-1].name != "step-000060"
    main([*argv, "--resume"])
    main(distill_argv(teacher, data, tmp_path / "one", training=training))
    assert_same_checkpoints(tmp_path / "one", folder)
    assert (tmp_path / "one" / "student" / WEIGHTS).read_bytes() == (folder / "student" / WEIGHTS).read_bytes()


def test_two_processes_distil_as_one(place, tmp_path):
    data, teacher = place / "data.npz", place / "teach" / "teacher"
    torchrun = [tool("torchrun"), "--nproc_per_node=2", "--standalone"]
    more = {"training": {**TRAINING, "gradient_accumulation": 2}}
    process = run_verb(
        torchrun, distill_argv(teacher, data, tmp_path / "two", **more), stderr=subprocess.PIPE, text=True
    )
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    more["training"] = {**TRAINING, "gradient_accumulation": 2}
    main(distill_argv(teacher, data, tmp_path / "one", **more))
    rows, others = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [row["step"] for row in rows] == [row["step"] for row in others] == list(range(1, 7))
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        assert [*other.values()] == pytest.approx([*row.values()], rel=1e-4)
    ends = [load_file(tmp_path / name / "student" / WEIGHTS) for name in ("one", "two")]
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)
