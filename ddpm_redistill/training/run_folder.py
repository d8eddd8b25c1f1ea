"""The run folder: refuses what holds a run already, keeps the resolved config, metrics and provenance."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from ..config import DistillConfig, TeachConfig
from ..errors import UserError
from ..files import read_metrics, write_aside
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline


class RunFolder:
    """``config.yaml``, ``metrics.jsonl``, ``checkpoints/``, ``samples/``, ``student/`` ... of one run, by path."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"

    def check(self, config: DistillConfig | TeachConfig, *, resume: bool) -> None:
        """Refuse a folder that already holds a run unless it is resumed, or a resume under another config.

        Raises:
            UserError: naming the folder, and the first setting that differs.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: give another output_dir")
        if not self.config.exists():
            if resume:
                raise UserError(f"nothing to resume: {self.path} holds no run (no config.yaml)")
            return
        if not resume:
            raise UserError(f"{self.path} already holds a run: pass --resume to go on, or give another output_dir")
        before, now = flatten(yaml.safe_load(self.config.read_text()) or {}), flatten(asdict(config))
        # A setting that the run's version had not is no difference; arguments of diffusers' classes are all or nothing.
        theirs = {key for key in now if key.startswith(("unet.", "scheduler."))}
        for key in sorted(before.keys() | theirs):
            if key != "output_dir" and before.get(key) != now.get(key):
                raise UserError(
                    f"cannot resume {self.path}: {key} was {before.get(key)} and is now {now.get(key)};"
                    " use the same config or another output_dir"
                )

    def start(self, config: DistillConfig | TeachConfig) -> None:
        """Make the folder and write the resolved config."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_aside(self.config, settings_text(config))

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        write_aside(self.path / name, json.dumps(content, indent=2))

    def append_metrics(self, row: dict[str, float]) -> None:
        with self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def drop_metrics_after(self, step: int) -> None:
        """Forget the rows that a resumed run will write again, and a last line torn by a kill."""
        if self.metrics.exists():
            rows = [row for row in read_metrics(self.metrics) if row["step"] <= step]
            write_aside(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))


def settings_text(config: DistillConfig | TeachConfig) -> str:
    """A resolved config as YAML."""
    return yaml.safe_dump(asdict(config), sort_keys=False)


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; tuples become lists, as YAML has them."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def write_pipeline(pipeline: RedDDPMPipeline, folder: Path) -> None:
    """Write a pipeline folder aside, then put it in the place of one that a resumed run wrote before."""
    aside = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    pipeline.save_pretrained(aside)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(aside, folder)
