"""Public functions, methods and classes say what they take and what they return."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import pytest

ROOMS = (
    "affinity",
    "builder",
    "clustering",
    "data",
    "deploy",
    "inference",
    "models",
    "reporting",
    "specification",
    "stages",
    "training",
)


def described(doc: str, section: str) -> set[str]:
    """The names that a section of a docstring in Google style describes."""
    lines = iter(inspect.cleandoc(doc).splitlines())
    found: set[str] = set()
    for line in lines:
        if line == f"{section}:":
            break
    for line in lines:
        if line and not line.startswith(" "):
            break
        if match := re.match(r"    \*{0,2}(\w+(?:, \w+)*):", line):
            found |= set(match[1].split(", "))
    return found


def parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self", "cls"}


def returns_something(function: Callable[..., Any]) -> bool:
    return function.__annotations__.get("return", "None") not in (None, "None")


def public_methods(kind: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, member in vars(kind).items():
        function = getattr(member, "__func__", member)
        if isinstance(function, FunctionType) and not name.startswith("_"):
            yield name, function


def gaps_of_function(function: Callable[..., Any]) -> list[str]:
    doc = function.__doc__ or ""
    gaps = [f"no Args for {name}" for name in sorted(parameters(function) - described(doc, "Args"))]
    if returns_something(function) and not re.search(r"^\s*(Returns|Yields):$", doc, re.MULTILINE):
        gaps.append("no Returns")
    return gaps


def gaps_of_class(kind: type) -> list[str]:
    doc = kind.__doc__ or ""
    named = described(doc, "Args") | described(doc, "Attributes")
    taken = {f.name for f in dataclasses.fields(kind) if f.init} if dataclasses.is_dataclass(kind) else parameters(kind)
    if getattr(kind, "_is_protocol", False):  # nobody makes one
        taken = set()
    gaps = [f"no Args or Attributes for {name}" for name in sorted(taken - named) if not name.startswith("_")]
    for name, method in public_methods(kind):
        gaps += [f".{name}: {gap}" for gap in gaps_of_function(method)]
    return gaps


@pytest.mark.parametrize("room", ROOMS)
def test_docstrings_are_complete(room: str) -> None:
    package = importlib.import_module(f"branchnet.{room}")
    gaps = []
    for name in package.__all__:
        thing = getattr(package, name)
        if inspect.isclass(thing):
            gaps += [f"{name} {gap}" for gap in gaps_of_class(thing)]
        elif isinstance(thing, FunctionType):
            gaps += [f"{name}: {gap}" for gap in gaps_of_function(thing)]
    assert not gaps, "\n".join(gaps)


def test_a_gap_is_noticed() -> None:
    def half(first: int, second: int) -> int:
        """Add.

        Args:
            first: a number.
        """
        return first + second

    assert gaps_of_function(half) == ["no Args for second", "no Returns"]
