"""The gallery's scripts run, and print what the documentation shows, up to times and rounded figures."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GALLERY = ROOT / "docs" / "gallery"
# torchvision beside a CPU build of torch needs the operators that tests/conftest.py defines.
RUN = "import sys, runpy; sys.path.append(sys.argv[2]); import tests.conftest; runpy.run_path(sys.argv[1])"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in GALLERY.glob("*.py")))
def test_a_gallery_script_prints_what_the_page_shows(name: str) -> None:
    if name == "bert_four_tasks":
        pytest.importorskip("transformers")
    command = [sys.executable, "-W", "ignore", "-c", RUN, str(GALLERY / f"{name}.py"), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert done.returncode == 0, done.stderr
    shown = (GALLERY / f"{name}.txt").read_text(encoding="utf-8")
    assert _form(done.stdout) == _form(shown)


def _form(text: str) -> list[str]:
    """The words of every line but those of the tree, which rounding may change."""
    lines = [line for line in text.splitlines() if "stage" not in line]
    return [" ".join(re.sub(r"-?[0-9][0-9.]*", "", line).split()) for line in lines]
