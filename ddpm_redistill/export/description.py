"""What travels with an exported network: all that a sampler needs to know, as JSON.

{"format": 1, "network": {"sample_size": 32, "in_channels": 1, "out_channels": 1},
 "scheduler": {...as diffusers' scheduler_config.json, prediction_type included...},
 "batch_size": null, "quantised": null, "model_sha256": "...", "made_by": "ddpm-redistill 0.1.0"}

Of a class-conditional network "network" has "num_class_embeds" too, and beside it are, as in model_index.json,
"id2label": {"0": "cat", "1": "dog"} and "learned_guidance": 2.0 (null: none).
"""

import json
from importlib.metadata import version
from typing import Any

from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline
from ..sources.onnx_model import DESCRIPTION, FORMAT


def describe(pipeline: RedDDPMPipeline, batch_size: int | None, sha256: str, **more: Any) -> dict[str, Any]:
    """``sha256``: of the weights that the network was loaded from; ``more``: what else is to be known."""
    config, conditioning = pipeline.unet.config, pipeline.conditioning
    sizes, classes = ["sample_size", "in_channels", "out_channels"], {}
    if conditioning is not None:
        sizes.append("num_class_embeds")
        classes = conditioning.index_entries
    return {
        "format": FORMAT,
        "network": {key: config[key] for key in sizes},
        **classes,
        "scheduler": json.loads(pipeline.scheduler.to_json_string()),
        "batch_size": batch_size,
        "model_sha256": sha256,
        "made_by": f"ddpm-redistill {version('ddpm-redistill')}",
        **more,
    }


def as_properties(description: dict[str, Any]) -> dict[str, str]:
    """As a file's metadata: texts by name."""
    return {DESCRIPTION: json.dumps(description)}
