"""The training loop, shared by ``teach`` and ``distill``: it knows batches, named loss parts and weights, no method."""

import contextlib
import logging
import math
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from torch import nn
from tqdm import tqdm

from ..config import TrainingConfig
from ..core.ema import EMA
from ..errors import UserError
from ..pipelines.seeds import seeded_generator
from ..processes import on_cpu
from .checkpoint import save_checkpoint
from .disk import on_main
from .draws import Draws, micro_batches
from .finite import FiniteWatch
from .gradient import Objective
from .resume import Trained
from .run_folder import RunFolder
from .shutdown import Shutdown, Stopped
from .step import OptimizerStep
from .tasks import Task

log = logging.getLogger("ddpm_redistill")

ObjectiveAt = Callable[[int], Objective]


def make_accelerator(config: TrainingConfig, run: RunFolder) -> Accelerator:
    """Accelerate for this process.

    Raises:
        UserError: the global batch does not divide into equal shares, this process has trained in another precision, or
            there are more processes than GPUs.
    """
    if is_initialized() and (before := AcceleratorState().mixed_precision) != config.mixed_precision:
        raise UserError(
            f"training.mixed_precision is {config.mixed_precision}, and this process has trained with {before}:"
            " accelerate keeps one for a process, so start another (in a notebook, restart the kernel)"
        )
    on_cpu()  # raises where there are too many processes
    accelerator = Accelerator(mixed_precision=config.mixed_precision, log_with="tensorboard", project_dir=str(run.path))
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, in which torch computes convolutions there by default
    check_parts(config, accelerator.num_processes)
    return accelerator


def check_parts(config: TrainingConfig, processes: int) -> None:
    """Raises UserError where the global batch does not divide into equal micro-batches."""
    parts = processes * config.gradient_accumulation
    if config.global_batch % parts:
        raise UserError(
            f"training.batch_size {config.global_batch} does not divide by {processes} processes x"
            f" {config.gradient_accumulation} accumulated micro-batches: make it a multiple of {parts}"
        )


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """Learning rate of optimizer step ``step`` (from 0): linear warm-up, then constant, cosine to 0 at the end, or
    multiplied by ``milestone_factor`` at each milestone.

    A function of the step alone: nothing to save, and the number of processes does not enter.
    """
    warm_up = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "constant":
        return config.learning_rate * warm_up
    if config.schedule == "steps":
        passed = sum(step >= round(share * config.steps) for share in config.milestones)
        return config.learning_rate * warm_up * config.milestone_factor**passed
    progress = max(0, step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    network: nn.Module,
    objective_at: ObjectiveAt,
    weights: dict[str, float],
    draws: Draws,
    config: TrainingConfig,
    run: RunFolder,
    accelerator: Accelerator,
    *,
    resume: bool,
    loss_modules: nn.Module | None = None,
) -> None:
    """Train ``network`` in place and leave it with its EMA weights.

    Args:
        objective_at: step, from 0 -> its objective: (network, batch) -> loss parts by name, each a scalar. With
            ``loss_modules`` it is given those as a third argument. A later step may have fewer parts than the first.
        weights: of the parts; a part without a weight is logged only.
        draws: the images, and the task, which is asked to look at the network every ``sample_every`` steps.
        loss_modules: trainable modules of the loss that are no part of the network: optimized, clipped, saved and
            resumed with it, never averaged, dropped at the end.

    Raises:
        UserError: the loss became NaN or infinite (``FiniteWatch``), there is no checkpoint to resume from that is
            intact and fits, or the disk refused what is to be written.
        Stopped: SIGTERM or Ctrl-C; the step in hand is in a checkpoint.
    """
    # 1. optimizer, averages, state
    optimizer_step = OptimizerStep(network, loss_modules, weights, config, accelerator)
    flat, ema = optimizer_step.flat, optimizer_step.ema
    trained = Trained(network, loss_modules, flat, ema, optimizer_step.optimizer, accelerator)
    first_step = trained.restore(run) if resume else 0
    accelerator.init_trackers("tensorboard")
    watch = FiniteWatch(accelerator.device)
    batches = micro_batches(
        draws,
        first_step=first_step,
        last_step=config.steps,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        accumulation=config.gradient_accumulation,
        num_workers=config.num_workers,
        device=accelerator.device,
    )
    bar = tqdm(
        total=config.steps * draws.batch_size,
        initial=first_step * draws.batch_size,
        desc="training",
        unit="image",
        unit_scale=True,
        disable=not accelerator.is_main_process,
        smoothing=0.05,
    )
    started, seen = time.perf_counter(), 0

    # Closed whatever happens: the bar, so that an error begins a line of its own; the batches, with their workers.
    with Shutdown(accelerator) as shutdown, bar, contextlib.closing(batches):
        for step in range(first_step, config.steps):
            # 2. one optimizer step
            rate = learning_rate_at(step, config)
            # Dropout is the only draw left to the global random state: make it a function of the step too.
            torch.manual_seed(seeded_generator(draws.seed, "dropout", step, accelerator.process_index).initial_seed())
            logged, norm = optimizer_step(objective_at(step), batches, rate)
            done = step + 1
            # A scaler skips a step whose gradients overflow; without one they are in the weights now.
            watch.see(done, logged if accelerator.scaler else {**logged, "grad_norm": norm})

            # 3. what is written down
            seen += draws.batch_size
            bar.update(draws.batch_size)
            last, stop = done == config.steps, shutdown.requested()
            checkpoint_due = last or done % config.checkpoint_every == 0
            if checkpoint_due or stop or done % config.log_every == 0:
                watch.check(accelerator, run.checkpoints)
            figures: dict[str, float] = {}
            if config.sample_every and (last or done % config.sample_every == 0):
                figures = on_main(accelerator, partial(_look, draws.task, network, ema, run, done))
            if checkpoint_due or figures or done % config.log_every == 0:
                means = accelerator.reduce(torch.stack(list(logged.values())), "mean").tolist()
                rate_now = seen / (time.perf_counter() - started)
                row = dict(zip(logged, means, strict=True))
                row |= {"grad_norm": float(norm), "learning_rate": rate, "images_per_second": rate_now}
                row |= {"loss_scale": accelerator.scaler.get_scale()} if accelerator.scaler else {}
                row |= figures
                on_main(accelerator, partial(run.append_metrics, {"step": done, **row}))
                accelerator.log(row, step=done)
                bar.set_postfix(loss=f"{row['loss']:.4f}")
            if checkpoint_due or stop:
                saved = on_main(accelerator, partial(_save, trained, done, config, run))
            if stop:
                bar.close()
                if accelerator.is_main_process:
                    name = signal.Signals(stop).name
                    log.warning("stopped by %s after step %d, saved as %s: go on with --resume", name, done, saved)
                accelerator.end_training()
                raise Stopped(stop)
    optimizer_step.finish()


def _look(task: Task, network: nn.Module, ema: EMA, run: RunFolder, step: int) -> dict[str, float]:
    with ema.held_by(network):
        return task.look(network, run.samples, step)


def _save(trained: Trained, step: int, config: TrainingConfig, run: RunFolder) -> Path:
    return save_checkpoint(run.checkpoints, trained.captured(step), config.keep_checkpoints)
