"""The run folder: refuses what holds a run already, keeps the resolved config, metrics and provenance."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from ..config import DistillConfig, TeachConfig
from ..errors import UserError
from ..files import flush, read_metrics, write_aside
from ..students.plan import StudentPlan
from .checkpoint import newest_step
from .disk import on_main, written
from .draws import FIRST_STREAM
from .run_lock import check_unlocked, locked
from .same_run import changed_settings, check_record, flatten

log = logging.getLogger("ddpm_redistill")


class RunFolder:
    """``config.yaml``, ``metrics.jsonl``, ``checkpoints/``, ``samples/``, ``student/`` ... of one run, by path."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"

    def check_place(self, *, resume: bool) -> None:
        """Refuse a folder in which a run is at work, one that holds a run unless that is resumed, or nothing to resume.

        Raises:
            UserError: naming the folder, and who holds it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: give another output_dir")
        check_unlocked(self.path)
        self._check_beginning(resume)

    def _check_beginning(self, resume: bool) -> None:
        if resume and not self.config.exists():
            raise UserError(f"nothing to resume: {self.path} holds no run (no config.yaml)")
        if not resume and self.config.exists():
            raise UserError(f"{self.path} already holds a run: pass --resume to go on, or give another output_dir")

    def check_config(self, config: DistillConfig | TeachConfig, *, resume: bool, anyway: bool = False) -> None:
        """Refuse a resume under another config. ``anyway``: settings that are safe to change may differ (``same_run``).

        Raises:
            UserError: naming the folder and the first setting that differs.
        """
        for key, was, now in self._changes(config, resume=resume, anyway=anyway):
            log.info("going on with %s %s, which was %s", key, now, was)

    def _changes(
        self, config: DistillConfig | TeachConfig, *, resume: bool, anyway: bool
    ) -> list[tuple[str, Any, Any]]:
        if not resume:
            return []
        with self._resumable():
            before = flatten(yaml.safe_load(self.config.read_text()) or {})
            return changed_settings(before, flatten(asdict(config)), newest_step(self.checkpoints), anyway=anyway)

    def recorded_accumulation(self) -> int | None:
        """``training.gradient_accumulation`` of the run, None where its config has none that is a number from 1."""
        with self._resumable():
            found = flatten(yaml.safe_load(self.config.read_text()) or {}).get("training.gradient_accumulation")
        return found if isinstance(found, int) and found >= 1 else None

    def check_records(self, records: dict[str, dict[str, Any]]) -> None:
        """Refuse a resume whose teacher, data or plan are not those that the run recorded.

        Raises:
            UserError: naming the folder and the first entry that differs.
        """
        with self._resumable():
            for name, now in records.items():
                path = self.path / name
                if path.is_file():
                    before = json.loads(path.read_text())
                    if "blocks" in before:  # a plan of before there were edits
                        before = StudentPlan.from_dict(before).to_dict()
                    if "draws" in now and newest_step(self.checkpoints):
                        before.setdefault("draws", FIRST_STREAM)
                    check_record(name, before, json.loads(json.dumps(now)))
                elif newest_step(self.checkpoints):
                    raise UserError(f"{name} is missing, so that nobody can tell whether this is the same run")

    @contextmanager
    def _resumable(self) -> Iterator[None]:
        try:
            yield
        except (UserError, ValueError, AttributeError, yaml.YAMLError) as error:
            raise UserError(f"cannot resume {self.path}: {' '.join(str(error).split())}") from error

    @contextmanager
    def begun(
        self,
        config: DistillConfig | TeachConfig,
        records: dict[str, dict[str, Any]],
        accelerator: Accelerator,
        *,
        resume: bool,
        anyway: bool,
    ) -> Iterator[None]:
        """The folder, made if need be, with the resolved config and ``records`` (JSON by file name) in it, and locked
        inside the ``with``. To be entered by all processes together.

        Raises:
            UserError: in all of them, as ``check``, or the disk refused it.
        """
        with ExitStack() as held:

            def begin() -> None:
                with written(self.path):
                    held.enter_context(locked(self.path))
                self._check_beginning(resume)  # again: nobody else can begin in it now
                self._changes(config, resume=resume, anyway=anyway)
                with written(self.path):
                    self.start(config)
                    for name, content in records.items():
                        write_aside(self.path / name, json.dumps(content, indent=2))

            on_main(accelerator, begin)
            yield

    def start(self, config: DistillConfig | TeachConfig) -> None:
        """Make the folder and write the resolved config."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_aside(self.config, settings_text(config))

    def append_metrics(self, row: dict[str, float]) -> None:
        with written(self.metrics, hint="make room, then go on with --resume"), self.metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def drop_metrics_after(self, step: int) -> None:
        """Forget the rows that a resumed run will write again, and a last line torn by a kill."""
        if self.metrics.exists():
            rows = [row for row in read_metrics(self.metrics) if row["step"] <= step]
            write_aside(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))


def settings_text(config: DistillConfig | TeachConfig) -> str:
    """A resolved config as YAML."""
    return yaml.safe_dump(asdict(config), sort_keys=False)


def write_folder(folder: Path, need: int, save: Callable[[Path], None]) -> None:
    """Have ``save`` write a folder aside, ``need`` bytes of weights, then put it in the place of one that a resumed run
    wrote before.

    Raises:
        UserError: the disk refused it; nothing is left of it.
    """
    aside = folder.with_name(f".{folder.name}.writing")
    with written(folder, need, "make room, then go on with --resume"):
        shutil.rmtree(aside, ignore_errors=True)
        try:
            save(aside)
            for path in aside.rglob("*"):
                flush(path)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(aside, folder)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
