"""What rebuilds a classifier, as JSON: its architecture, classes and images. A folder's is read as a stranger's."""

import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..sources.folder_files import read_part
from .own import BUILT_IN, own_networks

ARCHITECTURE = re.compile(r"[a-z0-9_]+:[\w.-]{1,60}")
CONFIG, WEIGHTS = "config.json", "model.safetensors"
LARGEST = 65536
"""Of a whole number in a config: a wider or deeper network is none that is trained here, and takes long to build."""
MOST_ENTRIES = 64
OPTIONAL = ("classes", "student_plan")
"""Of ``ClassifierConfig``: what its JSON need not have."""
OWN = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "file", "url"),
    *("scriptable", "exportable", "no_jit", "features_only", "num_classes", "in_chans", "img_size", "device", "dtype"),
)
"""Arguments of ``timm.create_model`` that a folder may not set: they read files, or are told elsewhere."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """A network of images (B, in_channels, image_size, image_size) to logits (B, num_classes).

    ``architecture`` is ``timm:NAME``, ``wrn:DEPTH-WIDTH`` or of a family of one's own (``own.py``); ``arguments`` go to
    ``timm.create_model``, or to that family. ``mean`` and
    ``std``, by channel, are of pixels from 0 to 1. ``classes`` are their names, empty where they are not known;
    ``student_plan`` is that of a student, as JSON.
    """

    architecture: str
    num_classes: int
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    student_plan: dict[str, Any] | None = None

    def __str__(self) -> str:
        given = "".join(f", {key} {value}" for key, value in self.arguments.items())
        size = f"{self.image_size} px, {self.in_channels} channel{'s' * (self.in_channels != 1)}"
        return f"{self.architecture}{given}, {size}, {self.num_classes} classes"

    def to_dict(self) -> dict[str, Any]:
        """For JSON; ``config_from_dict`` reads it back to an equal config."""
        told = {**asdict(self), **{key: list(getattr(self, key)) for key in ("mean", "std", "classes")}}
        return {key: value for key, value in told.items() if key not in OPTIONAL or value}


def is_folder(ref: str) -> bool:
    """Is it a folder whose ``config.json`` names an architecture?"""
    folder = Path(ref).expanduser()
    if not (folder / CONFIG).is_file():
        return False
    try:
        return isinstance(read_part(folder, folder / CONFIG).get("architecture"), str)
    except UserError:
        return False


def read_config(ref: str) -> ClassifierConfig:
    """Of a folder that was saved here, or of a network that timm saved for the hub.

    Raises:
        UserError: it cannot be read, or a value in it is no classifier's.
    """
    path = Path(ref).expanduser() / CONFIG
    if not path.is_file():
        names = "timm:NAME, FAMILY:NAME of an installed family," if ":" in ref else "timm:NAME,"
        raise UserError(f"{ref} is no classifier: give {names} or a folder of {CONFIG} and {WEIGHTS}")
    told = read_part(path.parent, path)
    if "_class_name" in told:
        raise UserError(f"{ref} is a model of diffusers, {_shown(told['_class_name'])}: a classifier is needed here")
    return config_from_dict(told, str(path))


def config_from_dict(told: dict[str, Any], where: str) -> ClassifierConfig:
    """``where``: what the error names. Raises UserError as ``read_config``."""
    if "pretrained_cfg" in told:
        told = _of_the_hub(told)
    named = set(ClassifierConfig.__dataclass_fields__)
    for key in sorted((named ^ set(told)) - set(OPTIONAL)):
        raise UserError(f"{where} {'has no' if key in named else 'has'} {key}: a classifier's config has {_names()}")
    architecture = told["architecture"]
    if not isinstance(architecture, str) or not ARCHITECTURE.fullmatch(architecture):
        raise UserError(f"{where} has architecture {_shown(architecture)}, which must be timm:NAME or wrn:DEPTH-WIDTH")
    if not architecture.startswith(BUILT_IN):
        own_networks(architecture)
    for key in ("num_classes", "in_channels", "image_size"):
        if type(told[key]) is not int or not 1 <= told[key] <= LARGEST:
            raise UserError(f"{where} has {key} {_shown(told[key])}: whole numbers from 1 to {LARGEST} are possible")
    for key in ("mean", "std"):
        of_channels = _are_numbers(told[key]) and len(told[key]) == told["in_channels"]
        if not of_channels or (key == "std" and min(told[key]) <= 0):
            what = "a number" if key == "mean" else "a number above 0"
            raise UserError(f"{where} has {key} {_shown(told[key])}: give {what} for each of its channels")
    arguments = told["arguments"]
    if not isinstance(arguments, dict) or not all(_is_plain(value) for value in arguments.values()):
        raise UserError(f"{where} has arguments {_shown(arguments)}: numbers up to {LARGEST}, texts and lists of them")
    for key in arguments:
        if key in OWN:
            raise UserError(f"{where} has {key} among its arguments, which is not for it to say")
    plan = told.get("student_plan")
    if plan is not None and not (isinstance(plan, dict) and isinstance(plan.get("edits"), list)):
        raise UserError(f"{where} has student_plan {_shown(plan)}: a plan has a list of edits")
    classes = told.get("classes", [])
    if not isinstance(classes, list) or len(classes) not in (0, told["num_classes"]):
        raise UserError(f"{where} has classes {_shown(classes)}: give the name of each of its {told['num_classes']}")
    if not all(isinstance(name, str) for name in classes):
        raise UserError(f"{where} has classes {_shown(classes)}: names are texts")
    mean, std = tuple(map(float, told["mean"])), tuple(map(float, told["std"]))
    return ClassifierConfig(**{**told, "mean": mean, "std": std, "classes": tuple(classes)})


def _of_the_hub(told: dict[str, Any]) -> dict[str, Any]:
    """timm's own config.json, whose keys are other ones."""
    of_weights = told["pretrained_cfg"] if isinstance(told["pretrained_cfg"], dict) else {}
    size = of_weights.get("input_size")
    channels, height, width = size if isinstance(size, list) and len(size) == 3 else (None, None, None)
    return {
        "architecture": f"timm:{told.get('architecture')}",
        "num_classes": told.get("num_classes"),
        "in_channels": channels,
        "image_size": height if height == width else size,
        "mean": of_weights.get("mean"),
        "std": of_weights.get("std"),
        "arguments": told.get("model_args") or {},
    }


def _names() -> str:
    return ", ".join(ClassifierConfig.__dataclass_fields__)


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) in (int, float) and math.isfinite(each) for each in value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= MOST_ENTRIES and all(_is_plain(each) for each in value)
    if type(value) in (int, float):
        return math.isfinite(value) and abs(value) <= LARGEST
    return value is None or isinstance(value, bool | str)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
