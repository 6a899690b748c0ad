"""Thousands of damaged specifications: each is refused by an error of ours, or is a whole one that is written again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from branchnet.errors import SpecError
from branchnet.specification import Architecture, GroupedArchitecture
from tests.architecture import test_architecture, test_stitched_specs
from tests.damage import damaged

GROUPED = """\
schema_version: 1
groups:
  - serves: [a]
    architecture:
      schema_version: 1
      tasks: [a, b]
      locations: [x]
      tree: [{until: x, branches: [a, b]}]
  - serves: [b]
    architecture:
      schema_version: 1
      tasks: [b]
      locations: [x]
      tree: [{until: x, branches: [b]}]
"""
KINDS: dict[str, tuple[str, Callable[[Path], Architecture | GroupedArchitecture]]] = {
    "plain": (test_architecture.SPEC, Architecture.load),
    "stitched": (test_stitched_specs.SPEC, Architecture.load),
    "grouped": (GROUPED, GroupedArchitecture.load),
}


def refused_or_whole(kind: str, folder: Path, count: int) -> None:
    text, load = KINDS[kind]
    path, again = folder / "spec.yaml", folder / "again.yaml"
    path.write_text(text)
    load(path)
    refused = 0
    for content in damaged(text.encode(), count):
        path.write_bytes(content)
        try:
            loaded = load(path)
        except SpecError as error:
            assert all(problem.startswith(f"{path}") for problem in error.problems)
            refused += 1
        else:
            loaded.save(again)
            assert load(again) == loaded
    assert refused > count // 3


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_specifications_raise_only_our_error(tmp_path: Path, kind: str) -> None:
    refused_or_whole(kind, tmp_path, 60)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("plain", 3000), ("stitched", 1000), ("grouped", 1000)])
def test_five_thousand_damaged_specifications(tmp_path: Path, kind: str, count: int) -> None:
    refused_or_whole(kind, tmp_path, count)
