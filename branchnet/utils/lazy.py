"""Public names of a package that are imported when they are first used (PEP 562), listed in its `.pyi` stub.

Type checkers and editors read the stub, and so does `attach_stub`: each name stands in one place.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def attach_stub(
    package: str, filename: str, needs: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Read `__init__.pyi` next to `filename`, and make what serves the names that it imports.

    In the package's `__init__.py`:

        __getattr__, __dir__, __all__ = attach_stub(__name__, __file__)

    Args:
        package: the package's `__name__`.
        filename: its `__file__`.
        needs: by name the other package without which it cannot be imported.

    Returns:
        `__getattr__`, which imports a name or a subpackage when it is first used and keeps it in the package;
        `__dir__`; `__all__`, the sorted names, without those whose package is not installed: `from package import *`
        imports the others.

    Raises:
        ImportError: there is no stub, or it imports in a way that cannot be delayed; file and line are named.
    """
    modules, folder = _names_in(Path(filename).with_suffix(".pyi")), Path(filename).parent
    names = sorted(modules)

    def load(name: str) -> Any:
        if (folder / name / "__init__.py").exists():  # a subpackage, which nothing has imported yet
            return importlib.import_module(f"{package}.{name}")
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{modules[name]}")
        value = module if modules[name] == name else getattr(module, name)
        sys.modules[package].__dict__[name] = value
        return value

    lacking = {name for name, other in (needs or {}).items() if importlib.util.find_spec(other) is None}
    return load, names.copy, [name for name in names if name not in lacking]


def _names_in(stub: Path) -> dict[str, str]:
    """By public name the module, relative to the package, that defines it; for a public module its own name."""
    if not stub.exists():
        raise ImportError(f"{stub} does not exist; it is expected to list the package's public names")
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(stub.read_text(encoding="utf-8"), str(stub))):
        if not isinstance(node, ast.ImportFrom):
            continue
        line = f"{stub}, line {node.lineno}: {ast.unparse(node)}"
        if node.level != 1 or any(alias.name == "*" or alias.asname not in (None, alias.name) for alias in node.names):
            raise ImportError(f"{line}; expected `from .module import name as name`")
        for alias in node.names:
            if alias.name == node.module:
                raise ImportError(f"{line}; importing a module of the same name would hide it: rename the module")
            found[alias.name] = node.module or alias.name
    return found
