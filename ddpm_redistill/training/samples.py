"""Grids of samples while a network is trained."""

from pathlib import Path

from torchvision.utils import save_image

from ..files import written_aside
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline
from ..sources.image_source import viewable
from .disk import written

SAMPLE_GRID_IMAGES = 16
"""Without classes."""
MOST_COLUMNS = 16
"""Of classes side by side; of more classes the first ones are shown."""
SAMPLE_GRID_STEPS = 25


def sample_grid(sampler: RedDDPMPipeline, path: Path) -> None:
    """Write a PNG of images from fixed noise, 16 or two of each class, one below the other. Of more channels than a
    picture has the first are shown.

    Raises:
        UserError: the disk refused it.
    """
    steps = min(SAMPLE_GRID_STEPS, sampler.scheduler.config.num_train_timesteps)
    classes = sampler.conditioning
    columns = min(classes.num_classes, MOST_COLUMNS) if classes else SAMPLE_GRID_IMAGES // 2
    shown = {"class_labels": range(columns)} if classes else {}
    images = sampler(2 * columns, num_inference_steps=steps, batch_size=2 * columns, output_type="pt", **shown).images
    with written(path, hint="make room, then go on with --resume"):
        path.parent.mkdir(exist_ok=True)
        with written_aside(path) as aside:
            save_image(viewable(images), aside, format="png", nrow=columns, padding=1)
