"""report.json holds every number; report.html is self-contained, escaped, and copes with what is absent."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ddpm_redistill.evaluation.report import write_report

MIB = 2**20


def model(scale: float) -> dict[str, Any]:
    return {
        "paper_peak": int(3.5 * MIB * scale),
        "red_paper_peak": 0,
        "paper_peak_with_skips": int(4.5 * MIB * scale),
        "tensor_peak": int(7 * MIB * scale),
        "peak_module": "up_blocks.3.resnets.0",
        "peak_operation": "aten.silu",
        "weights": 142_985_228,
        "parameters": 35_746_307,
        "macs": int(6_068_000_000 * scale),
    }


def speed(rate: float) -> dict[str, Any]:
    return {
        "images_per_second": rate,
        "seconds": 2000 / rate,
        "num_images": 2000,
        "num_inference_steps": 50,
        "batch_size": 64,
    }


def made(num_images: int = 2000) -> dict[str, Any]:
    return {
        "distances": {
            "extractor": {
                "name": "efficientnet-lite0-64px",
                "layer": "1280",
                "resize": "64x64 bilinear antialias",
                "weights_sha256": "57934424" + "0" * 56,
                "fid_name": "fd_efficientnet_lite0",
            },
            "num_images": num_images,
            "student_to_data": {"fd_efficientnet_lite0": 312.5, "kid_efficientnet_lite0": 1.5},
            "teacher_to_data": {"fd_efficientnet_lite0": 287.5},
            "student_to_teacher": {
                "fd_efficientnet_lite0": 98.25,
                "kid_efficientnet_lite0": 0.5,
                "kid_efficientnet_lite0_std": 0.125,
            },
        },
        "memory": {"teacher": model(1), "student": model(0.25)},
        "speed": {"teacher": speed(20.0), "student": speed(50.0)},
        "plan": {
            "reduction": 2,
            "teacher_strides": (1, 2, 2, 2),
            "student_strides": [2, 2, 2, 1],
            "red_norm": "batch",
            "red_start": "identity",
            "prediction_type": "v_prediction",
            "blocks": [
                {
                    "name": "red_stem",
                    "channels": 128,
                    "resolution": 16,
                    "teacher_layer": "down_blocks.0.downsamplers.0",
                    "teacher_side": "output",
                    "teacher_resolution": (16, 24),
                }
            ],
        },
        "provenance": {"model": "runs/a/student", "versions": {"torch": "2.15.0", "list": [1, 2]}},
    }


GRIDS = {"Teacher": Image.new("RGB", (40, 40), "red"), "Student": Image.new("RGB", (40, 40), "blue")}
ROWS = [{"step": step, "loss": 1 / step, "task": 2 / step, "grad_norm": 3.0} for step in range(1, 20)]
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed in its place."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += " " + data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def written(tmp_path: Path, report: dict[str, Any], **changes: Any) -> tuple[Page, dict[str, Any]]:
    given = {"grids": GRIDS, "metrics_rows": ROWS, **changes}
    path = write_report(report, tmp_path / "new" / "folder", **given)
    assert path == tmp_path / "new" / "folder" / "report.html"
    assert sorted(each.name for each in path.parent.iterdir()) == ["report.html", "report.json"]
    return Page(path), json.loads((path.parent / "report.json").read_text())


def test_a_whole_report(tmp_path: Path) -> None:
    page, saved = written(tmp_path, made())
    assert saved == json.loads(json.dumps(made()))
    for heading in ("Samples", "Distances", "Memory", "Speed and size", "Training", "Plan", "Provenance"):
        assert heading in page.words
    for shown in [
        *("4.00\u00d7", "98.2", "2.50\u00d7", "7,340,032 B", "7.00 MiB", "1.75 MiB", "\u00b1 0.125", "6.07 G"),
        *("35,746,307", "1, 2, 2, 2", "16 \u00d7 24", "its output", "red_stem", "versions \u00b7 torch", "2.15.0"),
    ]:
        assert shown in page.words, shown


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    page, _ = written(tmp_path, made())
    images = page.named("img")
    assert len(images) == 4
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in images)
    assert all(len(image["alt"] or "") > 10 for image in images)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not any(key.startswith("on") or key == "href" for _, attributes in page.tags for key in attributes)
    policy = next(m["content"] for m in page.named("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in (policy or "")
    assert "url(" not in (tmp_path / "new" / "folder" / "report.html").read_text()


def test_every_string_is_escaped(tmp_path: Path) -> None:
    bad = "<script>alert('\"&')</script>"

    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoil(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [spoil(item) for item in value]
        return bad if isinstance(value, str) else value

    report = spoil(made()) | {"provenance": {bad: {bad: bad}}}
    report["distances"][f"{bad}_to_{bad}"] = {bad: 1.0}
    report["plan"]["teacher_strides"] = [bad]
    rows = [{"step": 1, "loss": 0.5, bad: 0.25}]
    page, _ = written(tmp_path, report, grids={bad: GRIDS["Teacher"]}, metrics_rows=rows)
    assert "script" not in {tag for tag, _ in page.tags}
    assert bad in page.words
    assert any(bad in (image["alt"] or "") for image in page.named("img"))


def test_the_bias_is_noted_below_2048_images(tmp_path: Path) -> None:
    few, _ = written(tmp_path / "few", made(2047))
    enough, _ = written(tmp_path / "enough", made(2048))
    assert "biased" in few.words
    assert "2,047" in few.words
    assert "biased" not in enough.words


def test_only_inception_is_called_fid(tmp_path: Path) -> None:
    page, _ = written(tmp_path / "a", made())
    assert "EfficientNet-lite0" in page.words
    assert "not FID" in page.words
    assert page.words.count("FID") == 2  # both in the note that says it is none
    report = made()
    report["distances"]["extractor"] |= {"name": "inception-v3-compat", "fid_name": "fid"}
    report["distances"]["student_to_teacher"] = {"fid": 12.25, "kid": 0.01, "kid_std": 0.001}
    page, _ = written(tmp_path / "b", report)
    assert "FID, Inception" in page.words
    assert "not FID" not in page.words


def test_without_a_teacher_only_the_model_is_shown(tmp_path: Path) -> None:
    report = made()
    for part in ("memory", "speed"):
        del report[part]["teacher"]
    del report["distances"]["teacher_to_data"], report["distances"]["student_to_teacher"]
    page, _ = written(tmp_path, report | {"plan": None}, grids={"Student": GRIDS["Student"]})
    assert "Model report" in page.words
    assert "1.75 MiB" in page.words
    assert "Distance to the data" in page.words
    assert "not measured" not in page.words
    assert "eacher" not in page.words
    assert "Student" not in page.words


@pytest.mark.parametrize("report", [{}, {"distances": None, "memory": {}, "speed": {"student": None}}])
def test_an_empty_report_is_still_a_page(report: dict[str, Any], tmp_path: Path) -> None:
    page, saved = written(tmp_path, report, grids={}, metrics_rows=None)
    assert page.words.count("not measured") == 3
    assert saved == report
    assert "Training" not in page.words


def test_unknown_values_are_dashes_and_null(tmp_path: Path) -> None:
    report = made()
    report["memory"]["student"] = dict.fromkeys(report["memory"]["student"])
    report["distances"]["student_to_teacher"]["fd_efficientnet_lite0"] = math.nan
    report["speed"]["student"]["images_per_second"] = math.inf
    page, saved = written(tmp_path, report)
    assert saved["distances"]["student_to_teacher"]["fd_efficientnet_lite0"] is None
    assert page.words.count("not measured") == 3
    assert "nan" not in page.words.lower().split()


def test_rows_without_losses_leave_the_curves_out(tmp_path: Path) -> None:
    page, _ = written(tmp_path, made(), metrics_rows=[{"step": 1, "loss": 0.0}, {"step": 2, "learning_rate": 1.0}])
    assert "Training" not in page.words


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(made(), tmp_path, grids=GRIDS, metrics_rows=None)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*paths: Any) -> None:
        raise OSError("disk")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk"):
        write_report(made(300), tmp_path, grids=GRIDS, metrics_rows=None)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_json_does_not_know_is_refused_before_writing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Image"):
        write_report({"provenance": {"x": GRIDS["Teacher"]}}, tmp_path, grids={}, metrics_rows=None)
    assert list(tmp_path.iterdir()) == []
