"""Mistakes of export, push and exported files: rows of ``test_bad_inputs.py``, and what they are made with."""

import hashlib
import json
import shutil
import struct
from pathlib import Path

import torch
from bad_input_helpers import Row
from export_helpers import make_student
from safetensors.torch import load_file, save_file
from training_helpers import UNET_WEIGHTS, make_tiny_teacher


def make_exports(place: Path) -> None:
    """All that the rows below are made with, beside what ``make_place`` makes."""
    student = make_student(place / "student")

    def copy(name: str) -> Path:
        return Path(shutil.copytree(student, place / name))

    weights = copy("cut_student") / UNET_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    state = load_file(student / UNET_WEIGHTS)
    state["conv_in.layer.bias"][0] = torch.nan
    save_file(state, copy("nan_student") / UNET_WEIGHTS)
    with next((copy("edited") / "unet").glob("*.py")).open("a") as code:
        code.write("import os\n")
    next((copy("codeless") / "unet").glob("*.py")).unlink()
    (copy("telling") / "notes.txt").symlink_to(place / "images.npz")
    runs(place, student)
    for name, changes in {
        "no_size": {"sample_size": None},
        "odd_size": {"sample_size": 20},
        "labelled": {"num_class_embeds": 4},
        "unequal": {"in_channels": 3},
        "score_sde": {"time_embedding_type": "fourier"},
    }.items():
        make_tiny_teacher(place / name, **changes)
    (place / "text.onnx").write_text("hello")
    (place / "text.pte").write_text("hello")
    header = struct.pack("<4sIQQQ", b"eh00", 32, 48, 64, 10**6)
    (place / "cut.pte").write_bytes(struct.pack("<I4s", 40, b"ET12") + header + bytes(1000))


def runs(place: Path, student: Path) -> None:
    """A run that was killed before its student was written, and one that has a report of other weights."""
    for name in ("unfinished", "finished"):
        (place / name).mkdir()
        (place / name / "config.yaml").write_text("teacher: builtin:digits")
        (place / name / "provenance.json").write_text("{}")
    shutil.copytree(student, place / "finished" / "student")
    other = {"provenance": {"model_sha256": hashlib.sha256(b"other").hexdigest()}}
    (place / "finished" / "report.json").write_text(json.dumps(other))


def export_rows() -> list[Row]:
    onnx = "export {place}/student --format onnx --output {out}.onnx"
    archive, program = "--format torch_export --output {out}.pt2", "--format executorch --output {out}.pte"
    int8 = f"{onnx} --quantise int8 --data {{data}}"
    push = "push {place}/%s me/mine --dry_run"
    return [
        Row("an unknown format", "export {place}/student --format tflite --output {out}.onnx", "format 'tflite'"),
        Row("a file that another format ends in", "export {place}/student --format onnx --output {out}.pt2", ".onnx"),
        Row("an opset too old", f"{onnx} --opset 11", "opset 11 cannot be written: opsets 18 to 25 can"),
        Row("an opset to come", f"{onnx} --opset 99", "opset 99 cannot be written: opsets 18 to 25 can"),
        Row("an opset of another format", f"export {{place}}/student {archive} --opset 18", "--opset is for ONNX"),
        Row("onnxruntime is not installed", onnx, "pip install 'ddpm-redistill[export]'", "onnxruntime"),
        Row(
            "executorch is not installed",
            f"export {{place}}/student {program} --batch_size 1",
            "pip install 'ddpm-redistill[executorch]'",
            "executorch",
        ),
        Row("a program of any batch size", f"export {{place}}/student {program}", "plans its memory ahead"),
        Row("files of no images a call", f"{onnx} --batch_size 0", "batch_size must be at least 1, not 0"),
        Row("a folder that takes no files", "export {place}/student --format onnx --output /proc/a.onnx", "/proc"),
        Row("a file in a folder that is not there", f"{onnx}/no/a.onnx", "there is no folder {out}.onnx/no to write"),
        Row(
            "a file that is there", "export {place}/student --format onnx --output {place}/text.onnx", "exists already"
        ),
        Row("an unknown quantisation", f"{onnx} --quantise int4", "expected one of int8_weights, int8"),
        Row("a quantised archive", f"export {{place}}/student {archive} --quantise int8_weights", "is for ONNX"),
        Row("int8 without images", f"{onnx} --quantise int8", "--quantise int8 and --data go together"),
        Row(
            "images that nothing is calibrated on", f"{onnx} --data {{data}}", "--quantise int8 and --data go together"
        ),
        Row("an empty calibration set", f"{int8} --calibration_images 0", "the calibration set is empty"),
        Row(
            "a calibration of nothing", f"{onnx} --calibration_images 9", "--calibration_images is for --quantise int8"
        ),
        Row(
            "a range of no calibration", f"{onnx} --data_range 4095", "--data_range is of the images that --data gives"
        ),
        Row("calibration on no images", f"{onnx} --quantise int8 --data {{place}}/empty", "no images in {place}/empty"),
        Row("calibration on torn images", f"{onnx} --quantise int8 --data {{place}}/torn", "torn/a.png"),
        Row("an export of a folder", f"export {{place}}/empty {archive}", "is no diffusers model"),
        Row("an export of a file", f"export {{place}}/text.onnx {archive}", "is a file: give the diffusers folder"),
        Row("an export of a run", f"export {{place}}/finished {archive}", "give {place}/finished/student"),
        Row("an export of an unfinished run", f"export {{place}}/unfinished {archive}", "has not finished"),
        Row("an export of NaN", f"export {{place}}/nan_student {archive}", "not finite, first in conv_in.layer.bias"),
        Row("an export of no image size", f"export {{place}}/no_size {archive}", "has no sample_size"),
        Row("a size that the network does not divide", f"export {{place}}/odd_size {archive}", "does not divide by 8"),
        Row("a class that is none", "sample {place}/labelled --labels 1,4 --output {out}", "label 4 is none of"),
        Row("labels that are no numbers", "sample {place}/labelled --labels cat --output {out}", "--labels is 'cat'"),
        Row("guidance without a null class", "sample {place}/labelled --guidance 2 --output {out}", "has none"),
        Row("guidance of no size", "sample {place}/labelled --guidance=-1 --output {out}", "finite number"),
        Row("labels of no classes", "sample {place}/teacher --labels 1 --output {out}", "this model has no classes"),
        Row(
            "guidance of no classes", "sample {place}/teacher --guidance 2 --output {out}", "this model has no classes"
        ),
        Row(
            "classes of data without labels",
            "distill --teacher {place}/labelled --data {place}/images.npz --output_dir {out}",
            "have no labels: give a folder with a folder for each class",
        ),
        Row("samples of no image size", "sample {place}/no_size --output {out}", "has no sample_size"),
        Row("samples of another number of channels", "sample {place}/unequal --output {out}", "3 channels in, 1 out"),
        Row("samples of a score-SDE network", "sample {place}/score_sde --output {out}", "not a DDPM"),
        Row("a run to be measured", "evaluate {place}/finished --data {data}", "give {place}/finished/student"),
        Row("text named .onnx", "sample {place}/text.onnx --output {out}", "onnxruntime cannot read"),
        Row("an .onnx that is not there", "sample {place}/no.onnx --output {out}", "there is no file {place}/no.onnx"),
        Row("onnxruntime is gone", "sample {place}/text.onnx --output {out}", "needs onnxruntime", "onnxruntime"),
        Row("lean ONNX", "sample {place}/text.onnx --lean fast --output {out}", "leave out lean, dtype"),
        Row("text named .pte", "memory {place}/text.pte", "is no whole ExecuTorch program that `export` wrote"),
        Row("flatbuffers is gone", "memory {place}/text.pte", "needs flatbuffers: pip install", "flatbuffers"),
        Row("a program cut short", "memory {place}/cut.pte", "it has 1,040 bytes of 1,000,064"),
        Row("a program of another batch", "memory {place}/cut.pte --batch_size 4", "--batch_size is for networks"),
        Row("a program beside a network", "memory {place}/cut.pte --teacher {place}/teacher", "two programs, or two"),
        # push
        Row("a repository of nobody", "push {place}/student mine --dry_run", "is no name of a repository, owner/name"),
        Row("a repository too deep", "push {place}/student a/b/c --dry_run", "is no name of a repository, owner/name"),
        Row("a folder that is not there", push % "nowhere", "there is no folder {place}/nowhere"),
        Row("a push of a teacher", push % "teacher", "is no student: it has no plan"),
        Row("a push of a run", push % "finished", "give {place}/finished/student"),
        Row("a push of an unfinished run", push % "unfinished", "has not finished, go on with --resume"),
        Row("a push of torn weights", push % "cut_student", "cannot be loaded"),
        Row("a push of NaN", push % "nan_student", "not finite"),
        Row("code of another version", push % "edited", "its version is no longer its own; write it again"),
        Row("code left out", push % "codeless", "does not carry its code"),
        Row("a link to something private", push % "telling", "is a link out of the folder"),
        Row("a report of other weights", push % "finished/student", "is of other weights"),
        Row("a report that is not there", f"{push % 'student'} --report {{place}}/no.json", "no.json cannot be read"),
        Row(
            "a report of no model",
            f"{push % 'student'} --report {{place}}/report_other.json",
            "is no report of a model",
        ),
    ]
