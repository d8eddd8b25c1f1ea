"""Grids of samples while a network is trained."""

from pathlib import Path

from torchvision.utils import save_image

from ..core.ema import EMA
from ..files import written_aside
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline
from .disk import written

SAMPLE_GRID_IMAGES = 16
SAMPLE_GRID_STEPS = 25


def sample_grid(sampler: RedDDPMPipeline, ema: EMA, path: Path) -> None:
    """Write a PNG of 16 images from fixed noise by the EMA weights; the network keeps its own.

    Raises:
        UserError: the disk refused it.
    """
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
    with written(path, hint="make room, then go on with --resume"):
        path.parent.mkdir(exist_ok=True)
        with written_aside(path) as aside:
            save_image(images, aside, format="png", nrow=8, padding=1)
