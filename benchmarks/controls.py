"""Do the distances tell a good student from spoiled ones? The student of a run, and what must be worse than it.

    python benchmarks/controls.py --run runs/demo

The same noise for every row; distances to the run's data at equal n. Exits with 1 when a row marked * is not worse than
the student. The other two are shown without a verdict: on a student of 300 steps they did not move
(docs/evaluation.md).
"""

import argparse
import sys
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

from ddpm_redistill import REDBlock, RedDDPMPipeline, load_pipeline, open_images, sample_images
from ddpm_redistill.evaluation.extractors import choose_extractor
from ddpm_redistill.evaluation.metrics import extract_features, frechet_and_kid
from ddpm_redistill.training.checkpoint import list_checkpoints

STUDENT = "student, as saved (EMA)"
NOISE_SIGMA = 8  # of 255
State = dict[str, Tensor]


def red_blocks(network: nn.Module) -> dict[str, REDBlock]:
    return {name: module for name, module in network.named_modules() if isinstance(module, REDBlock)}


def shuffled_blocks(network: nn.Module) -> tuple[State, int]:
    """The network's state with each RED block's own given to the next block of its shape, and how many moved."""
    by_shape: dict[torch.Size, list[str]] = {}
    for name, block in red_blocks(network).items():
        by_shape.setdefault(block.gate_conv.weight.shape, []).append(name)
    state, moved = dict(network.state_dict()), 0
    for names in by_shape.values():
        for name, other in zip(names, names[1:] + names[:1], strict=True):
            moved += name != other
            tensors = network.get_submodule(other).state_dict()
            state |= {f"{name}.{key}": value for key, value in tensors.items()}
    return state, moved


def permuted_weights(network: nn.Module, seed: int = 0) -> State:
    """The network's state with the entries of each RED parameter in random order."""
    generator = torch.Generator().manual_seed(seed)
    state = dict(network.state_dict())
    for name, block in red_blocks(network).items():
        for key, value in block.named_parameters():
            order = torch.randperm(value.numel(), generator=generator).to(value.device)
            state[f"{name}.{key}"] = value.detach().flatten()[order].view_as(value)
    return state


def noisy(images: Tensor, sigma: float, seed: int = 0) -> Tensor:
    """uint8 (N, C, H, W) -> the same with Gaussian noise of ``sigma`` of 255."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + sigma * noise).round().clamp(0, 255).to(torch.uint8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a run folder with config.yaml, student/ and checkpoints/")
    parser.add_argument("--num_images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=25, help="DDIM steps")
    arguments = parser.parse_args()
    run, num_images = Path(arguments.run), arguments.num_images

    checkpoints = list_checkpoints(run / "checkpoints")
    if not (run / "student").is_dir() or not checkpoints:
        parser.error(f"{run} is no finished run of distill: it needs config.yaml, student/ and checkpoints/")
    config = yaml.safe_load((run / "config.yaml").read_text())
    student, teacher = (load_pipeline(ref).set_scheduler("ddim") for ref in (str(run / "student"), config["teacher"]))
    size, channels = student.unet.config.sample_size, student.unet.config.in_channels
    images = open_images(config["data"], image_size=size, channels=channels)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:num_images]
    shuffled, moved = shuffled_blocks(student.unet)
    swapped = f"* {moved} of {len(red_blocks(student.unet))} RED blocks in another's place"
    disturbed = f"* noise of {NOISE_SIGMA}/255 on the student's images"
    states = {
        STUDENT: dict(student.unet.state_dict()),
        f"raw weights of {checkpoints[-1].name}": load_file(checkpoints[-1] / "model.safetensors"),
        swapped: shuffled,
        "weights within RED blocks permuted": permuted_weights(student.unet),
    }
    # copies: loading one writes into the tensors of the others
    states = {name: {key: value.clone() for key, value in state.items()} for name, state in states.items()}

    def samples(pipeline: RedDDPMPipeline, label: str) -> Tensor:
        return sample_images(pipeline, num_images=num_images, num_inference_steps=arguments.steps, label=label).images

    sets = {"teacher": samples(teacher, "teacher")}
    for name, state in states.items():
        student.unet.load_state_dict(state)
        sets[name] = samples(student, name)
    sets[disturbed] = noisy(sets[STUDENT], NOISE_SIGMA)

    extractor = choose_extractor()
    real = extract_features(torch.stack([images[int(i)] for i in chosen]), extractor)
    rows = {name: frechet_and_kid(extract_features(images, extractor), real) for name, images in sets.items()}

    frechet, kid = extractor.fid_name, extractor.kid_name
    print(f"{run}: distance to {config['data']}, {num_images} images, {arguments.steps} DDIM steps")
    print(f"{'':<40}{frechet:>24}{kid:>26}{'/ student':>11}")
    failed = 0
    for name, row in rows.items():
        ratio = row[frechet] / rows[STUDENT][frechet]
        not_worse = name in (swapped, disturbed) and ratio <= 1
        failed += not_worse
        print(f"{name:<40}{row[frechet]:>24.1f}{row[kid]:>26.3f}{ratio:>10.2f}x{'  NOT WORSE' if not_worse else ''}")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
