"""The words of a model card: a person's own are kept, paths stay here, strings no markup, the licence is carried."""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from diffusers import UNet2DModel
from huggingface_hub import ModelCard
from report_helpers import full_report
from sharing_helpers import evaluated, make_student, read_card, write_evaluation
from training_helpers import UNET_WEIGHTS

from ddpm_redistill.sharing import licence
from ddpm_redistill.sharing.card import MARK, card, write_card
from ddpm_redistill.sharing.student import find_student
from ddpm_redistill.sources.teacher import sha256_of


@pytest.fixture(scope="module")
def made(tiny_teacher: UNet2DModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_student(tiny_teacher, tmp_path_factory.mktemp("made") / "student")


@pytest.fixture
def student(made: Path, tmp_path: Path) -> Path:
    """A student in its run folder, evaluated."""
    return evaluated(made, tmp_path / "runs" / "a")


def test_a_persons_own_words_are_kept(student: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_card(str(student))
    ours = read_card(student)
    (student / "README.md").write_text(ours.replace("# A student", "# My student"))
    write_card(str(student))
    assert read_card(student) == ours
    own = ours.replace("# A student", "# My student").replace(MARK, "")
    (student / "README.md").write_text(own)
    with caplog.at_level(logging.INFO, "ddpm_redistill"):
        assert write_card(str(student)) == []
    assert read_card(student) == own
    assert "is left as it is" in caplog.text


def test_paths_of_this_machine_stay_here(student: Path, tmp_path: Path) -> None:
    teacher, data = tmp_path / "secret" / "my_teacher", tmp_path / "secret" / "my_data.npz"
    report = full_report()["provenance"] | {"model_sha256": sha256_of(student / UNET_WEIGHTS), "data": str(data)}
    report |= {
        "teacher": str(teacher),
        "config": {"teacher": str(teacher), "data": str(data), "output_dir": str(tmp_path)},
    }
    write_evaluation(student, provenance=report)
    (student.parent / "provenance.json").unlink()
    for known in (True, False):
        if not known:
            (student.parent / "report.json").unlink()
            (student.parent / "config.yaml").write_text(yaml.safe_dump(report["config"]))
        write_card(str(student))
        words = read_card(student)
        assert "`my_teacher (a local one)`" in words
        assert "`my_data.npz (a local one)`" in words
        assert "secret" not in words


def test_strings_of_a_report_are_no_markup(student: Path) -> None:
    evil = "</td><script>alert(1)</script> | `x` ![a](b) --- \n# head"
    report = full_report()
    report["distances"]["warnings"] = [evil]
    report["distances"]["extractor"] |= {"name": evil, "fid_name": "fd_efficientnet_lite0"}
    provenance = report["provenance"] | {"scheduler": evil, "device": evil, "data": evil, "torch": evil, "time": evil}
    provenance |= {"model_sha256": sha256_of(student / UNET_WEIGHTS), "config": {"recipe": evil, "loss": {evil: evil}}}
    write_evaluation(student, distances=report["distances"], provenance=provenance)
    write_card(str(student))
    words = re.sub(r"(?<!\\)`[^`\n]*`", "", read_card(student).replace(MARK, ""))
    assert re.findall(r"(?<!\\)<|\n# head|(?<!\\)!\[a", words) == []
    rows = [line for line in words.splitlines() if line.startswith("|")]
    assert {line.count("|") - line.count("\\|") - 1 for line in rows} == {2, 4, 5}  # columns


# --- the licence


TEACHERS = {
    "one": ("license: mit", {"license": "mit"}),
    "several": ("license: [mit, apache-2.0]", {"license": ["mit", "apache-2.0"]}),
    "of its own": (
        "license: other\nlicense_name: mine\nlicense_link: LICENSE",
        {"license": "other", "license_name": "mine", "license_link": "LICENSE"},
    ),
    "none": ("tags: [a]", {}),
    "empty": ("license: ''", {}),
    "no text": ("license: {a: b}", {}),
    "damaged": ("license: [mit", {}),
    "a call": ("license: !!python/object/apply:os.getcwd []", {}),
}


def record(student: Path, teacher: str, sha256: str) -> None:
    (student.parent / "provenance.json").write_text(json.dumps({"teacher": teacher, "teacher_sha256": sha256}))


@pytest.mark.parametrize("name", TEACHERS)
def test_the_licence_is_the_teachers(student: Path, teacher_folder: Path, tmp_path: Path, name: str) -> None:
    head, expected = TEACHERS[name]
    teacher = shutil.copytree(teacher_folder, tmp_path / "teacher")
    (teacher / "README.md").write_text(f"---\n{head}\n---\n# A teacher\nlicense: not this\n")
    record(student, str(teacher), sha256_of(teacher / UNET_WEIGHTS))
    write_card(str(student))
    data = ModelCard(read_card(student)).data.to_dict()
    assert {key: data[key] for key in licence.KEYS if key in data} == {"license": "unknown", **expected}
    assert ("Unknown: ask whoever made the teacher" in read_card(student)) == (not expected)


def test_another_model_at_the_teachers_place(student: Path, teacher_folder: Path, tmp_path: Path) -> None:
    teacher = shutil.copytree(teacher_folder, tmp_path / "teacher")
    (teacher / "README.md").write_text("---\nlicense: mit\n---\n")
    record(student, str(teacher), "0" * 64)
    write_card(str(student))
    assert "Unknown: ask whoever made the teacher" in read_card(student)


def test_a_teacher_on_the_hub(student: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Its licence and its name as the base model, where the hub's cache holds the weights that were recorded."""
    readme = tmp_path / "README.md"

    def snapshot(repository: str, *, local_files_only: bool) -> str:
        assert local_files_only
        if repository != "google/ddpm-cifar10-32":
            raise FileNotFoundError("not in the cache")
        return str(teacher_folder)

    def download(repository: str, name: str) -> str:
        assert (repository, name) == ("google/ddpm-cifar10-32", "README.md")
        if not readme.is_file():
            raise OSError("offline")
        return str(readme)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    known = sha256_of(teacher_folder / UNET_WEIGHTS)

    def carried(teacher: str, sha256: str) -> tuple[Any, Any]:
        record(student, teacher, sha256)
        data = card(find_student(str(student))).data.to_dict()
        return data["license"], data.get("base_model")

    assert carried("google/ddpm-cifar10-32", known) == ("unknown", "google/ddpm-cifar10-32")
    readme.write_text("---\nlicense: apache-2.0\n---\n")
    assert carried("google/ddpm-cifar10-32", known) == ("apache-2.0", "google/ddpm-cifar10-32")
    assert carried("google/ddpm-cifar10-32", "0" * 64) == ("unknown", None)
    assert carried("runs/teacher", known) == ("unknown", None)  # a folder that is gone looks like a hub id


def test_metadata(student: Path) -> None:
    provenance = full_report()["provenance"] | {"model_sha256": sha256_of(student / UNET_WEIGHTS)}
    write_evaluation(student, provenance={**provenance, "config": {"data": "hub:ylecun/mnist"}})
    data = card(find_student(str(student))).data.to_dict()
    assert data["datasets"] == ["ylecun/mnist"]
    assert data["library_name"] == "diffusers"
    assert data["pipeline_tag"] == "unconditional-image-generation"
    assert "base_model" not in data
