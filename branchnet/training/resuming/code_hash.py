"""A hash of what a function or module computes: its code, its settings, and the tensors that it holds."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from branchnet.utils.tensor_digest import checksum

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def code_hash(value: Any) -> str:
    """Hash a callable, as far as it can be seen into.

    Of functions the byte code, defaults, closures and the globals that they use count, of modules and other objects
    their class and their public attributes, of tensors the content; names only of what comes with Python or installed
    packages. Where the source is written, and comments, do not count.

    Args:
        value: a function, a module, or anything that they hold.

    Returns:
        Hexadecimal digits.

    >>> code_hash(lambda x: 2 * x) == code_hash(lambda x: 3 * x)
    False
    """
    digest = hashlib.sha256()
    for part in _parts(value, {}):
        digest.update(part.encode() + b"\n")
    return digest.hexdigest()


def _parts(value: Any, seen: dict[int, Any]) -> Iterator[str]:
    if isinstance(value, _PLAIN):
        yield f"{type(value).__name__} {value!r}"
    elif isinstance(value, Tensor):
        yield checksum([("", value.detach().cpu().contiguous())])
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    elif id(value) in seen:
        yield "again"
    else:
        seen[id(value)] = value  # kept alive, so that no other object gets its id
        yield from _parts_of_object(value, seen)


def _parts_of_object(value: Any, seen: dict[int, Any]) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from _many(dict(value), seen)
    elif isinstance(value, list | tuple):
        yield from _many(dict(enumerate(value)), seen)
    elif isinstance(value, set | frozenset):
        yield str(sorted(map(repr, value)))
    elif isinstance(value, partial):
        yield from _many({"function": value.func, "args": value.args, "keywords": value.keywords}, seen)
    elif isinstance(value, MethodType):
        yield from _many({"self": value.__self__, "function": value.__func__}, seen)
    elif isinstance(value, FunctionType):
        yield from _of_function(value, seen)
    elif isinstance(value, CodeType):
        yield from _of_code(value, seen)
    elif isinstance(value, type):
        yield from _of_class(value, seen)
    elif isinstance(value, nn.Module):
        yield from _of_class(type(value), seen)
        yield from _many({"settings": _public(value), "tensors": _tensors(value), "inside": value._modules}, seen)
    elif isinstance(value, ModuleType | BuiltinFunctionType | Enum) or not hasattr(value, "__dict__"):
        yield _name(value)
    else:
        yield from _of_class(type(value), seen)
        yield from _many(_public(value), seen)


def _name(value: Any) -> str:
    """What a value without attributes is called; never an address, which is another one each time."""
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or repr(value)
    return type(value).__qualname__ if " at 0x" in name else str(name)


def _many(values: Mapping[Any, Any], seen: dict[int, Any]) -> Iterator[str]:
    yield f"{len(values)} entries"
    for name, value in values.items():
        yield repr(name) if isinstance(name, _PLAIN) else type(name).__qualname__
        yield from _parts(value, seen)


def _of_function(function: FunctionType, seen: dict[int, Any]) -> Iterator[str]:
    yield f"{function.__module__}.{function.__qualname__}" if _installed(function.__module__) else "function"
    if _installed(function.__module__):
        return
    yield from _of_code(function.__code__, seen)
    cells = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
    used = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    yield from _many({"defaults": function.__defaults__, "keywords": function.__kwdefaults__, "cells": cells}, seen)
    yield from _many(used, seen)


def _of_code(code: CodeType, seen: dict[int, Any]) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names}"
    yield from _many(dict(enumerate(code.co_consts)), seen)


def _of_class(kind: type, seen: dict[int, Any]) -> Iterator[str]:
    yield f"class {kind.__module__}.{kind.__qualname__}" if _installed(kind.__module__) else f"class {kind.__name__}"
    if not _installed(kind.__module__):
        for base in kind.__bases__:
            yield from _parts(base, seen)
        for name, member in vars(kind).items():
            if isinstance(member, FunctionType | staticmethod | classmethod | property):
                yield name
                yield from _parts(getattr(member, "__func__", None) or getattr(member, "fget", None) or member, seen)
            elif isinstance(member, _PLAIN) and not name.startswith("__"):
                yield f"{name} {member!r}"


def _names(code: CodeType) -> list[str]:
    inner = [name for const in code.co_consts if isinstance(const, CodeType) for name in _names(const)]
    return list(dict.fromkeys([*code.co_names, *inner]))


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # a variable that is not assigned yet
        return False
    return True


def _public(value: Any) -> dict[str, Any]:
    """Attributes that are settings; `training` is a mode, and modules hold theirs, and tensors, under underscores."""
    return {name: one for name, one in vars(value).items() if not name.startswith("_") and name != "training"}


def _tensors(module: nn.Module) -> dict[str, Tensor | None]:
    return {**module._parameters, **module._buffers}


def _installed(module: str | None) -> bool:
    """Whether a module comes with Python or an installed package; its version tells more than its code then."""
    root = (module or "").partition(".")[0]
    if root in sys.stdlib_module_names and root != "__main__":
        return True
    file = getattr(sys.modules.get(root), "__file__", None)
    return file is not None and bool({"site-packages", "dist-packages"} & set(Path(file).parts))
