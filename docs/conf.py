"""Sphinx settings; pages that the library itself can write (the command, reproduced numbers) are written here first."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from pathlib import Path

from sphinx.application import Sphinx

import branchnet
from branchnet.cli import VERBS, main

HERE = Path(__file__).parent
ROOT = HERE.parent
GENERATED = HERE / "generated"

project = "branchnet"
author = "the authors of branchnet"
copyright = author
version = release = branchnet.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "gallery/*.txt"]
html_theme = "furo"
html_title = "branchnet"
html_static_path: list[str] = []
templates_path: list[str] = []
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
doctest_test_doctest_blocks = ""
doctest_global_setup = (HERE / "doctest_setup.py").read_text(encoding="utf-8")
nitpicky = False


def write_command_page() -> None:
    """Every verb's own help."""
    parts = ["# The command\n"]
    for verb in ["", *VERBS]:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            main([verb, "--help"] if verb else ["--help"])
        title = f"## `branchnet {verb}`\n\n" if verb else ""
        parts.append(f"{title}```text\n{printed.getvalue().strip()}\n```\n")
    parts.append((HERE / "exit_codes.txt").read_text(encoding="utf-8"))
    (GENERATED / "command.md").write_text("\n".join(parts), encoding="utf-8")


def write_reproduced_page() -> None:
    """Published numbers beside ours, computed now."""
    sys.path.insert(0, str(ROOT / "tools"))
    parts = [(HERE / "reproduced_intro.txt").read_text(encoding="utf-8")]
    for script in sorted((ROOT / "tools").glob("reproduce_*.py")):
        parts.append(importlib.import_module(script.stem).reproduce().to_markdown())
        parts.append(f"Made by `python tools/{script.name}`.\n")
    (GENERATED / "reproduced.md").write_text("\n".join(parts), encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Have the generated pages written before pages are looked for."""
    app.connect("builder-inited", write_pages)


def write_pages(app: Sphinx) -> None:
    """Write the generated pages, unless only doctests are run and the pages are there."""
    if app.builder.name == "doctest" and (GENERATED / "reproduced.md").exists():
        return
    GENERATED.mkdir(exist_ok=True)
    write_command_page()
    write_reproduced_page()
