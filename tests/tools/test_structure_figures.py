"""The division of the code: what `tools/structure.py` counts, and the rules that it shows to hold."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

EXAMPLE = '''"""Two functions.

And why.
"""

from branchnet.errors import DataError

LIMIT = 3  # a comment after code


def first(x):
    """One line."""
    # a comment
    if x > LIMIT:

        raise DataError("too much")
    return x


class Counter:
    """A class."""

    def second(self): return 2
'''


@pytest.fixture(scope="module")
def structure() -> Any:
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module("structure")
    finally:
        sys.path.remove(str(ROOT / "tools"))


@pytest.fixture
def example(structure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(structure, "ROOT", tmp_path)
    path = tmp_path / "branchnet" / "room" / "example.py"
    path.parent.mkdir(parents=True)
    path.write_text(EXAMPLE)
    return structure.read_source(path)


def test_sizes_of_an_example_counted_by_hand(structure: Any, example: Any) -> None:
    assert example.module == "branchnet.room.example"
    assert example.purpose == "Two functions."
    assert dict(structure.function_sizes(example)) == {"first": 4, "second": 1}
    assert len(example.code_lines) == 8
    assert example.comments == 1


def test_repeated_lines_are_found_once_for_a_run(structure: Any, example: Any) -> None:
    path = example.path.with_name("other.py")
    body = "".join(f"    x += {number}\n" for number in range(7))
    path.write_text(f"def a(x):\n{body}    return x\n\n\ndef b(x):\n    # the same again\n{body}    return -x\n")
    other = structure.read_source(path)
    assert structure.repeated_runs([example, other]) == [("branchnet.room.other:2", "branchnet.room.other:14")]


def test_an_import_of_a_higher_room_is_found(structure: Any) -> None:
    edges = {"branchnet.low.a": {"branchnet.high.b"}, "branchnet.high.b": {"branchnet.low.a", "branchnet.errors"}}
    assert structure.upward_imports(edges, ["high", "low", "errors"]) == [("branchnet.low.a", "branchnet.high.b")]


def test_no_room_imports_a_higher_one(structure: Any) -> None:
    found = structure.upward_imports(structure.imports(structure.read_package()), structure.rooms_from_top())
    assert found == [
        ("branchnet.errors", "branchnet.utils.visible_text"),  # which imports nothing of branchnet
        ("branchnet.utils.version", "branchnet"),  # the version stands in the package's __init__, for hatch
    ]


def test_every_file_serves_somebody(structure: Any) -> None:
    files = structure.read_package()
    serves = structure.served(files, structure.imports(files))
    # Every package's `__init__` resolves its names by `lazy`; `deprecated` waits for the first name that goes.
    helpers = ("__init__.py", "__main__.py", "lazy.py", "deprecation.py")
    assert [m for m, names in serves.items() if not names and files[m].path.name not in helpers] == []


def test_the_contributors_picture_shows_the_floors_of_the_contract(structure: Any) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", text, flags=re.MULTILINE)
    assert shown == structure.rooms_from_top()
