"""Show how the code is divided: sizes of folders, files and functions, imports between rooms, what each file serves.

Run it in a checkout: `python tools/structure.py` prints the figures, `--files` the list of files. A file serves what it
defines itself (public names, a verb of the command, what a page of docs/ names), or else the nearest entry points that
import it, directly or not.
"""

from __future__ import annotations

import argparse
import ast
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "branchnet"
SHOWN_ENTRIES = 3
REPEATED_LINES = 6


@dataclass(frozen=True)
class SourceFile:
    """One module of the package.

    Attributes:
        module: dotted name, without `.__init__`.
        path: its file.
        tree: its syntax tree.
        code_lines: lines that hold code, without docstrings, comments and blank lines.
        comments: lines that are a comment.
    """

    module: str
    path: Path
    tree: ast.Module
    code_lines: frozenset[int]
    comments: int

    @property
    def purpose(self) -> str:
        """First line of the docstring."""
        return (ast.get_docstring(self.tree) or "").partition("\n")[0]


def read_package(root: Path = ROOT) -> dict[str, SourceFile]:
    """Every module of the package by its dotted name."""
    return {file.module: file for file in map(read_source, sorted((root / PACKAGE).rglob("*.py")))}


def read_source(path: Path) -> SourceFile:
    """Parse one file and tell its code from docstrings and comments."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    numbered = list(enumerate(text.splitlines(), start=1))
    filled = {number for number, line in numbered if line.strip() and not line.strip().startswith("#")}
    comments = sum(line.strip().startswith("#") for _, line in numbered)
    return SourceFile(module, path, tree, frozenset(filled - _docstring_lines(tree)), comments)


def function_sizes(file: SourceFile) -> Iterator[tuple[str, int]]:
    """Name and code lines of every function and method; what is nested counts for the outer one, too."""
    for node in ast.walk(file.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, sum(node.lineno <= line <= node.end_lineno for line in file.code_lines)


def imports(files: Mapping[str, SourceFile]) -> dict[str, set[str]]:
    """Modules that each module imports when it runs; a public name counts for the module that defines it."""
    stubs = read_stubs()
    found: dict[str, set[str]] = defaultdict(set)
    for file in files.values():
        for base, name in _imported(file.tree):
            found[file.module].add(_home(base, name, files, stubs))
        found[file.module].discard(file.module)
    return found


def read_stubs(root: Path = ROOT) -> dict[str, dict[str, tuple[str, str]]]:
    """For each package with a stub: where every public name is defined, as (module, name)."""
    stubs = {}
    for path in sorted((root / PACKAGE).rglob("__init__.pyi")):
        package = ".".join(path.parent.relative_to(root).parts)
        stubs[package] = {
            alias.asname or alias.name: (f"{package}.{node.module}", alias.name)
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
    return stubs


def rooms_from_top(root: Path = ROOT) -> list[str]:
    """The rooms in the order of the layers contract in pyproject.toml, highest first."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    return list(next(contract["layers"] for contract in contracts if contract["type"] == "layers"))


def upward_imports(edges: Mapping[str, Iterable[str]], rooms: Sequence[str]) -> list[tuple[str, str]]:
    """Imports of a room by one that lies below it."""
    height = {room: -index for index, room in enumerate(rooms)}
    return [
        (module, imported)
        for module, all_imported in edges.items()
        for imported in all_imported
        if height.get(_room(module), 1) < height.get(_room(imported), 0)
    ]


def served(files: Mapping[str, SourceFile], edges: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """For each module the public names and verbs in it, else the nearest entry points that need it."""
    entries = _entry_points(files)
    importers: dict[str, set[str]] = defaultdict(set)
    for module, all_imported in edges.items():
        for imported in all_imported:
            importers[imported].add(module)
    return {module: _nearest(module, entries, importers) for module in files}


def _entry_points(files: Mapping[str, SourceFile]) -> dict[str, list[str]]:
    entries: dict[str, list[str]] = defaultdict(list)
    stubs = read_stubs()
    for package, names in stubs.items():
        for name, (module, original) in names.items():
            home = _home(module, original, files, stubs)
            entries[home].append(f"{PACKAGE}.{name}" if package == PACKAGE else f"{package}.{name}")
    entries[PACKAGE].append(f"import {PACKAGE}")
    for module in files:
        if module.startswith(f"{PACKAGE}.cli.commands."):
            entries[module].insert(0, f"`branchnet {module.rpartition('.')[2]}`")
    for folder in ("benchmarks", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for base, name in _imported(ast.parse(path.read_text(encoding="utf-8"))):
                entries[_home(base, name, files, stubs)].append(f"{folder}/{path.name}")
    for path in sorted((ROOT / "docs").rglob("*.md")):
        for named in re.findall(rf"\b{PACKAGE}(?:\.\w+)+", path.read_text(encoding="utf-8")):
            base, _, name = named.rpartition(".")
            if (home := _home(base, name, files, stubs)) in files:
                entries[home].append(str(path.relative_to(ROOT)))
    top = {
        name.rpartition(".")[2]
        for names in entries.values()
        for name in names
        if name.startswith(PACKAGE) and name.count(".") == 1
    }
    return {
        module: [name for name in dict.fromkeys(names) if name.count(".") < 2 or name.rpartition(".")[2] not in top]
        for module, names in entries.items()
    }


def _nearest(module: str, entries: Mapping[str, Sequence[str]], importers: Mapping[str, set[str]]) -> list[str]:
    seen, edge = {module}, [module]
    while edge:
        found = [name for reached in edge for name in entries.get(reached, ())]
        if found:
            return list(dict.fromkeys(found))[:SHOWN_ENTRIES]
        edge = sorted({user for reached in edge for user in importers.get(reached, ())} - seen)
        seen.update(edge)
    return []


def repeated_runs(files: Iterable[SourceFile], length: int = REPEATED_LINES) -> list[tuple[str, str]]:
    """Pairs of places, as `file:line`, where runs of at least `length` lines of code begin that are the same.

    Imports, docstrings, comments and blank lines do not count, nor do runs that only continue one before.
    """
    seen: dict[tuple[str, ...], list[tuple[SourceFile, int, int]]] = defaultdict(list)
    for file in files:
        text = file.path.read_text(encoding="utf-8").splitlines()
        skipped = {
            line
            for node in ast.walk(file.tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        kept = sorted(file.code_lines - skipped)
        code = [text[line - 1].strip() for line in kept]
        for start in range(len(kept) - length + 1):
            seen[tuple(code[start : start + length])].append((file, start, kept[start]))
    pairs = [pair for places in seen.values() for pair in combinations(places, 2)]
    starts = {(one[0].module, one[1], other[0].module, other[1]) for one, other in pairs}
    return [
        (f"{one[0].module}:{one[2]}", f"{other[0].module}:{other[2]}")
        for one, other in pairs
        if (one[0].module, one[1] - 1, other[0].module, other[1] - 1) not in starts
    ]


def _docstring_lines(tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                assert statement.end_lineno is not None
                lines.update(range(statement.lineno, statement.end_lineno + 1))
    return lines


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Package and name of every import that runs; those for type checking are left out."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(ast.walk(node))
        if isinstance(node, ast.ImportFrom) and node not in skipped and (node.module or "").startswith(PACKAGE):
            yield from ((str(node.module), alias.name) for alias in node.names)


def _home(base: str, name: str, files: Mapping[str, object], stubs: Mapping[str, Mapping[str, tuple[str, str]]]) -> str:
    """The module that defines `name` of `base`."""
    while name in stubs.get(base, {}):
        base, name = stubs[base][name]
    return f"{base}.{name}" if f"{base}.{name}" in files else base


def _room(module: str) -> str:
    return ".".join(module.split(".")[1:2])


def print_figures(files: Mapping[str, SourceFile]) -> None:
    """Print sizes, comments and imports."""
    folders: dict[str, int] = defaultdict(int)
    for file in files.values():
        folders[str(file.path.parent.relative_to(ROOT))] += 1
    print("files per folder: " + ", ".join(f"{folder} {count}" for folder, count in sorted(folders.items())))
    _print_spread("lines per file", [(f.module, len(f.path.read_text("utf-8").splitlines())) for f in files.values()])
    _print_spread("code lines per file", [(f.module, len(f.code_lines)) for f in files.values()])
    functions = [(f"{f.module}.{name}", size) for f in files.values() for name, size in function_sizes(f)]
    _print_spread("code lines per function", functions)
    print(f"code lines: {sum(len(f.code_lines) for f in files.values())}")
    print(f"lines of comments: {sum(f.comments for f in files.values())}")
    print(f"repeated runs of {REPEATED_LINES} or more lines of code: {len(repeated_runs(files.values()))}")
    edges = imports(files)
    print(f"imports between modules: {sum(map(len, edges.values()))}")
    upward = upward_imports(edges, rooms_from_top())
    print(f"imports that run upward: {len(upward)}", *(f"  {a} -> {b}" for a, b in upward), sep="\n")


def _print_spread(title: str, sizes: Sequence[tuple[str, int]]) -> None:
    ordered = sorted(size for _, size in sizes)
    largest = max(sizes, key=lambda entry: entry[1])
    ninth = ordered[int(0.9 * (len(ordered) - 1))]
    print(f"{title}: median {statistics.median(ordered):.0f}, 90% {ninth}, largest {largest[1]} ({largest[0]})")


def file_table(files: Mapping[str, SourceFile]) -> str:
    """Every file, what is in it, and what it serves, as a Markdown table."""
    serves = served(files, imports(files))
    rows = [
        f"| {file.path.relative_to(ROOT / PACKAGE)} | {file.purpose} | {', '.join(serves[module]) or '**nothing**'} |"
        for module, file in files.items()
        if file.path.name not in ("__init__.py", "__main__.py")
    ]
    return "\n".join(["| file | what is in it | serves |", "|---|---|---|", *rows])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", action="store_true", help="list the files instead of the figures")
    files = read_package()
    if parser.parse_args(arguments).files:
        print(file_table(files))
    else:
        print_figures(files)


if __name__ == "__main__":
    main()
