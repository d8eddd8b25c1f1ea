"""Every mistake of a person is one line on standard error and exit code 2, and leaves nothing behind."""

import json
import shutil

import pytest
import yaml
from PIL import Image
from training_helpers import SIZE, TRAIN, UNET, UNET_WEIGHTS, make_images, make_tiny_teacher, refused

from ddpm_redistill.cli import main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """All that the mistakes below are made with."""
    place = tmp_path_factory.mktemp("place")
    make_tiny_teacher(place / "teacher")
    two_levels = {key: value[:2] if isinstance(value, list) else value for key, value in UNET.items()}
    make_tiny_teacher(place / "two_levels", **two_levels)
    make_images(place / "images.npz")
    for name in ("empty", "classifier", "corrupt", "nothing", "mixed", "colour"):
        (place / name).mkdir()
    (place / "classifier" / "config.json").write_text(json.dumps({"architectures": ["ViTForImageClassification"]}))
    for name in ("torn", "pickled", "no_json"):
        shutil.copytree(place / "teacher", place / name)
    weights = (place / "torn" / UNET_WEIGHTS).read_bytes()
    (place / "torn" / UNET_WEIGHTS).write_bytes(weights[: len(weights) // 2])
    (place / "pickled" / UNET_WEIGHTS).rename(place / "pickled" / "unet" / "diffusion_pytorch_model.bin")
    (place / "no_json" / "unet" / "config.json").write_text("{")
    for name in ("good", "seven"):
        Image.new("L", (SIZE, SIZE)).save(place / "corrupt" / f"{name}.png")
    for name, size in (("a", SIZE), ("b", SIZE + 1)):
        Image.new("L", (size, size)).save(place / "mixed" / f"{name}.png")
    for k in range(10):
        Image.new("RGB", (SIZE, SIZE), "white").save(place / "colour" / f"{k}.png")
    (place / "text.npz").write_text("no archive")
    seven = place / "corrupt" / "seven.png"
    seven.write_bytes(seven.read_bytes()[:40])
    for name, text in {
        "unknown": "nonsense: 3",
        "unknown_nested": "training:\n  nonsense: 3",
        "broken": "training: [1,\n b",
        "list": "- 1\n- 2",
        "number": "training: 3",
        "null": "student: null",
    }.items():
        (place / f"{name}.yaml").write_text(text)
    (place / "latin1.yaml").write_bytes("data: /home/andré".encode("latin1"))
    good = {"teacher": str(place / "teacher"), "data": str(place / "images.npz"), "training": {**TRAIN, "steps": 2}}
    (place / "good.yaml").write_text(yaml.safe_dump(good))
    main(["distill", "--config", str(place / "good.yaml"), "--output_dir", str(place / "run")])
    return place


DISTILL = [
    (["--teacher", "{place}/nowhere"], "there is no folder"),
    (["--teacher", "builtin:nothing"], "there is no builtin:nothing"),
    (["--teacher", "{place}/images.npz"], "is a file: give the diffusers folder"),
    (["--teacher", "{place}/empty"], "is no diffusers model"),
    (["--teacher", "{place}/classifier"], "holds ViTForImageClassification, not a UNet2DModel"),
    (
        ["--teacher", "{place}/run/student", "--student.reduction", "8"],
        "a student 2x smaller a side already, has 2 left",
    ),
    (["--teacher", "{place}/torn"], "the weights of {place}/torn cannot be loaded"),
    (["--teacher", "{place}/pickled"], "has only pickled weights"),
    (["--teacher", "{place}/no_json"], "config.json cannot be read as JSON"),
    (["--teacher", "{place}/two_levels", "--student.reduction", "4"], "the largest that it can take is 2"),
    (["--data", "{place}/nowhere"], "no such path"),
    (["--data", "{place}/empty"], "no images in {place}/empty"),
    (["--data", "{place}/corrupt"], "{place}/corrupt/seven.png"),
    (["--data", "torchvision:Nothing"], "there is no source torchvision:Nothing"),
    (["--image_size", "20"], "image size 20 does not divide by 8"),
    (["--image_size", "0"], "image_size must be at least 1, not 0"),
    (["--image_size", "-16"], "image_size must be at least 1, not -16"),
    (["--config", "{place}/unknown.yaml"], "'nonsense'"),
    (["--config", "{place}/unknown_nested.yaml"], "'training.nonsense'"),
    (["--config", "{place}/nowhere.yaml"], "{place}/nowhere.yaml"),
    (["--config", "{place}"], "not a file"),
    (["--config", "{place}/broken.yaml"], "while parsing"),
    (["--config", "{place}/list.yaml"], "Unexpected config"),
    (["--config", "{place}/number.yaml"], "training must be a group of settings, not 3"),
    (["--config", "{place}/null.yaml"], "student must be a group of settings, not None"),
    (["--config", "{place}/latin1.yaml"], "not UTF-8"),
    (["--nonsense", "3"], "--nonsense"),
    (["--training.nonsense", "3"], "--training.nonsense"),
    (["--student.reduction", "16"], "student.reduction"),
    (["--student.reduction", "3"], "student.reduction"),
    (["--student.red_placement", "x"], "student.red_placement"),
    (["--recipe", "x"], "recipe"),
    (["--training.steps", "many"], "training.steps"),
    (["--training.steps", "1.5"], "training.steps"),
    (["--training.steps", "0"], "training.steps must be at least 1, not 0"),
    (["--training.learning_rate", "-1"], "training.learning_rate must be positive"),
    (["--training.mixed_precision", "fp8"], "training.mixed_precision"),
    (["--training.batch_size", "5", "--training.gradient_accumulation", "2"], "make it a multiple of 2"),
    (["--loss.task", "-1"], "loss.task must be zero or positive, not -1"),
    (["--loss.task", "heavy"], "loss.task"),
    (["--loss.task=0", "--loss.output=0", "--loss.red=0"], "nothing would be learned"),
    (["--loss.feature_share=0"], "loss.feature_share must be above 0 and at most 1, not 0.0"),
    (["--loss.task=0"], "loss.task and loss.output are 0: nothing is left after loss.feature_share, set it to 1"),
    (["--loss.similarity=1", "--training.batch_size=1"], "only one: raise training.batch_size"),
    (["--seed", "x"], "seed"),
    (["--resume"], "nothing to resume"),
]


@pytest.mark.parametrize(("extra", "message"), DISTILL, ids=[" ".join(extra)[:60] for extra, _ in DISTILL])
def test_distill(capsys, caplog, place, tmp_path, extra, message):
    argv = ["distill", "--config", str(place / "good.yaml"), "--output_dir", str(tmp_path / "run")]
    line = refused(capsys, caplog, [*argv, *[part.format(place=place) for part in extra]])
    assert message.format(place=place) in line
    assert list(tmp_path.iterdir()) == []


RUN = [
    ([], "already holds a run: pass --resume"),
    (["--resume", "--training.learning_rate", "0.5"], "training.learning_rate was 0.001 and is now 0.5"),
    (["--resume", "--loss.task", "0.125"], "and is now 0.125"),
    (["--resume", "--seed", "4"], "seed was 0 and is now 4"),
]


@pytest.mark.parametrize(("extra", "message"), RUN, ids=[" ".join(extra) or "again" for extra, _ in RUN])
def test_a_folder_that_holds_a_run(capsys, caplog, place, extra, message):
    before = {path: path.stat().st_mtime_ns for path in (place / "run").rglob("*")}
    argv = ["distill", "--config", str(place / "good.yaml"), "--output_dir", str(place / "run")]
    assert message in refused(capsys, caplog, [*argv, *extra])
    assert {path: path.stat().st_mtime_ns for path in (place / "run").rglob("*")} == before


def test_an_output_folder_that_cannot_be(capsys, caplog, place, tmp_path):
    (tmp_path / "file").write_text("mine")
    argv = ["distill", "--config", str(place / "good.yaml"), "--output_dir", str(tmp_path / "file")]
    assert "file is a file: give another output_dir" in refused(capsys, caplog, argv)
    assert (tmp_path / "file").read_text() == "mine"


OTHERS = [
    (["nonsense"], "'nonsense'"),
    (["plan"], "teacher"),
    (["plan", "{place}/nowhere"], "there is no folder"),
    (["plan", "{place}/classifier"], "holds ViTForImageClassification"),
    (["plan", "{place}/run/student", "--reduction", "8"], "a student 2x smaller a side already, has 2 left"),
    (["plan", "{place}/teacher", "--reduction", "3"], "reduction 3 is not supported"),
    (["plan", "{place}/two_levels", "--reduction", "8"], "the largest that it can take is 2"),
    (["plan", "{place}/teacher", "--image_size", "20"], "does not divide by 8"),
    (["plan", "{place}/teacher", "--image_size", "-16"], "image_size must be at least 1, not -16"),
    (["memory", "{place}/nowhere"], "there is no folder"),
    (["memory", "{place}/teacher", "--batch_size", "0"], "batch_size must be at least 1, not 0"),
    (["memory", "{place}/teacher", "--batch_size", "1000000000000000"], "too large to count"),
    (["memory", "{place}/teacher", "--image_size", "0"], "image_size must be at least 1, not 0"),
    (["memory", "{place}/teacher", "--image_size", "30"], "image size 30 does not divide by 8"),
    (["memory", "{place}/run/student", "--image_size", "31"], "image size 31 does not divide by 8"),
    (["memory", "{place}/teacher", "--dtype", "float64"], "dtype"),
    (["memory", "{place}/teacher", "--lean", "x"], "lean"),
    (["memory", "{place}/teacher", "--fail_over", "much"], "'much' is not a size"),
    (["memory", "{place}/teacher", "--fail_over", "0"], "below one byte"),
    (["memory", "{place}/teacher", "--teacher", "{place}/nowhere", "--timeline", "{out}"], "there is no folder"),
    (["memory", "{place}/teacher", "--timeline", "{place}/images.npz"], "images.npz is a file"),
    (["memory", "{place}/teacher", "--timeline", "{place}/images.npz/in"], "images.npz"),
    (["sample", "{place}/teacher"], "output"),
    (["sample", "{place}/nowhere", "--output", "{out}"], "there is no folder"),
    (["sample", "{place}/teacher", "--output", "{out}", "--num_images", "0"], "num_images must be at least 1, not 0"),
    (["sample", "{place}/teacher", "--output", "{out}", "--num_images", "x"], "num_images"),
    (["sample", "{place}/teacher", "--output", "{out}", "--steps", "1001"], "1001 steps are more than the 1000"),
    (["sample", "{place}/teacher", "--output", "{out}", "--steps", "0"], "steps must be at least 1, not 0"),
    (["sample", "{place}/teacher", "--output", "{out}", "--batch_size", "0"], "batch_size must be at least 1"),
    (["sample", "{place}/teacher", "--output", "{out}", "--scheduler", "x"], "unknown scheduler 'x'"),
    (["evaluate", "{place}/run/student"], "nothing to compare with"),
    (["evaluate", "{place}/run/student", "--data", "{data}", "--num_images", "11"], "has 10 images, 11 are needed"),
    (["evaluate", "{place}/run/student", "--data", "{data}", "--num_images", "1"], "num_images must be at least 2"),
    (["evaluate", "{place}/run/student", "--data", "{data}", "--num_images", "8", "--steps", "2000"], "2000 steps"),
    (["evaluate", "{place}/run/student", "--data", "{data}", "--scheduler", "x"], "unknown scheduler 'x'"),
    (["evaluate", "{place}/run/student", "--teacher", "{place}/nowhere"], "there is no folder"),
    (["evaluate", "{place}/nowhere", "--data", "{data}"], "there is no folder"),
    (["evaluate", "{place}/teacher", "--data", "{data}", "--inception_weights", "{place}/no.pth"], "no.pth"),
    (["evaluate", "{place}/teacher", "--data", "{data}", "--steps", "ten"], "--steps is 'ten'"),
    (["evaluate", "{place}/teacher", "--data", "{data}", "--steps", "10,0"], "steps must be at least 1, not 0"),
    (["evaluate", "{place}/teacher", "--data", "{data}", "--spacing", "x"], "no spacing 'x'"),
    (["evaluate", "{place}/teacher", "--data", "{data}", "--extractor", "no.such:Thing"], "no.such"),
    (["evaluate", "{place}/teacher", "--data", "{place}/text.npz"], "text.npz"),
    (["evaluate", "{place}/empty", "--data", "{data}"], "empty"),
    (["evaluate", "{place}/mixed", "--data", "{data}"], "a.png is 16x16"),
    (["evaluate", "{place}/colour", "--teacher", "{place}/teacher", "--num_images", "8"], "different shape"),
    (["statistics", "{place}/nowhere", "--output", "{out}.npz"], "nowhere"),
    (["statistics", "{data}", "--output", "{out}"], "must end in .npz"),
    (["report", "{place}/nowhere"], "nowhere"),
    (["plan", "{place}/teacher", "--budget", "much"], "'much' is not a size"),
    (["teach", "--data", "{data}", "--unet", '{{"nonsense": 1}}', "--output_dir", "{out}"], "unet.nonsense"),
    (["teach", "--data", "{data}", "--image_size", "0", "--output_dir", "{out}"], "image_size is 0"),
    (["teach", "--data", "{data}", "--channels", "2", "--output_dir", "{out}"], "1 channel, and 2 are needed"),
]


@pytest.mark.parametrize(("argv", "message"), OTHERS, ids=[" ".join(argv)[:70] for argv, _ in OTHERS])
def test_other_verbs(capsys, caplog, place, tmp_path, monkeypatch, argv, message):
    before = sorted(place.rglob("*"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")  # the default output folders are relative
    filled = [part.format(place=place, data=place / "images.npz", out=tmp_path / "out") for part in argv]
    assert message in refused(capsys, caplog, filled)
    assert [path.name for path in tmp_path.rglob("*")] == ["work"]
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "/locked"), OSError(28, "No space left")])
def test_a_disk_that_refuses(capsys, place, tmp_path, monkeypatch, error):
    def refuse(*args):
        raise error

    monkeypatch.setattr("ddpm_redistill.training.run_folder.write_aside", refuse)
    with pytest.raises(SystemExit) as ended:
        main(["distill", "--config", str(place / "good.yaml"), "--output_dir", str(tmp_path / "run")])
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert err.startswith("ddpm-redistill: error: ")
    assert error.strerror in err
    assert err.count("\n") == 1


def test_ctrl_c_is_one_line_and_130(capsys, place, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("ddpm_redistill.families.registry.find_network", interrupt)
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(place / "teacher")])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "ddpm-redistill: interrupted\n"
