"""A network in an ONNX file that ``export`` wrote, run by onnxruntime in the place of a ``UNet2DModel``."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import FrozenDict
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from ..pipelines.conditioning import conditioning_of
from ..pipelines.pipeline_red_ddpm import RedDDPMPipeline
from .image_files import one_line
from .model_config import LARGEST, LARGEST_BY_NAME, check_values
from .noise_schedule import noise_schedule

DESCRIPTION = "ddpm_redistill"
"""The name of our entry in the file's metadata."""
FORMAT = 1
"""Of that entry."""


class OnnxNetwork(nn.Module):
    """Called as a ``UNet2DModel`` is: sample float32 (B, C, H, W), timestep () or (B,), of a class-conditional network
    class_labels int64 (B,) -> (B, C_out, H, W), on CPUs.

    Any B, also where the file was made for one: the batch is then cut and filled up. ``id2label`` and
    ``learned_guidance`` of a class-conditional network: as ``RedDDPMPipeline``.
    """

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, session: Any, description: dict[str, Any]):
        super().__init__()
        self.session = session
        self.config = FrozenDict(description["network"])
        self.scheduler = description["scheduler"]
        self.batch_size = description["batch_size"]
        self.id2label = description.get("id2label")
        self.learned_guidance = description.get("learned_guidance")

    @torch.no_grad()
    def forward(self, sample: Tensor, timestep: Tensor | int, class_labels: Tensor | None = None) -> UNet2DOutput:
        inputs = {"sample": sample, "timestep": torch.as_tensor(timestep, dtype=torch.int64).expand(len(sample))}
        if class_labels is not None:
            inputs["class_labels"] = class_labels
        size = self.batch_size or len(sample)
        filled = math.ceil(len(sample) / size) * size - len(sample)
        split = [F.pad(each, (0, 0) * (each.ndim - 1) + (0, filled)).split(size) for each in inputs.values()]
        parts = [
            self.session.run(None, {name: each.numpy() for name, each in zip(inputs, part, strict=True)})[0]
            for part in zip(*split, strict=True)
        ]
        return UNet2DOutput(sample=torch.cat([torch.from_numpy(part) for part in parts])[: len(sample)])


def is_onnx(ref: str) -> bool:
    return ref.lower().endswith(".onnx")


def load_onnx_pipeline(path: str) -> RedDDPMPipeline:
    """A pipeline of the network in an ONNX file, with DDPM sampling over the noise schedule that it was trained with.

    Raises:
        UserError: as ``open_onnx``.
    """
    network = open_onnx(path)
    classes = {"id2label": network.id2label, "learned_guidance": network.learned_guidance}
    return RedDDPMPipeline(network, noise_schedule(path, network.scheduler), **classes)  # type: ignore[arg-type]


def open_onnx(path: str) -> OnnxNetwork:
    """Raises UserError as ``open_session``, and where ``export`` did not write the file, or of a classifier."""
    session = open_session(path)
    properties = session.get_modelmeta().custom_metadata_map
    if DESCRIPTION not in properties:
        raise UserError(f"{path} does not say how to sample from it: give a file that `ddpm-redistill export` wrote")
    return OnnxNetwork(session, _checked(properties[DESCRIPTION], session, path))


def open_session(path: str) -> Any:
    """onnxruntime's own, with as many threads as torch has.

    Raises:
        UserError: onnxruntime is not installed, or cannot read the file.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{path} needs onnxruntime: pip install 'ddpm-redistill[export]'") from None
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what it cannot read it raises, and says a second time on standard error
    # int8 weights are weights: onnxruntime would round the inputs of linear layers to 8 bits too
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no class but this
        raise UserError(f"onnxruntime cannot read {path}: {one_line(error)}") from error


def _checked(text: str, session: Any, path: str) -> dict[str, Any]:
    """Raises UserError when the description is not one, or of another network than the file's."""
    try:
        found = json.loads(text)
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']!r} is not {FORMAT}")
        if "scheduler" not in found and "input" in found:
            raise UserError(f"{path} is a classifier: a DDPM is needed here")
        network, batch_size = found["network"], found["batch_size"]
        size = network["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        told = [batch_size, network["in_channels"], height, width]
        for value in (*told[1:], network["out_channels"], batch_size or 1):
            if type(value) is not int or not 1 <= value <= LARGEST:
                raise ValueError(f"{value!r} is no size")
        _check_classes(network, found.get("id2label"), found.get("learned_guidance"))
        inputs = {each.name: each for each in session.get_inputs()}
        classes = {"class_labels"} if "num_class_embeds" in network else set()
        if inputs.keys() != {"sample", "timestep"} | classes:
            raise ValueError(f"the inputs are {', '.join(inputs)}")
        shape = [side if isinstance(side, int) else None for side in inputs["sample"].shape]
        if shape != told:
            raise ValueError(f"the shape is {shape}, not {told}")
        check_values(found["scheduler"], DDPMScheduler, Path(path))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} describes another network than it holds: {one_line(error)}") from error
    return dict(found)


def _check_classes(network: dict[str, Any], id2label: Any, learned_guidance: Any) -> None:
    """Raises ValueError when this is not of the network's class embeddings."""
    embeddings = network.get("num_class_embeds", 1)
    if type(embeddings) is not int or not 1 <= embeddings <= LARGEST_BY_NAME["num_class_embeds"]:
        raise ValueError(f"{embeddings!r} is no number of class embeddings")
    conditioning_of(network.get("num_class_embeds"), id2label, learned_guidance)
