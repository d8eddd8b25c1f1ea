"""Latent diffusion from nothing on the digits: a tiny autoencoder, a teacher of its latents, and a x2 student.

    python benchmarks/latent_digits.py --output_dir runs/latent_digits

The autoencoder (AutoencoderKL, 32 px to 16 x 16 latents of 2 channels) is trained here, by squared error and a little
KL; its own error is printed, since no image can be better than what it decodes. Teacher and student come from
``teach`` and ``distill``, and are compared in pixels by ``evaluate``. About half an hour on one thread.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from ddpm_redistill import DistillConfig, TeachConfig, TrainingConfig, distill, evaluate, open_images
from ddpm_redistill.cli.text import summary
from ddpm_redistill.pipelines.latents import decode, encode
from ddpm_redistill.training.teach import teach

KL_WEIGHT = 1e-4
BATCH = 64
UNET = {
    "block_out_channels": [32, 48, 48],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
    "attention_head_dim": None,
}


def train_autoencoder(images: torch.Tensor, steps: int) -> AutoencoderKL:
    """``images``: (N, 1, 32, 32) in [-1, 1]. Its scaling factor gives latents a standard deviation of 1."""
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(16, 32),
        latent_channels=2,
        norm_num_groups=8,
        sample_size=32,
    )
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=2e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    bar = tqdm(range(steps), desc="autoencoder", unit="step")
    for _ in bar:
        batch = images[torch.randint(len(images), (BATCH,))]
        posterior = autoencoder.encode(batch).latent_dist
        error = (autoencoder.decode(posterior.sample()).sample - batch).square().mean()
        loss = error + KL_WEIGHT * posterior.kl().mean() / batch[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        bar.set_postfix(mse=f"{error.item():.5f}")
    autoencoder.eval().register_to_config(scaling_factor=1.0)
    latents = encode(autoencoder, images[:1000])
    autoencoder.register_to_config(scaling_factor=float(1 / latents.std()))
    return autoencoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/latent_digits"))
    parser.add_argument("--autoencoder_steps", type=int, default=1500)
    parser.add_argument("--teacher_steps", type=int, default=6000)
    parser.add_argument("--student_steps", type=int, default=3000)
    parser.add_argument("--num_images", type=int, default=1000)
    arguments = parser.parse_args()
    output = arguments.output_dir

    # 1. the autoencoder
    source = open_images("builtin:digits", image_size=32, channels=1)
    images = torch.stack([source[i] for i in range(len(source))]).float() / 127.5 - 1
    autoencoder = train_autoencoder(images, arguments.autoencoder_steps)
    autoencoder.save_pretrained(output / "autoencoder")
    error = (decode(autoencoder, encode(autoencoder, images[:500])) - images[:500]).square().mean().item()
    print(f"autoencoder: mean squared error {error:.5f} of values in [-1, 1], in {output / 'autoencoder'}")

    # 2. a teacher of its latents, and a student of that
    teacher = teach(
        TeachConfig(
            unet=UNET,
            scheduler={"clip_sample": False},
            data="builtin:digits",
            autoencoder=str(output / "autoencoder"),
            output_dir=str(output / "teacher"),
            training=TrainingConfig(
                steps=arguments.teacher_steps, batch_size=32, learning_rate=2e-3, max_grad_norm=1.0, sample_every=2000
            ),
        )
    )
    student = distill(
        DistillConfig(
            teacher=str(teacher),
            data="builtin:digits",
            output_dir=str(output / "student"),
            training=TrainingConfig(
                steps=arguments.student_steps, batch_size=32, learning_rate=2e-3, sample_every=2000
            ),
        )
    )

    # 3. both in pixels
    counted = {"num_images": arguments.num_images, "output_dir": output / "student"}
    print(summary(evaluate(str(student), teacher=str(teacher), data="builtin:digits", **counted)))


if __name__ == "__main__":
    main()
