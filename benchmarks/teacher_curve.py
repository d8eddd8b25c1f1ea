"""Distance to the data of each checkpoint of a ``teach`` run (EMA weights), as JSON rows: is its curve flat?

    python benchmarks/teacher_curve.py runs/digits_teacher --num_images 2000 --sampling_steps 50

Needs a run that kept all its checkpoints (keep_checkpoints: 0).
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from ddpm_redistill import load_pipeline, open_images, sample_images
from ddpm_redistill.evaluation.extractors import choose_extractor
from ddpm_redistill.evaluation.metrics import extract_features, frechet_and_kid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", default="builtin:digits")
    parser.add_argument("--num_images", type=int, default=2000)
    parser.add_argument("--sampling_steps", type=int, nargs="+", default=[50])
    parser.add_argument("--every", type=int, default=1000, help="training steps between the checkpoints looked at")
    arguments = parser.parse_args()

    run = Path(arguments.run)
    pipeline = load_pipeline(str(run / "teacher")).set_scheduler("ddim")
    config = pipeline.unet.config
    images = open_images(arguments.data, image_size=config.sample_size, channels=config.in_channels)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: arguments.num_images]
    extractor = choose_extractor()
    real = extract_features(torch.stack([images[int(i)] for i in chosen]), extractor)
    for folder in sorted((run / "checkpoints").glob("step-*")):
        step = int(folder.name.removeprefix("step-"))
        if step % arguments.every:
            continue
        pipeline.unet.load_state_dict(load_file(folder / "ema.safetensors"))
        for steps in arguments.sampling_steps:
            samples = sample_images(pipeline, num_images=arguments.num_images, num_inference_steps=steps)
            distances = frechet_and_kid(extract_features(samples.images, extractor), real)
            row = {"step": step, "num_images": arguments.num_images, "ddim_steps": steps, **distances}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
