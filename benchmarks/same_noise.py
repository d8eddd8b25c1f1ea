"""A picture of what several models make of the same noise, beside images of the data.

    python benchmarks/same_noise.py docs/cifar10.png --data test.npz --image_size 32 --channels 3 \
        --models teacher=FOLDER x2=runs/cifar10_small_x2/student x4=runs/cifar10_small_x4/student
"""

import argparse
import sys
from pathlib import Path

import torch

from ddpm_redistill import UserError, open_images
from ddpm_redistill.evaluation.pages.pictures import image_grid, png_bytes, side_by_side
from ddpm_redistill.evaluation.reference import choose_images
from ddpm_redistill.evaluation.sampling import open_for_sampling, sample_images

COLUMNS = 6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--image_size", type=int, required=True)
    parser.add_argument("--channels", type=int, required=True)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=MODEL")
    parser.add_argument("--num_images", type=int, default=36, help="of each set, the first ones: none is chosen")
    parser.add_argument("--sampling_steps", type=int, default=50, help="DDIM steps")
    arguments = parser.parse_args()
    count = arguments.num_images
    try:
        source = open_images(arguments.data, image_size=arguments.image_size, channels=arguments.channels)
        chosen = choose_images(source, arguments.data, count, seed=0)
        grids = {"data": image_grid(torch.stack([chosen[i] for i in range(count)]), COLUMNS)}
        for named in arguments.models:
            name, _, model = named.partition("=")
            pipeline = open_for_sampling(model, "ddim")
            made = sample_images(pipeline, num_images=count, num_inference_steps=arguments.sampling_steps, label=name)
            grids[name] = image_grid(made.images, COLUMNS)
    except UserError as error:
        print(f"same_noise.py: error: {error}", file=sys.stderr)
        return 2
    arguments.output.write_bytes(png_bytes(side_by_side(grids)))
    print(f"{', '.join(grids)} in {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
