"""Do images show the classes that were asked for? A classifier's agreement beside distance and speed.

    python benchmarks/class_agreement.py runs/digits_classes/teacher runs/digits_classes_x2/student \
        runs/digits_classes_guided_x2/student --guidance 1.5

The classifier is trained here on the data's labels, on nine images in ten, and its own accuracy is measured on the
tenth: no figure of a model says more than that. Every model makes the same number of images of each class, as it is
and with ``--guidance``: two passes a step, or one of a student that has learned it. The first model is the baseline of
the ratios.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm_redistill import UserError, open_images
from ddpm_redistill.evaluation.extractors import choose_extractor
from ddpm_redistill.evaluation.metrics import extract_features, frechet_and_kid
from ddpm_redistill.evaluation.reference import choose_images
from ddpm_redistill.evaluation.sampling import check_classes, open_for_sampling, sample_images
from ddpm_redistill.pipelines.conditioning import labels_of
from ddpm_redistill.sources.class_labels import conditioned

HELD_BACK = 10
"""One image in so many is not trained on."""


@dataclass(frozen=True)
class Row:
    """Of one model and one guidance (None: as it is): ``agreement`` is the share of images that are classified as the
    class that was asked for; ``fd`` and ``kid`` are distances to the data."""

    model: str
    guidance: float | None
    passes: int
    agreement: float
    fd: float
    kid: float
    images_per_second: float


def main(argv: list[str] | None = None) -> int:
    try:
        return compare(parse_arguments(argv))
    except UserError as error:
        print(f"class_agreement.py: error: {error}", file=sys.stderr)
        return 2


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="class-conditional models, teachers and students")
    parser.add_argument("--data", default="builtin:digits")
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--num_images", type=int, default=2000, help="of each model and guidance")
    parser.add_argument("--sampling_steps", type=int, default=50, help="DDIM steps")
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=20, help="of the classifier")
    parser.add_argument("--output", type=Path, help="a JSON file of the results")
    return parser.parse_args(argv)


def compare(arguments: argparse.Namespace) -> int:
    pipelines = {ref: open_for_sampling(ref, "ddim") for ref in arguments.models}
    for ref, pipeline in pipelines.items():
        if pipeline.conditioning is None:
            raise UserError(f"{ref} has no classes: give class-conditional models")
        check_classes(pipeline, None, arguments.guidance)
    first = next(iter(pipelines.values()))
    config = first.unet.config
    images = open_images(arguments.data, image_size=config.sample_size, channels=config.in_channels)
    labels, conditioning = conditioned(
        images, config.num_class_embeds, first.conditioning.id2label, arguments.models[0]
    )
    classifier, accuracy = train_classifier(torch.stack([*images]), labels, conditioning.num_classes, arguments.epochs)
    extractor = choose_extractor()
    reference = extract_features(choose_images(images, arguments.data, arguments.num_images, seed=0), extractor)
    rows = []
    for ref, pipeline in pipelines.items():
        learned = pipeline.conditioning.learned_guidance
        for guidance in (None, arguments.guidance) if learned is None else (arguments.guidance,):
            passes = check_classes(pipeline, None, guidance)[1]
            samples = sample_images(
                pipeline,
                num_images=arguments.num_images,
                num_inference_steps=arguments.sampling_steps,
                batch_size=arguments.batch_size,
                guidance=guidance,
            )
            asked = labels_of(range(arguments.num_images), conditioning.labels(), torch.device("cpu"))
            found = frechet_and_kid(extract_features(samples.images, extractor), reference)
            agreement = float((predicted(classifier, samples.images) == asked).float().mean())
            fd, kid = found[extractor.fid_name], found[extractor.kid_name]
            rows.append(Row(ref, guidance, passes, agreement, fd, kid, samples.images_per_second))
    print(f"the classifier is right on {accuracy:.1%} of {len(labels) // HELD_BACK} images that it has not seen")
    print(table(rows))
    if arguments.output:
        results = {"classifier_accuracy": accuracy, "rows": [asdict(row) for row in rows]}
        arguments.output.write_text(json.dumps(results, indent=2))
    return 0


def table(rows: list[Row]) -> str:
    """A line for each row; agreement as points above the first model's at the same guidance, speed as a ratio."""
    lines = [
        f"{'model':<44} {'guidance':>8} {'passes':>6} {'agreement':>9} {'points':>7} {'fd':>8} {'kid':>7}"
        f" {'images/s':>9} {'ratio':>6}"
    ]
    for row in rows:
        base = next(each for each in rows if each.guidance == row.guidance)
        lines.append(
            f"{row.model[-44:]:<44} {'none' if row.guidance is None else row.guidance:>8} {row.passes:>6}"
            f" {row.agreement:>9.1%} {100 * (row.agreement - base.agreement):>+7.1f} {row.fd:>8.1f} {row.kid:>7.3f}"
            f" {row.images_per_second:>9.1f} {row.images_per_second / base.images_per_second:>6.2f}"
        )
    return "\n".join(lines)


# --- the classifier


def train_classifier(images: Tensor, labels: Tensor, num_classes: int, epochs: int) -> tuple[nn.Module, float]:
    """uint8 (N, C, H, W) and int64 (N,) -> a small convolutional network, and its accuracy on what was held back."""
    torch.manual_seed(0)
    network = nn.Sequential(
        block(images.shape[1], 32), nn.MaxPool2d(2), block(32, 64), nn.MaxPool2d(2), block(64, 128),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(128, num_classes),
    )  # fmt: skip
    order = torch.randperm(len(images))
    held_back, trained = order[: len(order) // HELD_BACK], order[len(order) // HELD_BACK :]
    steps = epochs * (len(trained) // 64)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    started = time.perf_counter()
    for step in range(steps):
        chosen = trained[torch.randint(len(trained), (64,))]
        loss = F.cross_entropy(network(shifted(scaled(images[chosen]))), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            seconds = time.perf_counter() - started
            left = seconds / (step + 1) * (steps - step - 1)
            print(f"\rclassifier: step {step} of {steps}, {left:.0f} s left  ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    network.eval()
    return network, float((predicted(network, images[held_back]) == labels[held_back]).float().mean())


def block(before: int, after: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())


def scaled(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def shifted(images: Tensor) -> Tensor:
    """By up to two pixels a side, all of a batch alike: samples do not stand where the data do."""
    dx, dy = torch.randint(-2, 3, (2,)).tolist()
    return images.roll((dx, dy), (2, 3))


@torch.no_grad()
def predicted(network: nn.Module, images: Tensor) -> Tensor:
    """Classes int64 (N,) of uint8 (N, C, H, W)."""
    return torch.cat([network(scaled(part)).argmax(1) for part in images.split(500)])


if __name__ == "__main__":
    sys.exit(main())
