"""A student with classes elsewhere: its card names them, its programs sample them, and what is sent keeps them."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from huggingface_hub import HfApi
from PIL import Image
from report_helpers import full_report
from sharing_helpers import bare_site, evaluated, hub_of, make_student, read_card, run_elsewhere, write_evaluation

from ddpm_redistill import load_pipeline
from ddpm_redistill.cli import main
from ddpm_redistill.pipelines.conditioning import Conditioning
from ddpm_redistill.pipelines.image_noise import ImageNoise
from ddpm_redistill.sharing import push as pushing
from ddpm_redistill.sharing.card import MARK, card, card_files, write_card
from ddpm_redistill.sharing.classes import LONGEST_NAME, MOST_NAMES, facts_of_classes
from ddpm_redistill.sharing.student import find_student

NAMES = {"0": "cat", "1": "dog", "2": "emu"}
KINDS: dict[str, dict[str, Any]] = {
    "guided": {"num_class_embeds": 4, "id2label": NAMES},
    "learned": {"num_class_embeds": 4, "id2label": NAMES, "learned_guidance": 1.5},
    "no null class": {"num_class_embeds": 3, "id2label": NAMES},
}
STEPS = 3


@pytest.fixture(scope="module")
def made(tiny_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A student of each kind. Not to be changed by a test."""
    folders = {}
    for kind, of in KINDS.items():
        classes = dict(of)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            teacher = UNet2DModel(**tiny_config, num_class_embeds=classes.pop("num_class_embeds"))
        folders[kind] = make_student(teacher, tmp_path_factory.mktemp("made") / "student", **classes)
    return folders


def measured(made: Path, run: Path) -> Path:
    """A copy in a run folder, evaluated at ``STEPS`` steps."""
    folder = evaluated(made, run)
    distances = full_report()["distances"]
    write_evaluation(folder, distances={**distances, "num_inference_steps": STEPS})
    return folder


def programs_of(words: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", words, re.DOTALL)


# --- the words of the card


ROWS = {
    "guided": ("label 3", "of any scale, by a second pass of the network with the null class"),
    "learned": (
        "label 3",
        "has learned its teacher's of scale 1.5: one pass of the network a step, and no other scale",
    ),
    "no null class": ("none", "not possible without a null class"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_names_the_classes(made: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(made[kind], tmp_path / "student")
    write_card(str(folder))
    words = read_card(folder)
    null, guidance = ROWS[kind]
    for line in (
        "It samples images of 3 classes, by label.",
        "| classes, by label | 0: cat; 1: dog; 2: emu |",
        f"| null class, which stands for no class | {null} |",
        f"| classifier-free guidance | {guidance} |",
    ):
        assert line in words, line
    data = card(find_student(str(folder))).data.to_dict()
    assert "class-conditional-image-generation" in data["tags"]
    assert "unconditional-image-generation" not in data["tags"]


def test_a_card_without_classes_says_nothing_of_them(tiny_teacher: UNet2DModel, tmp_path: Path) -> None:
    folder = make_student(tiny_teacher, tmp_path / "student")
    write_card(str(folder))
    words = read_card(folder)
    assert "It samples images without a condition." in words
    assert "class_labels" not in words
    assert "| classes" not in words
    assert "guidance" not in words


def row_of(names: tuple[str, ...]) -> str:
    return next(facts_of_classes(Conditioning(names, None)))[1]


def test_many_classes_are_shortened() -> None:
    names = tuple(f"class {label}" for label in range(1000))
    shown = row_of(names).split("; ")
    assert len(shown) == MOST_NAMES + 1
    assert shown[:2] == ["0: class 0", "1: class 1"]
    assert shown[-3:] == [f"{MOST_NAMES - 2}: class {MOST_NAMES - 2}", "...", "999: class 999"]
    assert row_of(names[:MOST_NAMES]).count("; ") == MOST_NAMES - 1
    assert "..." not in row_of(names[:MOST_NAMES])
    assert row_of(("0", "1", "2")) == "0 to 2, which have no other names"


def test_names_are_no_markup_and_have_an_end() -> None:
    evil = "</td><script> | `x`\n# head"
    assert row_of((evil, "a")) == r"0: \</td\>\<script\> \| \`x\` \# head; 1: a"
    assert len(row_of(("a" * 1000, "b"))) == len("0: ") + LONGEST_NAME + len("; 1: b")
    row_of(("caf\udce9", "b")).encode()  # of a folder whose name is no UTF-8


def test_what_a_report_says_of_classes_is_not_the_cards(made: dict[str, Path], tmp_path: Path) -> None:
    folder = measured(made["guided"], tmp_path / "run")
    write_card(str(folder))
    before = read_card(folder)
    report = json.loads((folder.parent / "report.json").read_text())
    write_evaluation(folder, distances=report["distances"], classes={"names": ["a"], "student": {"accuracy": 0.987}})
    write_card(str(folder))
    assert read_card(folder) == before


# --- the programs of the card


@pytest.mark.parametrize("kind", KINDS)
def test_the_programs_give_the_same_images(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """As they stand in the card: diffusers' scheduler around the network, and this package's pipeline."""
    folder = measured(made[kind], tmp_path / "run")
    write_card(str(folder))
    programs = programs_of(read_card(folder))
    assert len(programs) == 2
    if kind == "guided":
        for k, name in enumerate(("guidance", "guidance_scale")):
            assert programs[k].count(f"{name} = 1.0" if k == 0 else f"{name}=1.0") == 1
        programs = [program.replace("= 1.0", "= 2.5").replace("=1.0", "=2.5") for program in programs]
    place = tmp_path / "PATH" / "TO" / "THIS"
    place.mkdir(parents=True)
    (place / "FOLDER").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    noise, draw = ImageNoise(0, range(3), (1, 16, 16), "cpu").draw(), torch.randn

    def randn(*shape: Any, **options: Any) -> torch.Tensor:
        """The first program's own noise is the second's."""
        return noise if shape == tuple(noise.shape) else draw(*shape, **options)

    monkeypatch.setattr(torch, "randn", randn)
    found = []
    for program in programs:
        names: dict[str, Any] = {}
        exec(program, names)
        found.append(names["images"])
    assert (len(found[0]), len(found[1]), found[0][0].size) == (3, 8, (16, 16))
    for one, other in zip(pixels(found[0]), pixels(found[1][:3]), strict=True):
        assert (one - other).abs().max() <= 1
    other = load_pipeline(str(folder)).set_scheduler("ddim")
    other.set_progress_bar_config(disable=True)
    guidance = 2.5 if kind == "guided" else None
    swapped = other(3, num_inference_steps=STEPS, class_labels=[1, 2, 0], guidance_scale=guidance)
    assert ((pixels(found[0]) - pixels(swapped.images)).abs().amax((1, 2)) > 5).all()  # labels matter


def pixels(images: list[Image.Image]) -> torch.Tensor:
    """(N, H, W)"""
    return torch.stack([torch.tensor(list(image.getdata())).reshape(image.size[::-1]) for image in images])


ELSEWHERE = """
import contextlib, io, json
from pathlib import Path

program, again = map(Path, sys.argv[1:])
said, names = {}, {}
exec("import torch; torch.manual_seed(0)\\n" + program.read_text(), names)
said["images"] = [list(image.getdata()) for image in names["images"]]
try:
    names["pipeline"](num_inference_steps=2)
except ValueError as error:
    said["stock"] = str(error)
names["pipeline"].save_pretrained(again)
said["found"] = [name in sys.modules for name in ("ddpm_redistill", "pipelines")]
print(json.dumps(said))
"""


def test_the_program_of_the_card_elsewhere(made: dict[str, Path], tmp_path: Path) -> None:
    """From a hub, where there is only torch and diffusers, by the code that travels."""
    folder = measured(made["guided"], tmp_path / "run")
    words = card_files(find_student(str(folder)), "me/student")["README.md"].decode()
    program = tmp_path / "program.py"
    program.write_text(programs_of(words)[0].replace("guidance = 1.0", "guidance = 2.5"))
    with hub_of(folder, "me/student") as hub:
        done = run_elsewhere(ELSEWHERE, bare_site(tmp_path / "site"), hub, program, tmp_path / "again")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["found"] == [False, False]

    names: dict[str, Any] = {}
    text = program.read_text().replace('"me/student"', repr(str(folder)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(text, names)
    assert (torch.tensor(said["images"]).reshape(3, 16, 16) - pixels(names["images"])).abs().max() <= 1

    # what the card and docs/sharing.md say of diffusers' own pipeline
    assert said["stock"] == "class_labels should be provided when doing class conditioning"
    assert "id2label" in done.stderr
    assert "are not expected by DDPMPipeline and will be ignored" in done.stderr
    assert "id2label" not in json.loads((tmp_path / "again" / "model_index.json").read_text())


# --- what is sent


def test_a_push_keeps_the_classes(made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(made["learned"], tmp_path / "student")
    received = tmp_path / "received"

    def upload(self: HfApi, *, folder_path: Path, ignore_patterns: list[str], **options: Any) -> None:
        names = [path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()]
        for name in pushing.filter_repo_objects(names, ignore_patterns=ignore_patterns):
            (received / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder_path / name, received / name)

    monkeypatch.setattr(HfApi, "create_repo", lambda self, *args, **options: None)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(pushing, "get_token", lambda: "hf_thisIsASecret")
    main(["push", str(folder), "me/mine"])
    index = json.loads((received / "model_index.json").read_text())
    assert (index["id2label"], index["learned_guidance"]) == (NAMES, 1.5)
    expected = Conditioning(("cat", "dog", "emu"), 3, 1.5)
    assert load_pipeline(str(received)).conditioning == expected
    words = read_card(received)
    assert MARK in words
    assert [program.count('from_pretrained("me/mine"') for program in programs_of(words)] == [1, 0]
    assert 'load_pipeline("me/mine")' in words
    assert "guidance_scale" not in words  # it has no other than its own
    with pytest.raises(ValueError, match="class_labels should be provided"):
        DDPMPipeline.from_pretrained(received, trust_remote_code=True)(num_inference_steps=2)
