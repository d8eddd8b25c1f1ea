"""Imports go one way (docs/design.md): this walks the source of every module and names any other arrow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "ddpm_redistill"
FLOORS = (
    ("pipelines", "core", "config", "errors", "files", "plan_facts", "processes", "provenance", "recipes", "units"),
    ("sources",),
    ("families",),
    ("students",),
    ("training", "evaluation", "export", "sharing"),
    ("cli", "__main__", "__init__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
WINGS = ("pipelines", "core", "sources", "families", "students", *FLOORS[4])  # of one floor: apart from each other
CLOSED = {"core": {"torch"}, "pipelines": {"torch", "diffusers"}}  # import this, themselves and nothing else
CLOSED_FILES = {f"pipelines/{name}.py": {"torch"} for name in ("cheap", "red_block", "strides", "wide_resnet")}
# help stays fast
LIGHT = (
    "config",
    "errors",
    "files",
    "plan_facts",
    "processes",
    "provenance",
    "recipes",
    "cli",
    "__main__",
    "__init__",
)
HEAVY = {"torch", "torchvision", "diffusers", "accelerate", "timm", "torch_fidelity", "matplotlib", "tensorboard"}


class Import(NamedTuple):
    target: str  # dotted, absolute
    line: int
    at_start: bool  # run when the module is imported: not in a function, not for the type checker alone


def violations(sources: dict[str, str]) -> list[str]:
    """``{path from the repository's root: source}`` -> one line for every import that goes the wrong way."""
    found = []
    for path, source in sources.items():
        parts = Path(path).with_suffix("").parts
        module = parts if parts[0] == PACKAGE else (PACKAGE, *parts)
        room = module[1]
        for target, line, at_start in imports_of(source, module[:-1]):
            wrong = reason(path, room, target, at_start)
            if wrong:
                found.append(f"{path}:{line}: {wrong}")
    return found


def reason(path: str, room: str, target: str, at_start: bool) -> str | None:
    top, *rest = target.split(".")
    allowed = CLOSED_FILES.get(path, CLOSED.get(room))
    if top != PACKAGE:
        if top == "pipelines":
            return f"{target} goes by {PACKAGE}.pipelines"
        if allowed is not None and top not in allowed | sys.stdlib_module_names:
            return f"{target} in {room}, which imports {', '.join(sorted(allowed))} alone"
        if room in LIGHT and at_start and top in HEAVY:
            return f"{target} when {room} is imported"
        return None
    other = rest[0] if rest and rest[0] in FLOOR else "__init__"  # what is no room is a public name of the package
    if allowed is not None and other != room:
        return f"{target} in {room}, which imports nothing of the package"
    if path in CLOSED_FILES:
        return f"{target} in a file that imports {', '.join(CLOSED_FILES[path])} alone"
    if FLOOR[other] > FLOOR[room]:
        return f"{room} imports {target}, which is above it"
    if FLOOR[other] == FLOOR[room] and other != room and {other, room} <= set(WINGS):
        return f"{room} imports {target}, the other wing of its floor"
    if room in LIGHT and at_start and other in WINGS:
        return f"{target} when {room} is imported"
    return None


def imports_of(source: str, package: tuple[str, ...]) -> Iterator[Import]:
    """Every import statement of a module that lives in ``package``, wherever it stands."""

    def walk(node: ast.AST, at_start: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_start) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: max(len(package) - node.level + 1, 0)] if node.level else ()
            origin = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:  # `from . import a` may name modules
                yield Import(f"{origin}.{alias.name}" if origin else alias.name, node.lineno, at_start)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            if package == (PACKAGE,):
                return  # __init__ names everything there, for the type checker
            at_start = False
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            at_start = False
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_start)

    yield from walk(ast.parse(source), True)


def repository() -> dict[str, str]:
    paths = [path for folder in (PACKAGE, "pipelines") for path in (ROOT / folder).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def test_the_repository_has_no_wrong_import() -> None:
    sources = repository()
    rooms = {Path(path).with_suffix("").parts[0 if path.startswith("pipelines") else 1] for path in sources}
    assert rooms <= FLOOR.keys(), "a new room: give it a floor"
    assert rooms >= {*WINGS, "config", "cli"}
    assert violations(sources) == []


def test_the_picture_in_the_docs_has_these_arrows() -> None:
    lines = [line for line in (ROOT / "docs" / "design.md").read_text().splitlines() if " --> " in line]
    arrows = {pair for line in lines for pair in pairwise(line.split()[::2])}
    assert {room for pair in arrows for room in pair} == {*WINGS, "cli", "config"}
    assert all(FLOOR[upper] == FLOOR[lower] + 1 for upper, lower in arrows)


GOOD = {
    "ddpm_redistill/cli/a.py": "from .b import c\ndef run():\n    import torch\n    from ..training import loop",
    "ddpm_redistill/__init__.py": "if TYPE_CHECKING:\n    from .training.loop import train",
    "ddpm_redistill/__main__.py": "from .cli import main",
    "ddpm_redistill/provenance.py": "def environment():\n    import torch",
    "ddpm_redistill/config.py": "from .errors import UserError\nimport dataclasses",
    "ddpm_redistill/core/a.py": "import torch.nn\nfrom torch import nn\nfrom . import b\nfrom .b import c\nimport abc",
    "ddpm_redistill/families/a.py": "from ..core.taps import Tap\nfrom ..sources import weights\nimport timm",
    "ddpm_redistill/students/a.py": "from ..families import a\nfrom ..sources import b\nimport numpy",
    "ddpm_redistill/evaluation/a.py": "import ddpm_redistill.sources.images\nfrom .. import provenance",
    "pipelines/a.py": "import hashlib, diffusers.models\nfrom .red_block import REDBlock",
}
BAD = [
    ("ddpm_redistill/core/a.py", "from ..config import X"),
    ("ddpm_redistill/core/a.py", "from .. import errors"),
    ("ddpm_redistill/core/a.py", "import ddpm_redistill.pipelines.red_block"),
    ("ddpm_redistill/core/a.py", "import numpy"),
    ("ddpm_redistill/core/a.py", "def f():\n    from diffusers import UNet2DModel"),
    ("ddpm_redistill/core/a.py", "from ...numpy import array"),
    ("ddpm_redistill/core/a.py", "from ....numpy import array"),
    ("pipelines/a.py", "from ..errors import UserError"),
    ("pipelines/a.py", "import numpy.linalg"),
    ("pipelines/red_block.py", "from diffusers import UNet2DModel"),
    ("pipelines/red_block.py", "from .modeling_red_unet import RedUNet2DModel"),
    ("ddpm_redistill/config.py", "import torch"),
    ("ddpm_redistill/config.py", "if True:\n    from torch.nn import Module"),
    ("ddpm_redistill/config.py", "from .core.losses import red_loss"),
    ("ddpm_redistill/config.py", "def f():\n    from .sources import images"),
    ("ddpm_redistill/cli/a.py", "class A:\n    import torch"),
    ("ddpm_redistill/cli/a.py", "from ..training.loop import train"),
    ("ddpm_redistill/__init__.py", "from .students.plan import plan_student"),
    ("ddpm_redistill/files.py", "import ddpm_redistill"),
    ("ddpm_redistill/sources/a.py", "from ..students.plan import plan_student"),
    ("ddpm_redistill/sources/a.py", "from ..families.classifier import build"),
    ("ddpm_redistill/families/a.py", "if TYPE_CHECKING:\n    from ..students import plan"),
    ("ddpm_redistill/families/a.py", "def f():\n    from ..training import loop"),
    ("pipelines/strides.py", "from diffusers import UNet2DModel"),
    ("ddpm_redistill/students/a.py", "from .. import training"),
    ("ddpm_redistill/students/a.py", "from .. import load_teacher"),
    ("ddpm_redistill/students/a.py", "from pipelines.red_block import REDBlock"),
    ("ddpm_redistill/training/a.py", "from ddpm_redistill.evaluation import metrics"),
    ("ddpm_redistill/training/a.py", "async def f():\n    try:\n        import ddpm_redistill.cli\n    finally: ..."),
    ("ddpm_redistill/evaluation/deep/a.py", "from ...training.loop import train"),
    ("ddpm_redistill/evaluation/__init__.py", "from ..cli.text import summary"),
]


def test_allowed_imports_pass() -> None:
    assert violations(GOOD) == []


@pytest.mark.parametrize(("path", "source"), BAD)
def test_a_wrong_import_is_named(path: str, source: str) -> None:
    found = violations({**GOOD, path: source})
    assert len(found) == 1
    assert found[0].startswith(f"{path}:")


def test_help_loads_no_torch() -> None:
    program = "import sys, ddpm_redistill.cli, ddpm_redistill.__main__; print(*{'torch', 'diffusers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
