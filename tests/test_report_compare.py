"""`ddpm-redistill report`: runs beside each other, what is best, what is not comparable, and what a mistake says."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_helpers import FID, Page, distance, full_report, minimal_report
from training_helpers import refused

from ddpm_redistill.cli import main
from ddpm_redistill.evaluation.report import write_report

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """A run folder under runs/ with a report: full, then changed by a function."""

    def save(name: str, change: Callable[[dict[str, Any]], Any] = lambda report: None) -> Path:
        report = full_report()
        change(report)
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps(report))
        return folder

    return save


def nearer(report: dict[str, Any]) -> None:
    report["distances"]["student_to_data"] = distance(201.25) | {"precision": 0.875, "recall": 0.625}
    report["paired"]["ssim"]["mean"], report["paired"]["psnr"]["mean"] = 0.9, 21.0


def smaller(report: dict[str, Any]) -> None:
    report["memory"]["student"] |= {"tensor_peak": 7 * 2**16, "tensor_peak_lean": 3 * 2**16, "weights": 2**20}
    report["speed"]["student"]["images_per_second"] = 125.5
    report["paired"] = None


def compared(capsys: pytest.CaptureFixture[str], tmp_path: Path, *runs: Path) -> tuple[dict[str, Any], Page]:
    output = tmp_path / "pages" / "all.html"
    capsys.readouterr()
    main(["report", *map(str, runs), "--output", str(output), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["output"] == str(output)
    page = Page(output)
    page.check()
    return found, page


def test_a_table_of_three_runs(capsys, save, tmp_path):
    runs = [save("a"), save("b", nearer), save("c", smaller) / "report.json"]
    found, page = compared(capsys, tmp_path, *runs)
    (table,) = found["tables"]
    assert [row["name"] for row in table["runs"]] == ["a", "b", "c"]
    assert {key: table[key] for key in ("distance", "num_images", "data")} == {
        "distance": FID,
        "num_images": 2000,
        "data": "builtin:digits",
    }
    first = table["runs"][0]
    known = {
        **{"reduction": 2, "red_placement": "full", "recipe": "default", "prediction_type": "v_prediction"},
        **{"training_steps": 2700, "num_images": 2000, "num_inference_steps": 50, "scheduler": "ddim"},
        **{"to_data": 250.5, "to_data_interval": [242.0, 259.5], "kid": 250.5 / 400, "precision": 0.75, "recall": 0.5},
        **{"to_teacher": 98.25, "ssim": 0.8125, "psnr": 19.5, "images_per_second": 50.0},
        **{"tensor_peak": 7 * 2**18, "tensor_peak_lean": 3 * 2**18, "weights": 142_985_228},
    }
    assert {key: first[key] for key in known} == known
    assert table["runs"][2]["ssim"] is None
    # what all have alike is best in none
    best = {"to_data": 201.25, "kid": 201.25 / 400, "precision": 0.875, "recall": 0.625, "ssim": 0.9, "psnr": 21.0}
    best |= {"tensor_peak": 7 * 2**16, "tensor_peak_lean": 3 * 2**16, "weights": 2**20, "images_per_second": 125.5}
    assert table["best"] == best
    bold = [part.split("<")[0] for part in page.source.split("<strong>")[1:]]
    assert bold == ["201.2", "0.5031", "0.875", "0.625", "0.9", "21", "0.44", "0.19", "1.00", "125.5"]
    assert len(page.named("table")) == 1
    assert len(page.named("tr")) == 1 + 3 + 1  # heading, runs, their teacher
    assert [row["name"] for row in table["teachers"]] == ["Teacher builtin:digits"]
    for shown in ("[242, 260]", "2\u00d7 smaller, RED full, recipe default, predicts v_prediction", "not FID", "191.8"):
        assert shown in page.words, shown
    assert len(page.named("img")) == 1


def unknown_count(report: dict[str, Any]) -> None:
    del report["distances"]["num_images"]


def other_extractor(report: dict[str, Any]) -> None:
    report["distances"]["extractor"]["weights_sha256"] = "f" * 64


def other_count(report: dict[str, Any]) -> None:
    report["distances"]["num_images"] = 500


def other_data(report: dict[str, Any]) -> None:
    report["provenance"]["data_sha256"] = "d" * 64


@pytest.mark.parametrize("change", [other_extractor, other_count, other_data])
def test_what_was_not_measured_alike_is_kept_apart(change, capsys, save, tmp_path):
    found, page = compared(capsys, tmp_path, save("a"), save("b", change), save("c", nearer))
    assert [[row["name"] for row in table["runs"]] for table in found["tables"]] == [["a", "c"], ["b"]]
    assert "2 tables, because their distances were not taken alike" in page.words
    assert found["tables"][1]["best"] == {}
    assert len(page.named("table")) == 2


def test_what_does_not_say_how_it_was_measured_is_compared_with_nothing(capsys, save, tmp_path):
    found, _ = compared(capsys, tmp_path, save("a", unknown_count), save("b", unknown_count))
    assert [len(table["runs"]) for table in found["tables"]] == [1, 1]


def test_text_on_the_terminal_says_that_runs_are_apart(capsys, save, tmp_path):
    main(["report", str(save("a")), str(save("b", other_count)), "--output", str(tmp_path / "all.html")])
    assert capsys.readouterr().out == (
        f"1 and 1 runs in separate tables: their distances do not compare\nopen {tmp_path / 'all.html'}\n"
    )


def test_different_sampling_is_said(capsys, save, tmp_path):
    run = save("a")
    _, page = compared(capsys, tmp_path, run, save("b", lambda r: r["distances"].update(num_inference_steps=25)))
    assert "sampled differently" in page.words
    _, page = compared(capsys, tmp_path, run, save("c", nearer))
    assert "sampled differently" not in page.words


def test_one_run_without_a_teacher(capsys, tmp_path):
    write_report(minimal_report(), tmp_path / "mine", grids={}, metrics_rows=None)
    found, page = compared(capsys, tmp_path, tmp_path / "mine")
    assert [row["name"] for row in found["tables"][0]["runs"]] == ["mine"]
    assert found["tables"][0]["teachers"] == []
    assert "Bold" not in page.words
    assert "SSIM" not in page.words
    assert "different teachers" not in page.words


def test_a_second_teacher_is_a_second_reference(capsys, save, tmp_path):
    other = save("b", lambda report: report["provenance"].update(teacher="mine", teacher_sha256="e" * 64))
    found, page = compared(capsys, tmp_path, save("a"), other)
    assert "different teachers" in page.words
    assert [row["name"] for row in found["tables"][0]["teachers"]] == ["Teacher builtin:digits", "Teacher mine"]


def test_the_default_page_is_beside_the_runs_and_renewed(capsys, save, tmp_path, monkeypatch):
    save("a")
    save("b", nearer)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second time runs/* holds the page as well
        main(["report", *sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "runs").iterdir())])
    assert capsys.readouterr().out == "2 runs\nopen runs/comparison.html\n" * 2
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["a", "b", "comparison.html"]


def test_names_tell_runs_apart(capsys, save, tmp_path):
    found, _ = compared(capsys, tmp_path, save("x/run"), save("y/run"), save("y/run/again"))
    assert [row["name"] for row in found["tables"][0]["runs"]] == ["x/run", "y/run", "y/run/again"]
    one = tmp_path / "runs" / "x" / "run"
    (one / "report_25.json").write_text((one / "report.json").read_text())
    found, _ = compared(capsys, tmp_path, one, one / "report_25.json")
    assert [row["name"] for row in found["tables"][0]["runs"]] == ["run/report.json", "run/report_25.json"]


def test_images_made_elsewhere_have_a_row(capsys, save, tmp_path):
    def elsewhere(report: dict[str, Any]) -> None:
        report |= {"memory": {}, "speed": {}, "plan": None}

    found, page = compared(capsys, tmp_path, save("a"), save("b", elsewhere))
    assert found["tables"][0]["runs"][1]["to_data"] == 250.5
    assert len(page.named("img")) == 1


# --- whatever comes

BAD = "<script>alert('\"&')</script>$\\frac{\ud800"


def spoiled(report: dict[str, Any]) -> None:
    for part in (report["plan"], report["provenance"], report["distances"]["extractor"]):
        part.update({key: BAD for key, value in part.items() if isinstance(value, str)})
    report["provenance"]["config"]["recipe"] = BAD
    report["distances"]["student_to_data"] = report["distances"].pop("teacher_to_data")
    report["distances"]["extractor"]["fid_name"] = FID


def test_every_string_is_escaped(capsys, save, tmp_path):
    _, page = compared(capsys, tmp_path, save("<b>$x^{", spoiled), save("_&", spoiled))
    assert "<script" not in page.source
    assert BAD.replace("\ud800", "?") in page.words
    assert "<b>$x^{" in page.words


@pytest.mark.parametrize("junk", [None, float("nan"), "many", -1, 10**300, [], {}, [None, 3], {"mean": "x"}, True])
def test_damaged_values_are_left_out(junk, capsys, save, tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **_: file.write(b"png"))

    def damage(report: dict[str, Any]) -> None:
        report["distances"] |= {"num_inference_steps": junk, "teacher_to_data": junk}
        report["distances"]["student_to_data"] |= {FID: junk, f"{FID}_interval": junk}
        report["memory"]["student"] |= {"tensor_peak": junk, "tensor_peak_lean": junk}
        report |= {"paired": junk, "speed": junk, "plan": junk, "provenance": junk}

    found, _ = compared(capsys, tmp_path, save("a", damage), save("b", damage), save("c"))
    assert [len(table["runs"]) for table in found["tables"]] == [2, 1]  # the data is not known any more
    json.dumps(found, allow_nan=False)


# --- mistakes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "is no report of"),
        ('{"distances": {}}', "is no report of"),
        ('{"memory": {"student": {"tensor_peak": 3}}, "distances": 7}', "is no report of"),
        ('{"distances": {"student_to_data": {"fid": 3}, "extractor": "Inception"}}', "is no report of"),
    ],
)
def test_a_damaged_or_foreign_report(text, says, capsys, caplog, save, tmp_path):
    run = save("a")
    (run / "report.json").write_text(text)
    line = refused(capsys, caplog, ["report", str(save("b")), str(run), "--output", str(tmp_path / "all.html")])
    assert says in line
    assert str(run / "report.json") in line
    assert not (tmp_path / "all.html").exists()


def test_bytes_that_are_no_text(capsys, caplog, save, tmp_path):
    run = save("a")
    (run / "report.json").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as JSON" in refused(capsys, caplog, ["report", str(run)])


def test_absent_and_repeated_runs(capsys, caplog, save, tmp_path):
    assert "there is no nowhere" in refused(capsys, caplog, ["report", "nowhere"])
    (tmp_path / "empty").mkdir()
    assert "there is no report of" in refused(capsys, caplog, ["report", str(tmp_path / "empty")])
    run = save("a")
    assert "is given twice" in refused(capsys, caplog, ["report", str(run), str(run / "report.json")])
    assert "runs" in refused(capsys, caplog, ["report"])


@pytest.mark.parametrize("name", ["report.html", "notes.txt", ""])
def test_nothing_else_is_written_over(name, capsys, caplog, save):
    run = save("a")
    write_report(full_report(), run, grids={}, metrics_rows=None)
    (run / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in run.iterdir()}
    line = refused(capsys, caplog, ["report", str(run), "--output", str(run / name)])
    assert "is there already and is no comparison of runs" in line
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_the_verb_needs_no_torch(save, tmp_path):
    script = f"""
import sys
from ddpm_redistill.cli import main
main(["report", {str(save("a"))!r}, "--output", {str(tmp_path / "all.html")!r}])
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
