"""Scripts and examples import only what is there: nothing else runs most of them after a name has changed."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path for folder in ("benchmarks", "tools") for path in (ROOT / folder).rglob("*.py"))
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
IMPORT_ALL = """
import importlib, sys
from branchnet.utils.installed_torch.torchvision_operators import define_torchvision_operators
define_torchvision_operators()
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


@pytest.mark.parametrize("folder", ["benchmarks", "tools"])
def test_every_script_can_be_imported(folder: str) -> None:
    names = [path.relative_to(ROOT / folder).with_suffix("").parts for path in SCRIPTS if ROOT / folder in path.parents]
    modules = [".".join(name) for name in names if name[-1] != "__init__"]
    assert len(modules) >= 10
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / folder), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *modules], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_name_that_scripts_and_pages_import_from_the_package_is_there() -> None:
    imported = [*(found for path in SCRIPTS for found in in_code(path)), *(f for path in PAGES for f in in_page(path))]
    missing = [f"{where}: {module}.{name}" for where, module, name in imported if not is_there(module, name)]
    assert len(imported) >= 100
    assert not missing


def in_code(path: Path) -> Iterator[tuple[str, str, str]]:
    """Also what is imported inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        yield from names_of(node, f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', '')}")


def in_page(path: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if found := re.match(r"\s*(?:>>> )?(from branchnet[\w.]* import [\w, ]+)", line):
            for node in ast.parse(found[1]).body:
                yield from names_of(node, f"{path.relative_to(ROOT)}:{number}")


def names_of(node: ast.AST, where: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "branchnet":
        yield from ((where, node.module, alias.name) for alias in node.names)


def is_there(module: str, name: str) -> bool:
    try:
        if hasattr(importlib.import_module(module), name):
            return True
        importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True
