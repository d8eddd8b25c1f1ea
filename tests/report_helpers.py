"""What the tests of reports share: made-up reports with every part, and a parser that checks a page's structure."""

import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from PIL import Image

from ddpm_redistill.core.timeline import TimelinePoint

MIB = 2**20
FID, KID = "fd_efficientnet_lite0", "kid_efficientnet_lite0"
VOID = {"meta", "img", "br", "hr", "link", "input"}


def memory_of(scale: float) -> dict[str, Any]:
    return {
        "paper_peak": int(3.5 * MIB * scale),
        "red_paper_peak": 0,
        "paper_peak_with_skips": int(4.5 * MIB * scale),
        "tensor_peak": int(7 * MIB * scale),
        "tensor_peak_with_input": int(7.0625 * MIB * scale),
        "tensor_peak_lean": int(3 * MIB * scale),
        "lean": {"smallest": int(3 * MIB * scale)},
        "peak_module": "up_blocks.3.resnets.0",
        "peak_operation": "aten.silu",
        "live_at_peak": [{"module": "up_blocks.3", "operation": "aten.cat.default", "shape": [1, 3], "bytes": 12}],
        "weights": 142_985_228,
        "parameters": 35_746_307,
        "macs": int(6_068_000_000 * scale),
        "cuda_peak": None,
    }


def speed_of(rate: float, steps: int = 50) -> dict[str, Any]:
    return {
        "images_per_second": rate,
        "seconds": 2000 / rate,
        "num_images": 2000,
        "num_inference_steps": steps,
        "batch_size": 64,
    }


def distance(value: float) -> dict[str, Any]:
    return {
        FID: value,
        f"{FID}_interval": [value - 8.5, value + 9],
        KID: value / 400,
        f"{KID}_std": 0.0625,
        f"{KID}_interval": [value / 500, value / 300],
        "precision": 0.75,
        "recall": 0.5,
        "f_score": 0.6,
    }


def spread(middle: float, width: float) -> dict[str, Any]:
    bins = [middle + width * (i - 10) / 5 for i in range(21)]
    return {
        "mean": middle,
        "std": width,
        "quantiles": {str(q): middle + width * (q - 50) / 27 for q in (5, 25, 50, 75, 95)},
        "histogram": {"edges": bins, "counts": [round(100 * math.exp(-(((i - 9.5) / 5) ** 2))) for i in range(20)]},
    }


def bare(values: dict[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in ("mean", "quantiles")}


def full_report() -> dict[str, Any]:
    """Every part that a report can have."""
    timesteps = [1, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    return {
        "distances": {
            "extractor": {
                "name": "efficientnet-lite0-64px",
                "layer": "1280",
                "resize": "64x64 bilinear antialias",
                "weights_sha256": "57934424" + "0" * 56,
                "fid_name": FID,
                "kid_name": KID,
            },
            "num_images": 2000,
            "num_inference_steps": 50,
            "student_to_data": distance(250.5),
            "teacher_to_data": distance(191.75),
            "student_to_teacher": distance(98.25),
            "warnings": ["fd_efficientnet_lite0 of 2,000 images is biased upwards"],
        },
        "paired": {
            "num_images": 2000,
            "mse": spread(0.0125, 0.004),
            "psnr": spread(19.5, 1.5),
            "ssim": spread(0.8125, 0.05),
        },
        "timestep_error": {
            "timesteps": timesteps,
            "num_images": 256,
            "teacher": [0.5 / (1 + t / 20) for t in timesteps],
            "student": [0.9 / (1 + t / 25) for t in timesteps],
        },
        "steps": [
            {
                "num_inference_steps": steps,
                "student_to_data": distance(180 + 700 / steps),
                "teacher_to_data": distance(120 + 640 / steps),
                "student_to_teacher": distance(60 + 90 / steps),
                "speed": {"student": speed_of(3100 / steps, steps), "teacher": speed_of(1050 / steps, steps)},
            }
            for steps in (10, 25, 50, 100)
        ],
        "nearest": {
            "num_samples": 2000,
            "student_to_data": bare(spread(14.25, 1.5)),
            "teacher_to_data": bare(spread(13.75, 1.5)),
            "data_to_data": bare(spread(13.5, 1.5)),
        },
        "memory": {"teacher": memory_of(1), "student": memory_of(0.25)},
        "speed": {"teacher": speed_of(20.0), "student": speed_of(50.0)},
        "plan": {
            "reduction": 2,
            "teacher_strides": (1, 2, 2, 2),
            "student_strides": [2, 2, 2, 1],
            "red_placement": "full",
            "red_norm": "batch",
            "red_start": "identity",
            "start": "teacher",
            "head_start": "zero",
            "prediction_type": "v_prediction",
            "blocks": [
                {
                    "name": "conv_in.red_out",
                    "channels": 128,
                    "resolution": 16,
                    "teacher_layer": "down_blocks.0.downsamplers.0",
                    "teacher_side": "output",
                    "teacher_resolution": (16, 24),
                }
            ],
        },
        "provenance": {
            "model": "runs/a/student",
            "model_sha256": "a" * 64,
            "teacher": "builtin:digits",
            "teacher_sha256": "b" * 64,
            "data": "builtin:digits",
            "data_sha256": "c" * 64,
            "num_data_images": 5000,
            "scheduler": "ddim",
            "seed": 0,
            "config": {"recipe": "default", "seed": 0, "training": {"steps": 2700, "batch_size": 32}},
            "versions": {"torch": "2.15.0", "list": [1, 2]},
        },
    }


def classes_of(names: list[str]) -> dict[str, Any]:
    """The part of a report by class: the later a class, the larger its distances; the Frechet distance is left out."""
    rows = []
    for label, name in enumerate(names):
        found = {key: value for key, value in distance(100.0 + label).items() if not key.startswith(FID)}
        counts = {"student": 50, "teacher": 50, "data": 60 + label}
        rows.append({"name": name, "num_images": counts, "student_to_data": found, "teacher_to_data": found})
    return {"by_class": rows, "notes": ["2 of 9 classes have fewer than 40 images"]}


def minimal_report() -> dict[str, Any]:
    """One model against data, with the least that ``evaluate`` writes."""
    full = full_report()
    distances = {key: full["distances"][key] for key in ("extractor", "num_images", "student_to_data")}
    return {
        "distances": distances,
        "memory": {"student": full["memory"]["student"]},
        "speed": {"student": full["speed"]["student"]},
        "plan": None,
        "provenance": {"model": "runs/a/student", "data": "builtin:digits", "scheduler": "ddim", "seed": 0},
    }


GRIDS = {"Teacher": Image.new("RGB", (40, 40), "red"), "Student": Image.new("RGB", (40, 40), "blue")}
ROWS = [{"step": step, "loss": 1 / step, "task": 2 / step, "grad_norm": 3.0} for step in range(1, 20)]
PICTURES = {"nearest": Image.new("RGB", (80, 40), "green")}
TIMELINES = {
    name: [
        TimelinePoint(
            index=i,
            operation="aten.silu.default",
            module=f"down_blocks.{i // 10}",
            live_bytes=size * (i if i < 20 else 40 - i),
            skip_bytes=size * i // 3,
            red=name == "student" and 5 < i < 9,
        )
        for i in range(40)
    ]
    for name, size in (("teacher", 40_000), ("student", 10_000))
}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed in its place."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
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

    def check(self) -> None:
        """What every page keeps to: nothing from outside, one h1, tables with headers, pictures with words."""
        assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in self.tags}
        for _, attributes in self.tags:
            assert not any(key.startswith("on") or key in ("href", "action", "srcset") for key in attributes)
        assert all((image["src"] or "").startswith("data:image/png;base64,") for image in self.named("img"))
        assert all(len(image["alt"] or "") > 10 for image in self.named("img"))
        assert "url(" not in self.source
        assert "@import" not in self.source
        policy = next(m["content"] for m in self.named("meta") if m.get("http-equiv") == "Content-Security-Policy")
        assert (policy or "").startswith("default-src 'none'; img-src data:;")
        assert len(self.named("h1")) == 1
        columns = [cell for cell in self.named("th") if cell.get("scope") == "col"]
        assert all(cell.get("scope") in ("col", "row") for cell in self.named("th"))
        assert all(table.get("aria-label") for table in self.named("table"))
        assert len(self.named("thead")) <= len(columns)
        assert len(self.named("tbody")) == len(self.named("table"))
