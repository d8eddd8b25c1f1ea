"""report.json holds every number; report.html is self-contained, escaped, and copes with what is absent."""

import copy
import json
import math
import random
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from diffusers import UNet2DModel
from report_helpers import GRIDS, PICTURES, ROWS, TIMELINES, Page, full_report, minimal_report

from ddpm_redistill.evaluation.report import write_report
from ddpm_redistill.students.footprint import memory_report

EVERYTHING = {"grids": GRIDS, "metrics_rows": ROWS, "pictures": PICTURES, "timelines": TIMELINES}
NOTHING: dict[str, Any] = {"grids": {}, "metrics_rows": None}
SECTIONS = {
    "Samples": ("grids", {}),
    "Distances": ("distances", None),
    "Distance against sampling steps": ("steps", []),
    "The same noise, image by image": ("paired", {}),
    "Noise prediction by timestep": ("timestep_error", None),
    "Nearest data images": ("nearest", None),
    "Memory": ("memory", None),
    "Speed and size": ("speed", None),
    "Training": ("metrics_rows", None),
    "Plan": ("plan", None),
    "Provenance": ("provenance", {}),
}


def written(tmp_path: Path, report: dict[str, Any], **given: Any) -> tuple[Page, dict[str, Any]]:
    given = {**EVERYTHING, **given}
    path = write_report(report, tmp_path / "new" / "folder", **given)
    assert path == tmp_path / "new" / "folder" / "report.html"
    assert sorted(each.name for each in path.parent.iterdir()) == ["report.html", "report.json"]
    page = Page(path)
    page.check()
    return page, json.loads((path.parent / "report.json").read_text())


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are built but not drawn, which takes a second a page."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **_: file.write(b"png"))


def headings(page: Page) -> list[str]:
    return [line.split("</h2>")[0] for line in page.source.split("<h2>")[1:]]


# --- what is shown


def test_a_whole_report(tmp_path: Path) -> None:
    page, saved = written(tmp_path, full_report())
    assert saved == json.loads(json.dumps(full_report()))
    assert headings(page) == list(SECTIONS)
    for shown in [
        *("4.00\u00d7", "98.2", "2.50\u00d7", "7,340,032 B", "7.00 MiB", "1.75 MiB", "3.00 MiB"),  # headline, memory
        *("6.07 G", "35,746,307", "1, 2, 2, 2", "16 \u00d7 24", "its output", "conv_in.red_out", "2.15.0"),
        *("250.5", "[242, 260]", "[0.501, 0.835]", "0.75", "0.5", "is biased upwards"),  # distances
        *("0.8125", "19.5", "0.0125", "14.25", "13.5", "2,000 pairs", "5,000 images of the data"),  # paired, nearest
        *("config \u00b7 training \u00b7 steps", "2700", "c" * 64, "versions \u00b7 torch"),
    ]:
        assert shown in page.words, shown
    assert len(page.named("img")) == 9  # 2 grids, steps, histograms, timesteps, nearest, bars, timeline, losses
    assert len(page.source) < 1_000_000


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("heading", SECTIONS)
def test_an_absent_part_leaves_no_trace(heading: str, tmp_path: Path) -> None:
    part, empty = SECTIONS[heading]
    report, given = full_report(), {"pictures": {}, "timelines": {}}
    if part in EVERYTHING:
        given[part] = empty
    else:
        report[part] = empty
    page, _ = written(tmp_path, report, **given)
    found = headings(page)
    if heading == "Speed and size":  # it has something to say of memory alone
        assert "Images per second" not in page.words
    else:
        assert found == [each for each in SECTIONS if each != heading]


@pytest.mark.usefixtures("undrawn")
def test_the_teacher_is_left_out_of_a_report_without_one(tmp_path: Path) -> None:
    page, _ = written(tmp_path, minimal_report(), **{**NOTHING, "grids": {"Student": GRIDS["Student"]}})
    assert "Model report" in page.words
    assert "1.75 MiB" in page.words
    assert "Distance to the data" in page.words
    assert "95% interval [242, 260]" in page.words
    assert "not measured" not in page.words
    assert "eacher" not in page.words
    assert "Student" not in page.words


@pytest.mark.parametrize("report", [{}, {"distances": None, "memory": {}, "speed": {"student": None}}])
def test_an_empty_report_is_still_a_page(report: dict[str, Any], tmp_path: Path) -> None:
    page, saved = written(tmp_path, report, grids={}, metrics_rows=None, pictures=None, timelines=None)
    assert page.words.count("not measured") == 3
    assert saved == report
    assert headings(page) == []


@pytest.mark.usefixtures("undrawn")
def test_kid_without_an_interval_has_its_spread(tmp_path: Path) -> None:
    report = full_report()
    for name in ("student_to_data", "teacher_to_data", "student_to_teacher"):
        values = report["distances"][name]
        report["distances"][name] = {key: value for key, value in values.items() if not key.endswith("_interval")}
    page, _ = written(tmp_path, report)
    assert "\u00b1 0.0625" in page.words
    assert "95% interval" not in page.words.split("Distance against sampling steps")[0]


@pytest.mark.usefixtures("undrawn")
def test_only_inception_is_called_fid(tmp_path: Path) -> None:
    page, _ = written(tmp_path / "a", full_report())
    assert "EfficientNet-lite0" in page.words
    assert "not FID" in page.words
    assert page.words.count("FID") == 2  # both in the note that says it is none
    report = full_report()
    report["distances"]["extractor"] |= {"name": "inception-v3-compat", "fid_name": "fid", "kid_name": "kid"}
    report["distances"]["student_to_teacher"] = {"fid": 12.25, "kid": 0.01, "kid_std": 0.001}
    report["distances"]["inception_score"] = {"student": {"isc": 8.125, "isc_std": 0.1}, "teacher": {"isc": 9.25}}
    page, _ = written(tmp_path / "b", report)
    assert "FID, Inception" in page.words
    assert "not FID" not in page.words
    assert "Student 8.125, Teacher 9.25" in page.words


@pytest.mark.usefixtures("undrawn")
def test_unknown_values_are_dashes_and_null(tmp_path: Path) -> None:
    report = full_report()
    report["memory"]["student"] = dict.fromkeys(report["memory"]["student"])
    report["distances"]["student_to_teacher"]["fd_efficientnet_lite0"] = math.nan
    report["speed"]["student"]["images_per_second"] = math.inf
    page, saved = written(tmp_path, report)
    assert saved["distances"]["student_to_teacher"]["fd_efficientnet_lite0"] is None
    assert page.words.count("not measured") == 3
    assert "nan" not in page.words.lower().split()


@pytest.mark.usefixtures("undrawn")
def test_rows_without_losses_leave_the_curves_out(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 0.0}, {"step": 2, "learning_rate": 1.0}]
    page, _ = written(tmp_path, full_report(), metrics_rows=rows)
    assert "Training" not in headings(page)


@pytest.mark.usefixtures("undrawn")
def test_images_made_elsewhere_beside_a_teacher(tmp_path: Path) -> None:
    report = full_report()
    for part in ("memory", "speed"):
        del report[part]["student"]
    del report["paired"], report["timestep_error"]
    page, _ = written(tmp_path, report | {"plan": None})
    assert "the same noise" not in page.words
    assert "Model" not in page.words
    assert "Smaller by" not in page.words
    assert "7.00 MiB" in page.words


# --- whatever comes

BAD = "<script>alert('\"&')</script>$\\frac{\ud800</style>"
SHOWN = BAD.replace("\ud800", "?")
JUNK: list[Any] = [
    None,
    [1.0],
    math.nan,
    math.inf,
    -1,
    0,
    1e300,
    10**400,
    True,
    BAD,
    "",
    [],
    {},
    [BAD],
    {BAD: BAD},
    [[None]],
]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything inside a report."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def test_every_string_is_escaped(tmp_path: Path) -> None:
    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoil(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [spoil(item) for item in value]
        return BAD if isinstance(value, str) else value

    report = spoil(full_report()) | {"provenance": {BAD: {BAD: BAD}}}
    report["distances"][f"{BAD}_to_{BAD}"] = {BAD: 1.0}
    report["paired"]["ssim"]["quantiles"] = {BAD: 1.0}
    report["plan"]["teacher_strides"] = [BAD]
    rows = [{"step": 1, "loss": 0.5, BAD: 0.25, "_hidden": 1.0, "$x^{$": 2.0}]
    page, _ = written(tmp_path, report, grids={BAD: GRIDS["Teacher"]}, metrics_rows=rows)
    assert SHOWN in page.words
    assert any(SHOWN in (image["alt"] or "") for image in page.named("img"))
    assert "<script" not in page.source


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("undrawn")
def test_damaged_reports_give_a_page_all_the_same(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    template = json.dumps(full_report())
    for _ in range(20):
        report = json.loads(template)
        for _ in range(chance.choice((1, 3, 30))):
            container, key = chance.choice(list(places(report)))
            if isinstance(container, dict) and chance.random() < 0.3:
                del container[key]
            else:
                container[key] = copy.deepcopy(chance.choice(JUNK))
        page, saved = written(tmp_path, report)
        assert "<script" not in page.source
        assert "NaN" not in json.dumps(saved)
        (tmp_path / "new" / "folder" / "report.html").unlink()


def test_damaged_charts_are_drawn(tmp_path: Path) -> None:
    """As above with the drawing itself, for the values that a chart must leave out."""
    for junk in (None, -1, 10**400, BAD):
        report = full_report()
        report["steps"][1]["teacher_to_data"] = {"fd_efficientnet_lite0": junk}
        report["steps"][2]["student_to_data"]["fd_efficientnet_lite0_interval"] = [junk, 1.0]
        report["timestep_error"]["student"][3] = junk
        report["paired"]["ssim"]["histogram"]["counts"][3] = junk
        report["memory"]["student"]["tensor_peak"] = junk
        page, _ = written(tmp_path, report, metrics_rows=[{"step": junk, "loss": 1.0}, {"step": 2, "loss": 0.5}])
        assert len(page.named("img")) >= 8


@pytest.mark.usefixtures("undrawn")
def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(full_report(), tmp_path, **NOTHING)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*paths: Any) -> None:
        raise OSError("disk")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk"):
        write_report(minimal_report(), tmp_path, **NOTHING)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_json_does_not_know_is_refused_before_writing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Image"):
        write_report({"provenance": {"x": GRIDS["Teacher"]}}, tmp_path, **NOTHING)
    assert list(tmp_path.iterdir()) == []


# --- report.schema.json


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    text = resources.files("ddpm_redistill.evaluation").joinpath("report.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(found)
    return found


@pytest.mark.parametrize("make", [full_report, minimal_report])
def test_the_schema_takes_what_is_written(make: Any, schema: dict[str, Any], tmp_path: Path) -> None:
    _, saved = written(tmp_path, make() | {"plan": make()["plan"]})
    jsonschema.Draft202012Validator(schema).validate(saved)


def test_the_schema_knows_a_real_memory_profile(tiny_teacher: UNet2DModel, schema: dict[str, Any]) -> None:
    report = minimal_report() | {"memory": {"student": json.loads(json.dumps(memory_report(tiny_teacher)))}}
    jsonschema.Draft202012Validator(schema).validate(report)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(extra=1),
        lambda r: r.pop("provenance"),
        lambda r: r["distances"].update(num_images="2000"),
        lambda r: r["distances"]["student_to_data"].update(precision=1.5),
        lambda r: r["distances"]["student_to_data"].update(fid_interval=[1.0]),
        lambda r: r["distances"]["student_to_data"].update(fid="near"),
        lambda r: r["steps"][0].pop("num_inference_steps"),
        lambda r: r["memory"]["teacher"].update(tensor_peak=-1),
        lambda r: r["paired"]["ssim"]["histogram"].pop("edges"),
        lambda r: r["nearest"].pop("data_to_data"),
    ],
)
def test_the_schema_refuses(change: Any, schema: dict[str, Any]) -> None:
    report = json.loads(json.dumps(full_report()))
    change(report)
    assert not jsonschema.Draft202012Validator(schema).is_valid(report)
