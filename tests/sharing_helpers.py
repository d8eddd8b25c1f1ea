"""What the tests of sharing need: students with a report, a hub, a process that can import next to nothing."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import DDPMScheduler, UNet2DModel
from packaging.requirements import Requirement
from PIL import Image
from report_helpers import full_report
from training_helpers import UNET_WEIGHTS

import ddpm_redistill
from ddpm_redistill import RedDDPMPipeline, StudentConfig, derive_student, plan_student
from ddpm_redistill.pipelines.modeling_red_unet import CODE, CODE_NAME
from ddpm_redistill.sources.teacher import sha256_of

ALONE = ("torch", "diffusers", "safetensors")


def make_student(teacher: UNet2DModel, place: Path, **classes: Any) -> Path:
    """A student folder whose RED blocks do something; ``classes``: ``id2label`` and ``learned_guidance``."""
    plan = plan_student(dict(teacher.config), StudentConfig(head_start="teacher"))
    student = derive_student(teacher, plan)
    with torch.no_grad():
        for name, value in student.state_dict().items():
            if value.is_floating_point() and ".red_" in name:
                value.add_(torch.rand(value.shape, generator=torch.Generator().manual_seed(0)) / 10)
    RedDDPMPipeline(student, DDPMScheduler(prediction_type="v_prediction"), **classes).save_pretrained(place)
    return place


def bare_site(place: Path) -> Path:
    """A folder of links to the packages of ``ALONE`` and all that these require; nothing else can be imported there."""
    place.mkdir()
    wanted, done = list(ALONE), set()
    while wanted:
        name = wanted.pop()
        if name in done:
            continue
        done.add(name)
        found = distribution(name)
        for requirement in map(Requirement, found.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                wanted.append(requirement.name)
        for top in {path.parts[0] for path in found.files or () if path.parts[0] not in ("..", "__pycache__")}:
            link = place / top
            if not link.exists():
                link.symlink_to(found.locate_file(top))
    return place


def package_alone(place: Path) -> Path:
    """A folder in which ``import ddpm_redistill`` works, however it is installed here, and nothing else."""
    package = place / "ddpm_redistill"
    package.mkdir(parents=True)
    for path in Path(ddpm_redistill.__path__[0]).iterdir():
        if path.name != "pipelines":
            (package / path.name).symlink_to(path)
    (package / "pipelines").symlink_to(Path(ddpm_redistill.pipelines.__path__[0]))
    return place


@contextmanager
def hub_of(folder: Path, name: str) -> Iterator[str]:
    """A model hub with one repository, ``name``, which is a folder: what a client asks for to read it, no more."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    commit = "a" * 40

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, headers, content = self.path.split("?")[0], {}, b""
            if path.startswith(f"/api/models/{name}/tree/"):
                found = [{"type": "file", "path": f, "size": files[f].stat().st_size, "oid": commit} for f in files]
                content = json.dumps(found).encode()
            elif path.startswith(f"/api/models/{name}"):
                siblings = [{"rfilename": file} for file in files]
                content = json.dumps({"id": name, "sha": commit, "siblings": siblings, "tags": []}).encode()
            elif path.startswith(f"/{name}/resolve/"):
                content = files[path.split("/", 5)[5]].read_bytes()
                headers = {"X-Repo-Commit": commit, "ETag": hashlib.sha256(content).hexdigest()}
            self.send_response(200 if content else 404)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def run_elsewhere(program: str, site: Path, hub: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that is given ``site`` as the only place of packages: -S passes over the one of this environment,
    with what an editable install left there, and -I over PYTHONPATH and the current folder."""
    start = f"import sys; sys.path.append({str(site)!r})\n"
    environment = {**os.environ, "HF_HOME": str(site.parent / "hub"), "HF_ENDPOINT": hub, "OMP_NUM_THREADS": "1"}
    environment |= {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-I", "-S", "-c", start + program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=site)


def with_other_code(folder: Path, copy: Path, line: str, other: str) -> Path:
    """The same student as another version of this package would have written it, with one line of code changed."""
    assert CODE.count(line) == 1
    code = CODE.replace(line, other)
    name = f"modeling_red_unet_{hashlib.sha256(code.encode()).hexdigest()[:12]}"
    shutil.copytree(folder, copy)
    (copy / "unet" / f"{CODE_NAME}.py").unlink()
    (copy / "unet" / f"{name}.py").write_text(code)
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "unet": [name, "RedUNet2DModel"]}))
    return copy


def evaluated(student: Path, run: Path) -> Path:
    """A copy of a student in a run folder, with the records of its training and a made-up evaluation."""
    folder = shutil.copytree(student, run / "student")
    settings = {"teacher": "builtin:digits", "data": "builtin:digits", "recipe": "default", "training": {"steps": 77}}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    (run / "provenance.json").write_text(json.dumps({"teacher": "builtin:digits", "teacher_sha256": "d" * 64}))
    write_evaluation(folder)
    return folder


def write_evaluation(folder: Path, **changes: Any) -> dict[str, Any]:
    """report.json and comparison.png of a made-up evaluation, as ``evaluate`` leaves them."""
    report = full_report()
    report["provenance"] |= {"model_sha256": sha256_of(folder / UNET_WEIGHTS), "config": {"training": {"steps": 88}}}
    report |= changes
    path = folder.parent / "report.json"
    path.write_text(json.dumps(report))
    Image.new("RGB", (8, 8)).save(folder.parent / "comparison.png")
    return json.loads(path.read_text())


def read_card(folder: Path) -> str:
    return (folder / "README.md").read_text()
