"""Files that a person, a torn disk or a stranger may hand over, for ``test_bad_inputs.py``."""

import io
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from training_helpers import SIZE, TRAIN, UNET_WEIGHTS, make_images, make_tiny_teacher

from ddpm_redistill import StudentConfig, plan_student
from ddpm_redistill.families.classifier_config import config_from_dict
from ddpm_redistill.families.classifier_files import build, find_config, save_classifier
from ddpm_redistill.students.derive import build_student

CLASSIFIER = '{"accuracy": {"num_images": 1}}'


def bomb_png(width: int, height: int) -> bytes:
    """A PNG of 60 bytes that announces so many pixels."""
    return png_of(struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), zlib.compress(b""))


def bomb_tiff(width: int, height: int) -> bytes:
    """A TIFF of one bit a pixel that announces so many pixels and has 8."""
    tags = [(256, width), (257, height), (258, 1), (259, 1), (262, 1), (273, 4), (278, height), (279, 1)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)


def png_of(header: bytes, data: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def deep_png(values: np.ndarray) -> bytes:
    """A PNG of 16-bit colour, uint16 (H, W, 3), which Pillow reads and does not write."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return png_of(header, zlib.compress(rows))


def npz_with_header(path: Path, header: bytes, data: bytes = b"") -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data)


def safetensors_with_header(path: Path, length: int, header: bytes, data: bytes = b"") -> None:
    path.write_bytes(struct.pack("<Q", length) + header + data)


def make_place(place: Path) -> None:
    """All that the rows below are made with."""
    place.mkdir(parents=True, exist_ok=True)
    teacher = make_tiny_teacher(place / "teacher")
    data = make_images(place / "images.npz")
    models(place, teacher)
    folders(place)
    archives(place)
    texts(place, teacher, data)
    classifiers(place)


def models(place: Path, teacher: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(teacher, place / name))

    def config(name: str, **changes: object) -> None:
        path = copy(name) / "unet" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    good = (teacher / UNET_WEIGHTS).read_bytes()
    (copy("truncated") / UNET_WEIGHTS).write_bytes(good[: len(good) // 2])
    (copy("flipped") / UNET_WEIGHTS).write_bytes(good[:20] + bytes([good[20] ^ 0xFF]) + good[21:])
    safetensors_with_header(copy("huge_header") / UNET_WEIGHTS, 2**62, b"{}")
    wide = json.dumps({"conv_in.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    safetensors_with_header(copy("huge_tensor") / UNET_WEIGHTS, len(wide), wide)
    safetensors_with_header(copy("no_json") / UNET_WEIGHTS, 5, b"hello")
    (copy("empty_weights") / UNET_WEIGHTS).write_bytes(b"")
    state = load_file(teacher / UNET_WEIGHTS)
    state["conv_in.bias"][0] = torch.nan
    save_file(state, copy("nan") / UNET_WEIGHTS)
    save_file({"surplus": torch.zeros(1), **load_file(teacher / UNET_WEIGHTS)}, copy("surplus") / UNET_WEIGHTS)
    whole = {name: tensor.long() for name, tensor in load_file(teacher / UNET_WEIGHTS).items()}
    save_file(whole, copy("whole_numbers") / UNET_WEIGHTS)
    (copy("pickled") / UNET_WEIGHTS).rename(place / "pickled" / "unet" / "diffusion_pytorch_model.bin")
    for name, shard in (("shards_climb", "../../teacher/unet/a.safetensors"), ("shard_missing", "b.safetensors")):
        index = {"weight_map": {"conv_in.weight": shard}}
        (copy(name) / UNET_WEIGHTS).with_name(f"{UNET_WEIGHTS.name}.index.json").write_text(json.dumps(index))
    pipelines(place, copy)
    linked = copy("linked") / UNET_WEIGHTS
    linked.unlink()
    linked.symlink_to(teacher / UNET_WEIGHTS)
    index = {"_class_name": "DDPMPipeline", "unet": ["../../evil", "UNet2DModel"]}
    (copy("climbing") / "model_index.json").write_text(json.dumps(index))
    (copy("config_no_json") / "unet" / "config.json").write_text("{'sample_size': 16}")
    config("conditional", _class_name="UNet2DConditionModel")
    config("huge_network", layers_per_block=10**9)
    config("wide_network", block_out_channels=[4096] * 4)
    config("text_for_number", norm_num_groups="four")
    config("unsupported", down_block_types=["SkipDownBlock2D"] * 4)
    config("embedded_timesteps", class_embed_type="timestep")
    config("rectangle", sample_size=[SIZE, 2 * SIZE])
    config("three_sides", sample_size=[SIZE] * 3)
    for name, changes in {
        "schedule": {"beta_end": 7.0},
        "karras": {"_class_name": "KarrasVeScheduler"},
        "other_variance": {"variance_type": "fixed"},
        "few_betas": {"trained_betas": [0.1, 0.2]},
        "zero_snr": {"rescale_betas_zero_snr": True},
        "no_variance": {"variance_type": "learned_range"},
    }.items():
        schedule = copy(name) / "scheduler" / "scheduler_config.json"
        schedule.write_text(json.dumps({**json.loads(schedule.read_text()), **changes}))


def pipelines(place: Path, copy: Callable[[str], Path]) -> None:
    for name, changes in {
        "latents": {"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]},
        "no_autoencoder": {"_class_name": "LDMPipeline"},
        "consistency": {"_class_name": "ConsistencyModelPipeline"},
        "with_part": {"_class_name": "MyPipeline", "upscaler": ["mine", "Upscaler"]},
    }.items():
        index = copy(name) / "model_index.json"
        index.write_text(json.dumps({**json.loads(index.read_text()), **changes}))
    for name, factor in (("no_decoder_weights", 1.0), ("factor_of_0", 0.0)):
        folder = Path(shutil.copytree(place / "latents", place / name))
        autoencoder = {"_class_name": "VQModel", "in_channels": 1, "out_channels": 1, "latent_channels": 1}
        (folder / "vqvae").mkdir()
        (folder / "vqvae" / "config.json").write_text(json.dumps({**autoencoder, "scaling_factor": factor}))


def folders(place: Path) -> None:
    for name in ("empty", "text", "torn", "bomb", "float", "mixed_modes", "folder_named", "run"):
        (place / name).mkdir()
    (place / "text" / "a.png").write_text("hello")
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(buffer, "PNG")
    (place / "torn" / "a.png").write_bytes(buffer.getvalue()[:1000])
    (place / "bomb" / "a.png").write_bytes(bomb_png(50_000, 50_000))
    Image.new("F", (SIZE, SIZE), 3.0).save(place / "float" / "a.png", format="TIFF")
    image_ranges(place)
    Image.new("L", (SIZE, SIZE)).save(place / "mixed_modes" / "a.png")
    Image.new("RGBA", (SIZE, SIZE)).save(place / "mixed_modes" / "b.png")
    (place / "folder_named" / "images.npz").mkdir()
    (place / "run" / "precious.txt").write_text("mine")


def image_ranges(place: Path) -> None:
    """Folders of images of other kinds of values, and an .npz of four channels."""
    for name in ("twelve_bits", "deep_colour", "bomb_tiff"):
        (place / name).mkdir()
    values = np.random.default_rng(0).integers(0, 4096, (SIZE, SIZE), dtype=np.uint16)
    values[0, 0] = 4095
    Image.fromarray(values).save(place / "twelve_bits" / "a.png")
    (place / "deep_colour" / "a.png").write_bytes(deep_png(np.stack([values] * 3, axis=-1)))
    (place / "bomb_tiff" / "a.tif").write_bytes(bomb_tiff(20_000, 20_000))
    np.savez(place / "four.npz", images=np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 4), dtype=np.uint8))
    make_tiny_teacher(place / "four_channels", in_channels=4, out_channels=4)


def archives(place: Path) -> None:
    np.savez(place / "objects.npz", images=np.array([{"a": 1}, None], dtype=object))
    np.savez(place / "floats.npz", images=np.zeros((4, SIZE, SIZE, 1), np.float32))
    np.savez(place / "channels_first.npz", images=np.zeros((4, 3, SIZE, SIZE), np.uint8))
    np.savez(place / "none.npz", images=np.zeros((0, SIZE, SIZE, 1), np.uint8))
    (place / "text.npz").write_text("no archive")
    data = (place / "images.npz").read_bytes()
    (place / "truncated.npz").write_bytes(data[: len(data) // 2])
    shape = "(1000000, 1024, 1024, 3)"
    npz_with_header(place / "liar.npz", f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n".encode())
    np.savez(place / "statistics.npz", mu=np.zeros(4), sigma=np.eye(3))
    np.savez(place / "statistics_objects.npz", mu=np.array([None]), sigma=np.eye(1))


def texts(place: Path, teacher: Path, data: Path) -> None:
    good = {"teacher": str(teacher), "data": str(data), "training": {**TRAIN, "steps": 2}}
    (place / "good.yaml").write_text(yaml.safe_dump(good))
    (place / "tag.yaml").write_text(f'data: !!python/object/apply:os.system ["touch {place}/owned"]')
    (place / "broken.yaml").write_text("training: [1,\n b")
    (place / "unknown.yaml").write_text("nonsense: 3")
    (place / "many.yaml").write_text("training:\n  steps: [1, 2]")
    (place / "bytes.yaml").write_bytes(bytes(range(128, 256)))
    for name, text in {
        "torn": '{"distances":',
        "list": "[]",
        "other": '{"a": 1}',
        "deep": "[" * 100_000,
        "classifier": CLASSIFIER,
    }.items():
        (place / f"report_{name}.json").write_text(text)
    weights = {"state_dict": {"a": 1}}
    torch.save(weights, place / "no_tensors.pth")


def classifiers(place: Path) -> None:
    """Of three classes: a classifier, its student, one without weights; images of three and of four classes. And one
    of a family that is not installed."""
    asked = find_config("wrn:10-1", image_size=SIZE, num_classes=3, in_channels=1)
    save_classifier(build(asked), asked, place / "classifier")
    told = asked.to_dict()
    student = build_student(told, plan_student(told, StudentConfig()))
    save_classifier(student, config_from_dict(dict(student.config), "the student"), place / "classifier_student")
    for name in ("weightless", "pickled_classifier", "torn_classifier", "sharded_classifier"):
        shutil.copytree(place / "classifier", place / name)
    (place / "weightless" / "model.safetensors").unlink()
    (place / "pickled_classifier" / "model.safetensors").rename(place / "pickled_classifier" / "pytorch_model.bin")
    torn = place / "torn_classifier" / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-8])
    index = {"weight_map": {"stem.weight": "model-00001-of-00001.safetensors"}}
    (place / "sharded_classifier" / "model.safetensors.index.json").write_text(json.dumps(index))
    images = np.random.default_rng(0).integers(0, 256, (24, SIZE, SIZE, 1), dtype=np.uint8)
    np.savez(place / "labelled.npz", images=images, labels=np.arange(24) % 3)
    np.savez(place / "four_classes.npz", images=images, labels=np.arange(24) % 4)
    (place / "of_a_family").mkdir()
    told = {"architecture": "steps:16", "num_classes": 10, "in_channels": 1, "image_size": 32, "arguments": {}}
    (place / "of_a_family" / "config.json").write_text(json.dumps({**told, "mean": [0.5], "std": [0.5]}))
    (place / "of_a_family" / "model.safetensors").write_bytes(b"")
