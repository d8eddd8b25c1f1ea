"""The training loop, shared by ``teach`` and ``distill``: it knows batches, named loss parts and weights, no method."""

import contextlib
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from diffusers import UNet2DModel
from torch import nn
from torchvision.utils import save_image
from tqdm import tqdm

from ..config import TrainingConfig
from ..core.ema import EMA
from ..errors import UserError
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline, seeded_generator
from .checkpoint import (
    Checkpoint,
    adam_state,
    joined_state,
    list_checkpoints,
    load_checkpoint,
    load_joined_state,
    named_parameters,
    restore_adam_state,
    save_checkpoint,
)
from .draws import Draws, micro_batches
from .finite import FiniteWatch
from .run_folder import RunFolder

log = logging.getLogger("ddpm_redistill")

Batch = dict[str, torch.Tensor]
Objective = Callable[..., dict[str, torch.Tensor]]

SAMPLE_GRID_IMAGES = 16
SAMPLE_GRID_STEPS = 25


def make_accelerator(config: TrainingConfig, run: RunFolder) -> Accelerator:
    """Accelerate for this process. Raises UserError when the global batch does not divide into equal shares."""
    accelerator = Accelerator(mixed_precision=config.mixed_precision, log_with="tensorboard", project_dir=str(run.path))
    parts = accelerator.num_processes * config.gradient_accumulation
    if config.batch_size % parts:
        raise UserError(
            f"training.batch_size {config.batch_size} does not divide by {accelerator.num_processes} processes x"
            f" {config.gradient_accumulation} accumulated micro-batches: make it a multiple of {parts}"
        )
    return accelerator


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """Learning rate of optimizer step ``step`` (from 0): linear warm-up, then constant or cosine to 0 at the end.

    A function of the step alone: nothing to save, and the number of processes does not enter.
    """
    warm_up = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "constant":
        return config.learning_rate * warm_up
    progress = max(0, step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    network: UNet2DModel,
    objective: Objective,
    weights: dict[str, float],
    draws: Draws,
    sampler: RedDDPMPipeline,
    config: TrainingConfig,
    run: RunFolder,
    accelerator: Accelerator,
    *,
    resume: bool,
    loss_modules: nn.Module | None = None,
) -> None:
    """Train ``network`` in place and leave it with its EMA weights.

    Args:
        objective: (network as prepared by Accelerate, batch) -> loss parts by name, each a scalar. With
            ``loss_modules`` it is given those, prepared, as a third argument.
        weights: of the parts; a part without a weight is logged only.
        sampler: a pipeline of ``network``, for the sample grids.
        loss_modules: trainable modules of the loss that are no part of the network: optimized, clipped, saved and
            resumed with it, never averaged, dropped at the end.

    Raises:
        UserError: the loss became NaN or infinite (``FiniteWatch``), or the checkpoint to resume from does not fit.
    """
    # 1. optimizer, averages, state
    extra = [] if loss_modules is None else [loss_modules]
    for module in (network, *extra):
        module.to(accelerator.device).train()
    parameters = named_parameters(network, loss_modules)
    # Not with a scaler: Accelerate cannot tell that a fused optimizer skipped a step, and would average it in.
    fused = accelerator.scaler is None and accelerator.device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(parameters.values(), lr=config.learning_rate, fused=fused or None)
    ema = EMA(network, config.ema_decay)
    first_step = 0
    if resume:
        first_step = _restore(network, loss_modules, ema, optimizer, run, accelerator)
    prepared, prepared_optimizer, *prepared_extra = accelerator.prepare(network, optimizer, *extra)
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

    with bar:  # closed whatever happens, so that an error begins a line of its own
        for step in range(first_step, config.steps):
            # 2. one optimizer step
            rate = learning_rate_at(step, config)
            for group in prepared_optimizer.param_groups:
                group["lr"] = rate
            # Dropout is the only draw left to the global random state: make it a function of the step too.
            torch.manual_seed(seeded_generator(draws.seed, "dropout", step, accelerator.process_index).initial_seed())
            logged: dict[str, torch.Tensor] = {}
            for micro in range(config.gradient_accumulation):
                batch = {key: value.to(accelerator.device, non_blocking=True) for key, value in next(batches).items()}
                # Gradients are reduced over processes with the last micro-batch only.
                more = micro < config.gradient_accumulation - 1
                with contextlib.ExitStack() as unsynced:
                    for module in (prepared, *prepared_extra) if more else ():
                        unsynced.enter_context(accelerator.no_sync(module))
                    with accelerator.autocast():
                        parts = objective(prepared, batch, *prepared_extra)
                    loss = sum((weights[name] * parts[name] for name in weights if name in parts), torch.zeros(()))
                    accelerator.backward(loss / config.gradient_accumulation)
                for name, value in {"loss": loss, **parts}.items():
                    logged[name] = logged.get(name, 0) + value.detach() / config.gradient_accumulation
            norm = accelerator.clip_grad_norm_(parameters.values(), config.max_grad_norm)
            prepared_optimizer.step()
            prepared_optimizer.zero_grad()
            if not prepared_optimizer.step_was_skipped:
                ema.update(network)
            done = step + 1
            # A scaler skips a step whose gradients overflow; without one they are in the weights now.
            watch.see(done, logged if accelerator.scaler else {**logged, "grad_norm": norm})

            # 3. what is written down
            seen += draws.batch_size
            bar.update(draws.batch_size)
            last = done == config.steps
            checkpoint_due = last or done % config.checkpoint_every == 0
            if checkpoint_due or done % config.log_every == 0:
                watch.check(accelerator, run.checkpoints)
                means = accelerator.reduce(torch.stack(list(logged.values())), "mean").tolist()
                rate_now = seen / (time.perf_counter() - started)
                row = dict(zip(logged, means, strict=True))
                row |= {"grad_norm": float(norm), "learning_rate": rate, "images_per_second": rate_now}
                row |= {"loss_scale": accelerator.scaler.get_scale()} if accelerator.scaler else {}
                accelerator.log(row, step=done)
                if accelerator.is_main_process:
                    run.append_metrics({"step": done, **row})
                    bar.set_postfix(loss=f"{row['loss']:.4f}")
            grid_due = config.sample_every and (last or done % config.sample_every == 0)
            if accelerator.is_main_process:
                if grid_due:
                    sample_grid(sampler, ema, run.samples / f"step-{done:06d}.png")
                if checkpoint_due:
                    scaler = accelerator.scaler.state_dict() if accelerator.scaler else {}
                    state = {"step": done, "ema_updates": ema.updates, "scaler": scaler}
                    model = joined_state(network, loss_modules)
                    checkpoint = Checkpoint(model, ema.shadow, adam_state(optimizer, list(parameters)), state)
                    save_checkpoint(run.checkpoints, checkpoint, config.keep_checkpoints)
            if grid_due or checkpoint_due:
                accelerator.wait_for_everyone()
    ema.copy_to(network)
    network.eval()


def sample_grid(sampler: RedDDPMPipeline, ema: EMA, path: Path) -> None:
    """Write a PNG of 16 images from fixed noise by the EMA weights; the network keeps its own."""
    network = sampler.unet
    own = {name: value.clone() for name, value in network.state_dict().items()}
    training = network.training
    ema.copy_to(network)
    network.eval()
    steps = min(SAMPLE_GRID_STEPS, sampler.scheduler.config.num_train_timesteps)
    images = sampler(
        SAMPLE_GRID_IMAGES, num_inference_steps=steps, batch_size=SAMPLE_GRID_IMAGES, output_type="pt"
    ).images
    network.load_state_dict(own)
    network.train(training)
    path.parent.mkdir(exist_ok=True)
    save_image(images, path, nrow=8, padding=1)


def _restore(
    network: nn.Module,
    loss_modules: nn.Module | None,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    run: RunFolder,
    accelerator: Accelerator,
) -> int:
    """Load the newest complete checkpoint, the same one in every process -> the step to go on from."""
    newest = [str(path) for path in list_checkpoints(run.checkpoints)[-1:]]
    newest = broadcast_object_list([newest])[0]
    if not newest:
        log.info("no checkpoint in %s yet: starting from the beginning", run.checkpoints)
        if accelerator.is_main_process:
            run.drop_metrics_after(0)
        return 0
    checkpoint = load_checkpoint(Path(newest[0]))
    try:
        load_joined_state(network, loss_modules, checkpoint.model)
        for name, value in ema.shadow.items():
            value.copy_(checkpoint.ema[name])
        restore_adam_state(optimizer, list(named_parameters(network, loss_modules)), checkpoint.optimizer)
    except (RuntimeError, KeyError) as error:
        raise UserError(f"checkpoint {newest[0]} is not of this network: {str(error).splitlines()[0]}") from error
    ema.updates = checkpoint.state["ema_updates"]
    if checkpoint.state["scaler"] and accelerator.scaler:
        accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
    if accelerator.is_main_process:
        run.drop_metrics_after(checkpoint.state["step"])
    log.info("resuming from %s", newest[0])
    return checkpoint.state["step"]
