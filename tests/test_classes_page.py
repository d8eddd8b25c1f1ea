"""What report.html, report.json and the terminal show of classes: many of them, damaged ones, other guidance."""

import copy
import json
import random
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from report_helpers import FID, KID, Page, classes_of, full_report

from ddpm_redistill.cli import main
from ddpm_redistill.cli.text import classes_table
from ddpm_redistill.evaluation.report import write_report

SCHEMA = json.loads(resources.files("ddpm_redistill.evaluation").joinpath("report.schema.json").read_text())


def test_a_thousand_classes_are_shortened() -> None:
    classes = classes_of([f"class {i}" for i in range(1000)])
    lines = classes_table(classes, KID).splitlines()
    assert len(lines) == 2 + 20 + 1 + len(classes["notes"])
    assert "980 more classes in report.json" in lines[-2]
    assert lines[2].split()[:2] == ["class", "999"]
    assert max(map(len, lines)) < 130
    counts_alone = {"by_class": [{"name": "a", "num_images": {"student": 3, "data": 3}}], "notes": ["too few"]}
    assert classes_table(counts_alone, KID) == "note: too few"


def test_the_page_has_the_worst_hundred_and_counts_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **_: file.write(b"png"))
    report = full_report() | {"classes": classes_of([f"class {i}" for i in range(130)])}
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(report)))
    page = Page(write_report(report, tmp_path, grids={}, metrics_rows=None))
    page.check()
    shown = [f"class {i} " in page.words for i in range(130)]
    assert shown == [False] * 30 + [True] * 100
    assert "30 more classes are in report.json." in page.words
    assert "2 of 9 classes have fewer than 40 images." in page.words


def test_damaged_classes_give_a_page_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **_: file.write(b"png"))
    chance = random.Random(0)
    whole = {"distances": full_report()["distances"], "classes": classes_of(["<b>", "a", "b"])}

    def places(value: Any) -> Any:
        for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []:
            yield value, key
            yield from places(value[key])

    for _ in range(60):
        report = copy.deepcopy(whole)
        for _ in range(3):
            container, key = chance.choice(list(places(report["classes"])))
            container[key] = chance.choice([None, [], {}, "<script>", -1, 10**400, float("nan"), [None], {"a": [1]}])
        page = Page(write_report(report, tmp_path, grids={}, metrics_rows=None))
        page.check()
        assert "<script" not in page.source


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("notes"),
        lambda c: c["by_class"][0].pop("name"),
        lambda c: c["by_class"][0]["num_images"].update(data=-1),
        lambda c: c["by_class"][0].update(student_to_teacher={}),
        lambda c: c["by_class"][0]["student_to_data"].update(precision=2),
    ],
)
def test_the_schema_refuses(change: Any) -> None:
    report = json.loads(json.dumps(full_report() | {"classes": classes_of(["a", "b"])}))
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(report)
    change(report["classes"])
    assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(report)


def test_runs_of_other_guidance_say_so_beside_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **_: file.write(b"png"))
    for scale in (1.5, 3.0):
        report = full_report()
        for who in ("student", "teacher"):
            report["speed"][who] |= {"guidance": scale, "passes_per_step": 2}
        write_report(report, tmp_path / f"run-{scale}", grids={}, metrics_rows=None)
    runs = [str(tmp_path / f"run-{scale}") for scale in (1.5, 3.0)]
    capsys.readouterr()
    main(["report", *runs, "--output", str(tmp_path / "all.html"), "--json"])
    table = json.loads(capsys.readouterr().out)["tables"][0]
    assert [row["guidance"] for row in table["runs"]] == [1.5, 3.0]
    assert len(table["teachers"]) == 2
    words = Page(tmp_path / "all.html").words
    assert "sampled differently" in words
    assert "Guidance" in words
    assert FID in table["distance"]
