"""A sampling run to disk: images are written as they are made, by one process or several, and a killed run goes on.

Batch b is images b * batch_size ... whoever makes it: process r of n makes the batches with b % n == r. So the
files have the same bytes whatever the number of processes, and after a kill. Another batch_size moves a few pixels by
one level (``sampling.py``), and so does compilation: both are among the settings that a resumed run must share.
"""

import json
import logging
import os
from collections.abc import Sequence
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ..errors import UserError
from ..pipelines.conditioning import Conditioning
from ..pipelines.image_noise import NOISE
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline
from ..processes import on_cpu
from ..sources.image_source import viewable
from ..sources.onnx_model import is_onnx, load_onnx_pipeline
from ..sources.teacher import find_model, sha256_of
from .batch_size import choose_batch_size
from .image_store import ImageStore, NpzStore, open_store
from .pages.pictures import class_titles, grid_shape, image_grid
from .sampling import batches_of, check_classes, check_counts, check_sampler, open_for_sampling, sample_batches

log = logging.getLogger("ddpm_redistill")

WAIT = timedelta(days=7)  # processes end far apart when one of them has more left to do


def sample_to_disk(
    model: str,
    output: str | os.PathLike[str],
    *,
    num_images: int,
    num_inference_steps: int = 50,
    scheduler: str = "ddim",
    spacing: str | None = None,
    eta: float = 0.0,
    seed: int = 0,
    batch_size: int | None = None,
    lean: str | None = None,
    dtype: str = "float32",
    compile: bool | str = "auto",
    labels: Sequence[int] | None = None,
    guidance: float | None = None,
    resume: bool = False,
) -> Path:
    """Sample images 0 ... num_images - 1 of ``seed`` into a folder of PNG files or an .npz -> a picture of the first.

    Args:
        model: a folder, hub id or built-in one, or an ONNX file that ``export`` wrote.
        batch_size: images sampled at once; None: as ``choose_batch_size``, or as the run that is resumed.
        compile: as ``RedDDPMPipeline``; "auto" is on a resumed run what it was.
        labels: of a network with classes, those that images take in turn, image k the label k mod their number; None:
            all classes in turn.
        guidance: the scale of classifier-free guidance; None: as the model is.
        resume: go on with a run of the same settings, to the same bytes; ``num_images`` may have grown.

    Raises:
        UserError: a mistake in any argument, or in what is at ``output`` already, before anything is written.
    """
    # without being told, processes on CPUs would not see each other: each would do all the work
    state = PartialState(cpu=on_cpu(), timeout=WAIT)
    store = open_store(output)
    before = (store.settings() if resume else None) or {}
    if before and before.get("noise") != NOISE:
        raise UserError(
            f"cannot resume {output}: an earlier version began it, whose noise was drawn in another way"
            f" ({before.get('noise', 'image by image')}, and now {NOISE}); give another --output"
        )
    if compile == "auto" and "compile" in before:
        compile = bool(before["compile"])
    if is_onnx(model):
        if lean is not None or dtype != "float32" or compile is True:
            raise UserError(f"{model} runs as it was exported: leave out lean, dtype and compile")
        check_sampler(scheduler, spacing, eta)
        pipeline = load_onnx_pipeline(model).set_scheduler(scheduler, spacing=spacing, eta=eta)
        weights: tuple[Path, ...] = (Path(model),)
        autoencoder: dict[str, Any] = {}
    else:
        options: dict[str, Any] = {"spacing": spacing, "eta": eta, "lean": lean, "dtype": dtype, "compile": compile}
        pipeline = open_for_sampling(model, scheduler, device=state.device, **options)
        found = find_model(model)
        weights, autoencoder = found.weights, found.autoencoder.records() if found.autoencoder else {}
    turns, passes = check_classes(pipeline, labels, guidance)
    why = None
    if batch_size is None and type(before.get("batch_size")) is int:
        batch_size = before["batch_size"]
    elif batch_size is None:
        batch_size, why = choose_batch_size([pipeline], num_images, passes)
        batch_size = broadcast_object_list([batch_size])[0]  # GPUs of several processes may differ in what is free
    check_counts(pipeline, num_images, num_inference_steps, batch_size)
    channels = pipeline.image_shape[0]
    if channels not in (1, 3) and not isinstance(store, NpzStore):
        raise UserError(
            f"{model} makes images of {channels} channels, and PNG files here have 1 or 3: give --output FILE.npz"
        )
    batches = batches_of(num_images, batch_size)
    settings = {
        "model": model,
        "model_sha256": sha256_of(*weights),
        **autoencoder,
        "seed": seed,
        "noise": NOISE,
        "num_images": num_images,
        "num_inference_steps": num_inference_steps,
        "scheduler": scheduler,
        "spacing": pipeline.scheduler.config.timestep_spacing,
        "eta": eta,
        "labels": None if turns is None else list(turns),
        "classes": None if pipeline.conditioning is None else list(pipeline.conditioning.names),
        "guidance": guidance,
        "batch_size": batch_size,
        "dtype": dtype,
        "lean": lean,
        "compile": pipeline.compiles(len(batches) * num_inference_steps),
        "noise_schedule": noise_schedule(pipeline),
        "device": pipeline.device.type,
        "version": version("ddpm-redistill"),
        "torch": torch.__version__,
    }
    store.check(settings, resume=resume)
    state.wait_for_everyone()  # all have looked before one writes
    if state.is_main_process:
        store.start(settings)
    state.wait_for_everyone()

    if why is not None:
        log.info("batch size %d: %s", batch_size, why)
    missing = [batch for batch in batches if not store.is_complete(batch)]
    state.wait_for_everyone()  # all have counted before one adds
    if resume:
        there = num_images - sum(map(len, missing))
        log.info("%d of %d images are there", there, num_images)
    mine = [batch for batch in missing if (batch.start // batch_size) % state.num_processes == state.process_index]
    made = sample_batches(
        pipeline,
        num_images=num_images,
        num_inference_steps=num_inference_steps,
        batch_size=batch_size,
        seed=seed,
        batches=mine,
        label="sampling" if state.num_processes == 1 else f"process 1 of {state.num_processes}",
        show_progress=state.is_main_process,
        labels=turns,
        guidance=guidance,
    )
    for batch, images in zip(mine, made, strict=True):
        store.write(batch, images)
    state.wait_for_everyone()

    grid = grid_path(Path(output))
    if state.is_main_process:
        first_images(store, batches, turns, pipeline.conditioning).save(grid)
        store.finish(batches, settings)
        part = "" if channels in (1, 3) else f", the first of {channels} channels as grey or RGB"
        log.info("%d images in %s, the first of them in %s%s", num_images, output, grid, part)
    state.wait_for_everyone()
    return grid


def noise_schedule(pipeline: RedDDPMPipeline) -> dict[str, Any]:
    """The scheduler's settings without the spacing, and the names and versions that diffusers adds."""
    config = json.loads(pipeline.scheduler.to_json_string())
    return {key: value for key, value in config.items() if not key.startswith("_") and key != "timestep_spacing"}


def grid_path(output: Path) -> Path:
    """Beside the images: ``digits_grid.png`` for the folder ``digits`` and for ``digits.npz``."""
    path = output.resolve()  # "." has a name too
    name = path.stem if path.suffix.lower() == ".npz" else path.name
    return path.with_name(f"{name}_grid.png")


def first_images(
    store: ImageStore, batches: list[range], turns: Sequence[int] | None, conditioning: Conditioning | None
) -> Any:
    """A picture of the first images of a run, where labels are taken in ``turns`` with a column for each; of more
    channels than a picture has the first are shown."""
    columns, shown = grid_shape(turns)
    found: list[torch.Tensor] = []
    for batch in batches:
        if len(found) < shown:
            found += store.read(batch)
    titles = class_titles(turns, conditioning.names) if conditioning else []
    return image_grid(viewable(torch.stack(found[:shown])), columns, titles)
