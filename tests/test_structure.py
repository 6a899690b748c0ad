"""The ground plan, read from the source: what a file may import, what it may be called, how many lie in a folder.

That a room imports only rooms below it is the contract of import-linter in pyproject.toml.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "branchnet"
FILES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in FILES})
MOST_FILES = 13
RINGS: dict[frozenset[str], str] = {
    frozenset({"branchnet.builder.network.branched_network", "branchnet.builder.network.surgery"}): (
        "methods such as add_task return a new network that surgery makes"
    ),
}
"""Files that import each other, and why they may."""
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
"""What provides a package of another name."""


def name_of(path: Path) -> str:
    """The module's dotted name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path) for path in FILES}


def is_for_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_of(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import that is executed, those inside functions too."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif is_for_type_checking(child):
            yield from imports_of(ast.Module(child.orelse, []))
        else:
            yield from imports_of(child)


def imported(path: Path) -> set[str]:
    """The modules of this package that a file imports."""
    found = set()
    for node in imports_of(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found & MODULES


def names_exported(folder: Path) -> set[str]:
    stub = folder / "__init__.pyi"
    source = (stub if stub.exists() else folder / "__init__.py").read_text()
    return {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_the_walk_sees_imports_inside_functions_but_not_those_for_type_checking() -> None:
    source = "if TYPE_CHECKING:\n    import a\nelse:\n    import b\ndef f():\n    from c import d\n"
    found = [ast.unparse(node) for node in imports_of(ast.parse(source))]
    assert found == ["import b", "from c import d"]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_import_from_rooms_by_absolute_names(path: Path) -> None:
    public = path.parent == PACKAGE and path.stem in ("__init__", "__main__")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            version = path == PACKAGE / "utils" / "version.py"  # it stands in the package's __init__, for hatch
            assert node.module != "branchnet" or public or version, f"line {node.lineno}: import from the room instead"
        elif isinstance(node, ast.Import):
            assert "branchnet" not in {alias.name for alias in node.names}, f"line {node.lineno}: import from the room"


def test_no_file_name_stands_twice() -> None:
    names = Counter(
        path.stem for path in FILES if path.stem != "__init__" and path.parent != PACKAGE / "cli" / "commands"
    )
    assert [name for name, count in names.items() if count > 1] == []


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_folders_are_small_and_say_what_is_in_them(folder: Path) -> None:
    files = [path for path in FILES if path.parent == folder]
    if folder != PACKAGE / "cli" / "commands":  # one file for each verb
        assert len(files) <= MOST_FILES, [path.name for path in files]
        shadowed = {path.stem for path in files} & names_exported(folder)
        assert not shadowed, f"modules with the name of something that the package exports: {shadowed}"
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    sentences = [part for part in docstring.replace("\n", " ").split(". ") if part.strip()]
    assert len(sentences) >= 2, f"{docstring!r} should say in two sentences what is in the folder and what is not"


def test_files_form_no_rings_but_those_with_a_reason() -> None:
    graph = nx.DiGraph((name_of(path), other) for path in FILES for other in imported(path) - {name_of(path)})
    rings = {frozenset(ring) for ring in nx.strongly_connected_components(graph) if len(ring) > 1}
    assert rings == set(RINGS)


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    known = {re.split(r"[\s\[<>=!;]", line)[0].lower().replace("_", "-") for line in declared}
    used = {
        name.partition(".")[0]
        for path in FILES
        for node in imports_of(ast.parse(path.read_text()))
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)])
    }
    others = used - set(sys.stdlib_module_names) - {"branchnet"}
    assert {DISTRIBUTIONS.get(name, name).lower().replace("_", "-") for name in others} - known == set()
