"""A DDPM, as ``export`` takes it."""

from functools import partial

from torch import Tensor

from ..errors import UserError
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline
from ..sources.class_labels import conditioned
from ..sources.image_source import ImageSource
from ..sources.images import open_images
from ..sources.model_config import check_own_size
from ..sources.teacher import find_model, load_pipeline, sha256_of
from .description import describe
from .exportable import Exportable
from .tracing import image_shape, trace
from .verify import difference


def exportable_ddpm(
    ref: str,
    *,
    batch_size: int | None,
    quantise: str | None,
    data: str | None,
    data_range: float | None,
    calibration_images: int,
) -> Exportable:
    """Raises UserError as ``export_model``."""
    pipeline = load_pipeline(ref)
    check_own_size(ref, pipeline.unet.config)
    if pipeline.vqvae is not None:
        raise UserError(f"{ref} denoises latents, which its autoencoder decodes: only models of pixels are exported")
    feeds = None
    if data is not None:
        from .quantise import calibration_feeds

        images = _images(data, data_range, pipeline)
        feeds = partial(
            calibration_feeds,
            images,
            pipeline.scheduler,
            count=calibration_images,
            batch_size=batch_size,
            labels=_labels(images, pipeline, ref),
            null=_null(pipeline),
        )
    timesteps = pipeline.scheduler.config.num_train_timesteps
    return Exportable(
        description=describe(pipeline, batch_size, sha256_of(*find_model(ref).weights), quantised=quantise),
        output="prediction",
        trace=lambda: trace(pipeline.unet, batch_size),
        error_of=lambda call: difference(pipeline.unet, call, timesteps, batch_size),
        feeds=feeds,
    )


def _images(data: str, data_range: float | None, pipeline: RedDDPMPipeline) -> ImageSource:
    """Of the network's own size and channels."""
    height, width = image_shape(pipeline.unet)
    if height != width:
        raise UserError(f"calibration takes square images, and this network makes {width} x {height}")
    channels = pipeline.unet.config.in_channels
    return open_images(data, image_size=height, channels=channels, data_range=data_range)


def _labels(images: ImageSource, pipeline: RedDDPMPipeline, ref: str) -> Tensor | None:
    """Of the images, int64 (N,), in the numbers of a class-conditional network; None of one without classes."""
    if pipeline.conditioning is None:
        return None
    return conditioned(images, pipeline.unet.config.num_class_embeds, find_model(ref).id2label, ref)[0]


def _null(pipeline: RedDDPMPipeline) -> int | None:
    """The null class of a network that guidance may run with it."""
    classes = pipeline.conditioning
    return classes.null if classes is not None and classes.guidable else None
