"""What ``distill`` and ``teach`` do alike around the loop: a run is checked, begun, trained and written."""

import logging
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from ..config import DistillConfig, TeachConfig, TrainingConfig
from ..provenance import environment
from ..sources.image_source import ImageSource
from .disk import on_main
from .draws import STREAM, Draws
from .fit import MemoryOf, fitted
from .loop import ObjectiveAt, check_parts, make_accelerator, train
from .run_folder import RunFolder
from .tasks import Task

log = logging.getLogger("ddpm_redistill")


@dataclass(frozen=True)
class Run:
    """A run whose folder and share of the processes are checked; nothing is written yet.

    ``config`` is not compared with that of a run that is resumed before ``settled``.
    """

    config: DistillConfig | TeachConfig
    folder: RunFolder
    accelerator: Accelerator
    resume: bool
    anyway: bool

    def fitted(self, training: TrainingConfig, memory_of: MemoryOf) -> TrainingConfig:
        """With the limit of the gradient as a number, and the micro-batches that its ``memory_budget`` asks for, said
        in a line; a run that is resumed keeps its own.

        Raises:
            UserError: as ``fit.fitted``, or the batch does not divide by them.
        """
        training = replace(training, max_grad_norm=training.clip_norm)
        if training.memory_budget is None:
            return training
        recorded = self.folder.recorded_accumulation() if self.resume else None
        if recorded is None:
            return fitted(training, memory_of, self.accelerator)
        log.info("micro-batches as the run that is resumed has them: training.gradient_accumulation %d", recorded)
        training = replace(training, memory_budget=None, gradient_accumulation=recorded)
        check_parts(training, self.accelerator.num_processes)
        return training

    def settled(self, config: DistillConfig | TeachConfig) -> "Run":
        """With the config that the data have settled, and that of a run that is resumed is.

        Raises:
            UserError: a setting differs from what the folder holds.
        """
        self.folder.check_config(config, resume=self.resume, anyway=self.anyway)
        return replace(self, config=config)

    def records(
        self, places: dict[str, str], contents: dict[str, Any], plan: dict[str, Any] | None = None
    ) -> dict[str, dict[str, Any]]:
        """What the folder keeps of the inputs: where they lie, what they are; as JSON by file name.

        Raises:
            UserError: a run that is resumed had other ``contents`` or another ``plan``.
        """
        plans, contents = {"plan.json": plan} if plan else {}, {**contents, "draws": STREAM}
        if self.resume:
            self.folder.check_records({**plans, "provenance.json": contents})
        return {**plans, "provenance.json": {**places, **contents, **environment()}}

    def begun(self, records: dict[str, dict[str, Any]]) -> AbstractContextManager[None]:
        """The folder, locked, with ``records`` in it: see ``RunFolder.begun``."""
        log.info("running %d process(es) on %s", self.accelerator.num_processes, self.accelerator.device)
        return self.folder.begun(self.config, records, self.accelerator, resume=self.resume, anyway=self.anyway)

    def train(
        self,
        network: nn.Module,
        task: Task,
        images: ImageSource,
        objective_at: ObjectiveAt,
        weights: dict[str, float],
        name: str,
        *,
        loss_modules: nn.Module | None = None,
    ) -> Path:
        """``loop.train`` of ``task`` on ``images``; returns the result's folder, ``output_dir/name``, which the task
        writes: EMA weights."""
        config = self.config
        draws = Draws(
            task.prepared(images, self.accelerator.device),
            task,
            seed=config.seed,
            batch_size=config.training.global_batch,
        )
        where = {"run": self.folder, "accelerator": self.accelerator, "resume": self.resume}
        train(network, objective_at, weights, draws, config.training, loss_modules=loss_modules, **where)
        written = self.folder.path / name
        on_main(self.accelerator, lambda: task.write(network, written))
        log.info("%s written to %s", name, written)
        self.accelerator.end_training()  # ends the process group too: nothing may wait after it
        return written


def open_run(config: DistillConfig | TeachConfig, *, resume: bool, anyway: bool) -> Run:
    """Check the folder, and how the batch divides. ``anyway`` is a resume too.

    Raises:
        UserError: as ``RunFolder.check_place`` and ``make_accelerator``.
    """
    folder, resume = RunFolder(config.output_dir), resume or anyway
    folder.check_place(resume=resume)
    return Run(config, folder, make_accelerator(config.training, folder), resume, anyway)
