"""Every name of the top level shows in its docstring how it is used, and what it shows is true."""

from __future__ import annotations

import doctest
import io
from pathlib import Path
from typing import Any

import pytest
import torch

import branchnet

SETUP = Path(__file__).parents[2] / "docs" / "doctest_setup.py"
"""Names that examples may use without an import: those of the examples on the documentation's pages."""

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec(compile(SETUP.read_text(encoding="utf-8"), str(SETUP), "exec"), found)
    return found


@pytest.mark.parametrize("name", sorted(branchnet.__all__))
def test_an_example_runs(name: str, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tests = doctest.DocTestFinder().find(getattr(branchnet, name), name, globs=dict(names))
    examples = sum(len(test.examples) for test in tests)
    assert examples, f"the docstring of branchnet.{name} has no `>>>` example"
    printed = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    failed = sum(runner.run(test, out=printed.write).failed for test in tests)
    assert not failed, printed.getvalue()
