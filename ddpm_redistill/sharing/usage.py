"""The programs of a card, which sample the student: with diffusers alone, and one with classes by this package too."""

import json

from ..pipelines.conditioning import Conditioning
from .markdown import code
from .student import Student, part

SHOWN_LABELS = 4
"""Classes that the programs sample an image of."""

OF_ANYTHING = """from diffusers import DDIMScheduler, DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({repository}, trust_remote_code=True)
pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
image = pipeline(num_inference_steps={steps}).images[0]
"""

OF_CLASSES = """import torch
from diffusers import DDIMScheduler, DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({repository}, trust_remote_code=True)
scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
scheduler.set_timesteps({steps})
labels = torch.tensor({labels})
{more}sample = torch.randn(len(labels), {shape})
with torch.no_grad():
    for t in scheduler.timesteps:
        {prediction}
        sample = scheduler.step(prediction, t, sample).prev_sample
images = pipeline.numpy_to_pil((sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy())
"""
ONE_PASS = "prediction = pipeline.unet(sample, t, class_labels=labels).sample"
GUIDANCE = """guidance = 1.0  # more goes further towards the class
both = torch.cat([labels, torch.full_like(labels, {null})])  # each image with its class, and with the null class
"""
TWO_PASSES = """conditional, null = pipeline.unet(torch.cat([sample, sample]), t, class_labels=both).sample.chunk(2)
        prediction = null + guidance * (conditional - null)"""

BY_THIS_PACKAGE = """from ddpm_redistill import load_pipeline

pipeline = load_pipeline({repository}).set_scheduler("ddim")
images = pipeline(8, num_inference_steps={steps}, class_labels={labels}{guidance}).images
"""


def usage(student: Student, repository: str) -> str:
    """``repository``: what the programs open."""
    first_block = (student.model.config.get("down_block_types") or ["RedUNet2DModel.DownBlock2D"])[0]
    own = f"unet/modeling_red_unet_{student.model.code_version}.py"
    steps = part(student.report, "distances").get("num_inference_steps")
    steps = steps if isinstance(steps, int) else 50
    classes = student.conditioning
    if classes is None:
        program = python(OF_ANYTHING.format(repository=json.dumps(repository), steps=steps))
    else:
        program = programs_of_classes(student, classes, repository, steps)
    return (
        f"{program}\n\n`trust_remote_code=True` runs {code(own)}, the network's class, which needs torch and diffusers"
        " alone: read it first. `ddpm_redistill.load_pipeline` opens the model without running it. It is no"
        f" `UNet2DModel`, and `UNet2DModel.from_pretrained` refuses it: {code(f'{first_block} does not exist')}."
    )


def programs_of_classes(student: Student, classes: Conditioning, repository: str, steps: int) -> str:
    config = student.model.config
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    labels = list(range(min(classes.num_classes, SHOWN_LABELS)))
    same = {"repository": json.dumps(repository), "steps": steps, "labels": labels}
    loop = OF_CLASSES.format(
        **same,
        shape=f"{config['in_channels']}, {height}, {width}",
        more=GUIDANCE.format(null=classes.null) if classes.guidable else "",
        prediction=TWO_PASSES if classes.guidable else ONE_PASS,
    )
    ours = BY_THIS_PACKAGE.format(**same, guidance=", guidance_scale=1.0" if classes.guidable else "")
    return (
        f"{python(loop)}\n\nThe network is called here, since `DDPMPipeline`, as which diffusers opens this folder,"
        " gives it no class labels. Nor does it keep model_index.json's `id2label` and `learned_guidance`, as diffusers"
        " says: to pass the model on copy this folder, do not save the opened pipeline. With ddpm-redistill, where"
        f" the images take the labels in turn:\n\n{python(ours)}"
    )


def python(program: str) -> str:
    return f"```python\n{program}```"
