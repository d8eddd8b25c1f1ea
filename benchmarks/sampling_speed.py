"""Student against teacher: images/s of ``RedDDPMPipeline`` at equal DDIM steps, taking turns in one process.

    python benchmarks/sampling_speed.py                             # the CIFAR-10 architecture, x2 student, batch 16
    python benchmarks/sampling_speed.py --red_placement full --json

``student`` is what a student folder opens as; ``folded`` is it after ``fold_batch_norms``, the same images to rounding;
``no RED`` has none of the blocks: how much of the time they take. Then teacher and folded student run lean.
In ``--json``, ``ratio`` is the folded student's images/s over the teacher's.
"""

import argparse
import json
import statistics
import time

import torch
from architectures import ARCHITECTURES
from diffusers import DDPMScheduler, UNet2DModel

from ddpm_redistill import RedDDPMPipeline, StudentConfig, plan_student
from ddpm_redistill.pipelines.red_block import fold_batch_norms
from ddpm_redistill.students.derive import build_student


def pipelines(architecture: str, placement: str, lean: str) -> dict[str, RedDDPMPipeline]:
    """Random weights: time does not depend on them."""
    config = ARCHITECTURES[architecture]
    teacher = UNet2DModel.from_config(config)
    student, folded = (
        build_student(config, plan_student(config, StudentConfig(red_placement=placement))) for _ in range(2)
    )
    without = build_student(config, plan_student(config, StudentConfig(red_placement="none")))
    fold_batch_norms(folded.eval())
    rows = {"teacher": (teacher, False), "student": (student, False), "folded": (folded, False)}
    rows |= {"no RED": (without, False), "teacher, lean": (teacher, lean), "folded, lean": (folded, lean)}
    made = {}
    for name, (unet, setting) in rows.items():
        unet.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        made[name] = RedDDPMPipeline(unet, DDPMScheduler(), lean=setting).set_scheduler("ddim")
        made[name].set_progress_bar_config(disable=True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="cifar10")
    parser.add_argument("--red_placement", choices=("full", "outer", "none"), default="outer")
    parser.add_argument("--lean", choices=("fast", "balanced", "smallest"), default="fast")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3, help="DDIM steps of an image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object instead")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    made = pipelines(arguments.architecture, arguments.red_placement, arguments.lean)
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(arguments.rounds + 1):
        for name, pipeline in made.items():
            started = time.perf_counter()
            pipeline(
                arguments.batch_size,
                num_inference_steps=arguments.steps,
                batch_size=arguments.batch_size,
                output_type="pt",
            )
            seconds[name].append(time.perf_counter() - started)
    speed = {name: arguments.batch_size / statistics.median(taken[1:]) for name, taken in seconds.items()}  # warm
    ratios = {name: value / speed["teacher"] for name, value in speed.items()}
    setting = {**vars(arguments), "torch": torch.__version__, "device": made["teacher"].device.type}
    del setting["json"]
    if arguments.json:
        print(json.dumps({**setting, "ratio": ratios["folded"], "ratios": ratios, "images_per_second": speed}))
        return
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    print(f"{'network':<16}{'images/s':>10}{'against the teacher':>22}")
    for name, value in speed.items():
        print(f"{name:<16}{value:>10.3f}{ratios[name]:>21.2f}x")


if __name__ == "__main__":
    main()
