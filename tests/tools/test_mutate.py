"""The mutation run, on a small package: what is changed and what is not, what is killed, resumed, listed."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
PACKAGE = Path(__file__).parents[2] / "branchnet"
SOURCE = '''
def larger(a, b):
    """The larger one."""
    return a if a > b else b


def untested():
    return True
'''
TESTS = """
from branchnet.room.inner.numbers import larger


def test_larger():
    assert (larger(1, 2), larger(2, 1)) == (2, 2)
"""


@pytest.fixture(autouse=True)
def _tools_on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.setattr(importlib.import_module("mutation_trials"), "load", lambda: None)
    yield


@pytest.fixture
def mutants() -> ModuleType:
    return importlib.import_module("mutants")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    files = {
        "branchnet/__init__.py": "",
        "branchnet/room/__init__.py": "",
        "branchnet/room/inner/__init__.py": "",
        "branchnet/room/inner/numbers.py": SOURCE,
        "tests/room/test_far.py": "def test_nothing_of_it():\n    assert True\n",
        "tests/room/test_numbers.py": TESTS,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x = a < b", {"x = a <= b"}),
        ("x = a is None", {"x = a is not None"}),
        ("x = (a) not in (b)", {"x = (a) in (b)"}),
        ("x = a and b", {"x = a or b"}),
        ("x = a @ b + c", {"x = a @ b - c"}),
        ("x = np.maximum(a, b)", {"x = np.minimum(a, b)"}),
        ("x = not a", {"x = (a)"}),
        ("x = a[0]", {"x = a[1]", "x = a[-1]"}),
        ("x = 40", {"x = 400"}),
        ("x = 0.5", {"x = 5.0"}),
        ("x = é if True else b", {"x = é if (not (True)) else b", "x = é if False else b"}),
        ("a.b = c", {"pass"}),
        ("a += b", {"pass", "a -= b"}),
        ("f(a)", {"pass"}),
        ("x: int | None = a", set()),
        ("Kind = A | B", set()),
        ("raise ValueError(f'{1 + 1} is ' + a)", {"pass"}),
        ("warnings.warn('a' * 3, stacklevel=3)", {"pass"}),
        ("assert a < b", set()),
        ("x = zip(a, b, strict=True)", set()),
        ("x = isinstance(a, A | B)", set()),
        ("x = f'{a + 1}'", set()),
    ],
)
def test_what_is_changed_in_a_line(mutants: ModuleType, line: str, expected: set[str]) -> None:
    source = line.encode()
    assert {mutant.apply(source).decode() for mutant in mutants.mutants_of("a.py", source)} == expected


def test_annotations_decorators_and_representations_are_left_alone(mutants: ModuleType) -> None:
    source = b"@cache(1 + 1)\ndef f(a: X[1] = b, *, c: Y[2]) -> Z[3]:\n    '''Text.'''\n    g: int = a\n"
    assert mutants.mutants_of("a.py", source) == []
    assert mutants.mutants_of("a.py", b"class A:\n    def __repr__(self):\n        return str(1 + 1)\n") == []


def test_every_mutant_of_a_file_is_another_program(mutants: ModuleType) -> None:
    source = (PACKAGE / "training" / "teachers.py").read_bytes()
    programs = [ast.dump(ast.parse(mutant.apply(source))) for mutant in mutants.mutants_of("teachers.py", source)]
    assert len({ast.dump(ast.parse(source)), *programs}) == len(programs) + 1 > 40


def test_a_sample_is_kept_when_lines_are_added_elsewhere_and_files_are_renamed(mutants: ModuleType) -> None:
    before = mutants.ranked(mutants.mutants_of("old.py", SOURCE.encode()), seed=1)
    after = mutants.ranked(mutants.mutants_of("new.py", b"import os\n" + SOURCE.encode()), seed=1)
    assert [m.key[1:] for m in before] == [m.key[1:] for m in after]
    assert before != mutants.ranked(before, seed=2)


def test_a_run_is_recorded_resumed_and_counted_and_leaves_the_checkout_alone(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate = importlib.import_module("mutate")
    results, page, known = checkout / "results.jsonl", checkout / "page.md", checkout / "known.yaml"
    known.write_text(
        "- {file: branchnet/room/inner/numbers.py, text: return a if a > b else b, change: '> to >=', "
        "reason: equal numbers are the same}\n"
    )
    source = checkout / "branchnet/room/inner/numbers.py"
    options = ["room", "--results", str(results), "--page", str(page), "--at-least", "0.5"]
    assert mutate.main(options, root=checkout, equivalents=known) == 0
    recorded = [json.loads(line) for line in results.read_text().splitlines()]
    assert {(line["change"], line["text"]): line["result"] for line in recorded} == {
        ("None returned", "return a if a > b else b"): "killed",
        ("condition negated", "return a if a > b else b"): "killed",
        ("None returned", "return True"): "survived",
        ("True to False", "return True"): "survived",
    }
    assert {line["by"] for line in recorded} == {"", "tests/room/test_numbers.py::test_larger"}
    assert "| all | 4 | 2 | 0 | 2 | 50% |" in page.read_text()
    assert "equal numbers are the same" in page.read_text()
    assert source.read_text() == SOURCE
    monkeypatch.setattr("mutate.copy_of", lambda root: pytest.fail("everything has been run"))
    assert mutate.main([*options[:-1], "0.6"], root=checkout, equivalents=known) == 1
    source.write_text("def larger(a, b):\n    return max(a, b)\n")
    with pytest.raises(SystemExit, match="no such mutant"):
        mutate.main(options, root=checkout, equivalents=known)


def test_only_tests_that_import_the_mutated_file_are_run_the_nearest_first(checkout: Path, mutants: ModuleType) -> None:
    trials = importlib.import_module("mutation_trials")
    (checkout / "branchnet/room/user.py").write_text(
        "from branchnet.room.inner.numbers import larger\n\ndef use(): ...\n"
    )
    (checkout / "tests/room/test_a_user.py").write_text("from branchnet.room import user\n")
    mutant = mutants.mutants_of("branchnet/room/inner/numbers.py", SOURCE.encode())[0]
    assert trials.nearest_tests(checkout, mutant) == ["tests/room/test_numbers.py", "tests/room/test_a_user.py"]


def test_a_run_without_end_is_stopped(checkout: Path) -> None:
    trials = importlib.import_module("mutation_trials")
    (checkout / "tests/room/test_endless.py").write_text("def test_endless():\n    while True:\n        pass\n")
    with trials.copy_of(checkout) as copy:
        assert trials.run_tests(copy, ["tests/room/test_endless.py"], seconds=1).status < 0
        with pytest.raises(SystemExit, match="fail without a mutant"):
            (copy / "tests/room/test_endless.py").write_text("def test_false():\n    assert False\n")
            trials.baseline(copy, "room")
