"""The model card: its numbers are the report's, its licence the teacher's, and strangers learn nothing else."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from diffusers import DiffusionPipeline, UNet2DModel
from report_helpers import full_report
from sharing_helpers import evaluated, make_student, read_card, write_evaluation
from training_helpers import arguments, make_images, make_tiny_teacher

from ddpm_redistill import UserError
from ddpm_redistill.cli import main
from ddpm_redistill.evaluation import evaluate as evaluation
from ddpm_redistill.pipelines.modeling_red_unet import CODE_NAME
from ddpm_redistill.plan_facts import plan_facts
from ddpm_redistill.sharing.card import write_card
from ddpm_redistill.sharing.markdown import figure, mib, number
from ddpm_redistill.sharing.renew import renew_card


@pytest.fixture(scope="module")
def made(tiny_teacher: UNet2DModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tiny_teacher, tmp_path_factory.mktemp("made") / "student")


@pytest.fixture
def student(made: Path, tmp_path: Path) -> Path:
    """A student in its run folder, evaluated."""
    return evaluated(made, tmp_path / "runs" / "a")


# --- numbers


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield value


def numbers_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.-])-?\d+(?:,\d{3})*(?:\.\d+)?(?![\w])", text))


def test_every_number_is_the_reports(student: Path) -> None:
    report = write_evaluation(student)
    write_card(str(student))
    words = read_card(student).split("# A student of")[1]
    words = re.sub(r"`[^`]*`|\(https:[^)]*\)", "", re.sub(r"```.*?```", "", words, flags=re.DOTALL))
    known = {"2025", "2406.03744", "95", "32"}  # the paper, "95% intervals", "32-bit floats"
    for value in leaves(report):
        if figure(value) is not None:
            known |= {number(value), mib(value).split()[0]}
        known |= numbers_in(str(value))
    memory = report["memory"]
    known |= {f"{memory['teacher'][k] / v:.2f}" for k, v in memory["student"].items() if figure(v) and k != "lean"}
    known |= {str(len(plan_facts(report["plan"])["blocks"]))}
    plan = json.loads((student / "unet" / "config.json").read_text())
    known |= {
        "16",
        "1",
        str(len(plan_facts(plan["student_plan"])["blocks"])),
    }  # of the network itself: its images and its blocks
    found = numbers_in(re.sub(r"(\d)x\b", r"\1", words))
    assert len(found) > 40
    assert found - known == set()


def test_the_figures_that_matter_are_there(student: Path) -> None:
    write_card(str(student))
    words = read_card(student)
    for row in (
        "| student to data | 250.5 [242, 259.5] | 0.6262 [0.501, 0.835] | 0.75 | 0.5 |",
        "tensors alive at once in an eager forward pass | 1.750 MiB | 7.000 MiB | 4.00x |",
        "| student | 50 | 50 | 64 |",
        "Between sets of 2,000 images each",
        "| training | steps 88 |",
        "It is not FID",
        "fd\\_efficientnet\\_lite0 of 2,000 images is biased upwards",
        f"| sha256 of the teacher's weights | `{'d' * 64}` |",
        f"The teacher in this section is another one than it was distilled from: sha256 `{'b' * 64}`.",
        "![Sample grids, each under its name](samples.png)",
    ):
        assert row in words, row
    assert (student / "samples.png").read_bytes() == (student.parent / "comparison.png").read_bytes()


def test_fid_is_called_so(student: Path) -> None:
    report = full_report()["distances"]
    text = json.dumps(report).replace("fd_efficientnet_lite0", "fid").replace("kid_efficientnet_lite0", "kid")
    write_evaluation(student, distances=json.loads(text))
    write_card(str(student))
    assert "`fid`: Frechet distance" in read_card(student)
    assert "not FID" not in read_card(student)


def test_other_figures_give_another_card(student: Path) -> None:
    write_card(str(student))
    before = read_card(student)
    report = full_report()
    report["distances"]["student_to_data"]["precision"] = 0.123
    write_evaluation(student, distances=report["distances"])
    write_card(str(student))
    changed = {
        one for one, other in zip(before.splitlines(), read_card(student).splitlines(), strict=True) if one != other
    }
    assert [line.split("|")[1].strip() for line in changed] == ["student to data"]


def test_what_the_report_lacks_is_said(student: Path) -> None:
    report = full_report()
    alone = {"student": report["memory"]["student"]}
    distances = {key: value for key, value in report["distances"].items() if "teacher" not in key}
    write_evaluation(student, memory=alone, speed={}, distances=distances)
    write_card(str(student))
    words = read_card(student)
    assert "No teacher was measured beside it: `ddpm-redistill evaluate --teacher TEACHER` does." in words
    assert "The report has no speed." in words
    assert "teacher / student" not in words


# --- without a report


def test_without_a_report(student: Path) -> None:
    (student.parent / "report.json").unlink()
    write_card(str(student))
    words = read_card(student)
    assert "## Not measured yet" in words
    assert "ddpm-redistill evaluate runs/NAME/student --teacher builtin:digits --data builtin:digits" in words
    assert "| training | steps 77 |" in words
    assert "## Distances" not in words
    assert not (student / "samples.png").exists()


def test_alone(made: Path, tmp_path: Path) -> None:
    """Away from its run a folder says what it is, and where its report is, if that is said."""
    folder = shutil.copytree(made, tmp_path / "alone" / "student")
    write_card(str(folder))
    words = read_card(folder)
    assert "# A student of an unrecorded teacher: feature maps 2x smaller a side" in words
    assert "--teacher TEACHER --data DATA" in words
    elsewhere = shutil.copytree(folder, tmp_path / "run" / "student")
    write_evaluation(elsewhere)
    write_card(str(folder), tmp_path / "run" / "report.json")
    assert "| student to data | 250.5" in read_card(folder)
    assert "A student of `builtin:digits`" in read_card(folder)


REPORTS = {
    "other weights": (lambda report: report["provenance"].update(model_sha256="0" * 64), "is of other weights than"),
    "images": (lambda report: report["provenance"].pop("model_sha256"), "is no report of a model"),
    "no provenance": (lambda report: report.pop("provenance"), "is no report of a model"),
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_of_something_else(student: Path, name: str) -> None:
    spoil, words = REPORTS[name]
    path = student.parent / "report.json"
    report = json.loads(path.read_text())
    spoil(report)
    path.write_text(json.dumps(report))
    for given in (None, path):
        with pytest.raises(UserError, match=words):
            write_card(str(student), given)
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        write_card(str(student))
    assert not (student / "README.md").exists()


def test_a_damaged_report_gives_a_card(student: Path) -> None:
    path = student.parent / "report.json"
    report = json.loads(path.read_text())
    for part in ("distances", "memory", "speed", "plan"):
        for value in (None, "x", [], {}, {"student": "x"}, {"extractor": 3, "num_images": {}, "warnings": 3}):
            path.write_text(json.dumps({**report, part: value}))
            write_card(str(student))
            assert "## Distances" in read_card(student)


# --- its use


def test_the_program_of_the_card_works(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = full_report()
    report["distances"]["num_inference_steps"] = 2
    write_evaluation(student, distances=report["distances"])
    write_card(str(student))
    found = re.search(r"```python\n(.*?)```", read_card(student), re.DOTALL)
    assert found
    asked = []
    opening = DiffusionPipeline.from_pretrained

    def opened(name: str, **options: Any) -> DiffusionPipeline:
        asked.append((name, options))
        return opening(student, **options)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", opened)
    names: dict[str, Any] = {}
    exec(found[1], names)
    assert names["image"].size == (16, 16)
    assert asked == [("PATH/TO/THIS/FOLDER", {"trust_remote_code": True})]
    assert f"runs `unet/{CODE_NAME}.py`" in read_card(student)


def test_distill_and_evaluate_write_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    teacher, data = make_tiny_teacher(tmp_path / "teacher"), make_images(tmp_path / "images.npz")
    (teacher / "README.md").write_text("---\nlicense: mit\n---\n")
    run = tmp_path / "run"
    training = {"steps": 1, "batch_size": 2, "sample_every": 0}
    settings = {"teacher": str(teacher), "data": str(data), "output_dir": str(run), "training": training}
    main(["distill", *arguments(settings)])
    words = read_card(run / "student")
    assert "## Not measured yet" in words
    assert "carried over from its own card: mit" in words
    assert "| training | steps 1, batch\\_size 2," in words

    monkeypatch.setattr(evaluation, "evaluate", lambda model, **options: write_evaluation(Path(model)))
    main(["evaluate", str(run / "student"), "--teacher", str(teacher), "--output_dir", str(tmp_path / "other")])
    capsys.readouterr()
    assert read_card(run / "student") == words  # a report of another place is not the card's
    main(["evaluate", str(run / "student"), "--teacher", str(teacher), "--json"])
    assert "| student to data | 250.5" in read_card(run / "student")
    json.loads(capsys.readouterr().out)  # and nothing but the report on standard output


def test_what_has_no_card(student: Path, teacher_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    renew_card(str(teacher_folder), output_dir=teacher_folder.parent, measured=True)
    renew_card("builtin:digits", output_dir=student.parent, measured=True)
    assert not (teacher_folder / "README.md").exists()
    (student / "unet" / f"{CODE_NAME}.py").unlink()  # of a version before
    renew_card(str(student), output_dir=student.parent, measured=True)
    assert not (student / "README.md").exists()
    assert "no model card was written" in caplog.text
