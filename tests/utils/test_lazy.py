"""Names of a package are imported when they are first used, and those of branchnet are what its stubs say."""

from __future__ import annotations

import ast
import importlib
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import branchnet

ROOT = Path(branchnet.__file__).parent
PACKAGES = sorted(
    ".".join(("branchnet", *stub.parent.relative_to(ROOT).parts)).rstrip(".") for stub in ROOT.rglob("__init__.pyi")
)
INIT = "from branchnet.utils.lazy import attach_stub\n__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)\n"
numbers = itertools.count()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def package(folder: Path, stub: str | None, **modules: str) -> ModuleType:
    name = f"lazy_example_{next(numbers)}"
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(INIT)
    if stub is not None:
        (folder / name / "__init__.pyi").write_text(stub)
    for module, text in modules.items():
        (folder / name / f"{module}.py").write_text(text)
    importlib.invalidate_caches()
    return importlib.import_module(name)


def loaded(made: ModuleType, module: str) -> bool:
    return f"{made.__name__}.{module}" in sys.modules


def test_a_name_is_imported_when_it_is_first_used_and_kept(folder: Path) -> None:
    stub = "from .numbers import one as one\nfrom .words import word as word\nVERSION: str\n"
    made = package(folder, stub, numbers="one = 1", words="word = 'w'")
    assert not loaded(made, "numbers") and not loaded(made, "words")
    assert made.one == 1 and loaded(made, "numbers") and not loaded(made, "words")
    assert made.__dict__["one"] == 1
    assert made.__all__ == ["one", "word"] and {"one", "word"} <= set(dir(made))
    namespace: dict[str, object] = {}
    exec(f"from {made.__name__} import *", namespace)
    assert namespace["word"] == "w"


def test_a_module_may_be_public_itself(folder: Path) -> None:
    made = package(folder, "from . import numbers as numbers\n", numbers="one = 1")
    assert not loaded(made, "numbers")
    assert made.numbers.one == 1


def test_changing_what_dir_or_all_returned_changes_nothing(folder: Path) -> None:
    made = package(folder, "from .numbers import one as one\n", numbers="one = 1")
    made.__all__.clear()
    dir(made).clear()
    assert "one" in dir(made) and made.one == 1


def test_unknown_names_are_attribute_errors_that_name_them(folder: Path) -> None:
    made = package(folder, "from .numbers import one as one\n", numbers="one = 1")
    with pytest.raises(AttributeError, match=f"module '{made.__name__}' has no attribute 'two'"):
        made.two  # noqa: B018
    assert not hasattr(made, "two")
    with pytest.raises(ImportError, match="two"):
        exec(f"from {made.__name__} import two")


def test_a_name_that_the_module_lacks_and_an_error_in_the_module_are_raised_as_they_are(folder: Path) -> None:
    made = package(folder, "from .numbers import two as two\nfrom .bad import x as x\n", numbers="one = 1", bad="1 / 0")
    with pytest.raises(AttributeError, match="has no attribute 'two'"):
        made.two  # noqa: B018
    with pytest.raises(ZeroDivisionError):
        made.x  # noqa: B018


@pytest.mark.parametrize(
    ("stub", "message"),
    [
        (None, r"__init__\.pyi does not exist"),
        ("\nfrom .numbers import *\n", r"__init__\.pyi, line 2: from \.numbers import \*; expected `from \.module"),
        ("from ..numbers import one as one\n", r"expected `from \.module"),
        ("from os import path as path\n", r"expected `from \.module"),
        ("from .numbers import one as uno\n", r"expected `from \.module"),
        ("from .numbers import numbers as numbers\n", "would hide it: rename the module"),
    ],
)
def test_stubs_that_cannot_be_served_are_refused(folder: Path, stub: str | None, message: str) -> None:
    with pytest.raises(ImportError, match=message):
        package(folder, stub)


@pytest.mark.parametrize("name", PACKAGES)
def test_every_name_of_a_stub_of_branchnet_is_there(name: str) -> None:
    """The names are read from the stub by other means: every `as` of it."""
    made = importlib.import_module(name)
    stub = Path(made.__file__ or "").with_suffix(".pyi").read_text()
    wanted = {word for line in stub.splitlines() if " as " in line for word in [line.split(" as ")[1].strip()]}
    lacking = set() if importlib.util.find_spec("lightning") else {"LightningBranched"}
    assert wanted and wanted - lacking == set(made.__all__) and wanted <= set(dir(made))
    assert all(getattr(made, one) is not None for one in wanted - lacking)
    listed = [node for node in ast.parse(stub).body if isinstance(node, ast.Assign)]
    assert all(set(ast.literal_eval(node.value)) == wanted for node in listed)


def test_names_whose_package_is_not_installed_are_left_out_of_a_star_import(folder: Path) -> None:
    made = folder / "lazy_star_example"
    made.mkdir()
    (made / "numbers.py").write_text("one = 1")
    (made / "other.py").write_text("import not_installed\ntwo = 2")
    (made / "__init__.pyi").write_text("from .numbers import one as one\nfrom .other import two as two\n")
    needs = "__file__, needs={'two': 'not_installed', 'one': 'ast'})"
    (made / "__init__.py").write_text(INIT.replace("__file__)", needs))
    importlib.invalidate_caches()
    found: dict[str, object] = {}
    exec("from lazy_star_example import *", found)
    assert found["one"] == 1 and "two" not in found
    with pytest.raises(ImportError, match="not_installed"):
        importlib.import_module("lazy_star_example").two  # noqa: B018


def test_importing_branchnet_imports_no_torch() -> None:
    code = "import sys, branchnet; raise SystemExit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


def test_rooms_need_no_import_of_their_own() -> None:
    code = "import branchnet; print(branchnet.training.accuracy, branchnet.data.read_samples, branchnet.stages.split)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent, capture_output=True)
    with pytest.raises(AttributeError, match="no attribute 'rooms'"):
        branchnet.rooms  # noqa: B018
