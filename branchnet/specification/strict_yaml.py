"""Reading YAML that means one thing, keeping the position of every value.

YAML 1.1 and 1.2 read some plain words differently (`no` is false or text, `12:30` is 750 or text), and documents can
hold constructs that no settings file needs. This reader takes the values on which both agree, and numbers as 1.2 reads
them (`1e-3` is a number). Everything else is refused with advice, while events are read and before a value is made:
other plain words on which the two differ, duplicate keys, keys that are not text, anchors, aliases, tags, directives,
numbers that are not finite, several documents, documents over 1 MB or of more than 50,000 values, nesting over 50.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from branchnet.errors import SpecError
from branchnet.utils.document_keys import Keys, show_keys

# A file may come from anyone: these limits keep the time and memory of reading one small. Anchors are refused, so that
# no small file expands to a large document.
MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_VALUES = 50_000
MAX_DIGITS = 40  # Python's conversion of digits takes quadratic time
MAX_PROBLEMS = 100
"""So many problems of one file are described; looking for similar names takes time for each."""

_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CORE_1_2 = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+|[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_YAML_1_1 = yaml.resolver.Resolver()
_TEXT_TAG = "tag:yaml.org,2002:str"


@dataclass(frozen=True)
class Position:
    """A place in a text; line and column count from 1."""

    line: int
    column: int


@dataclass(frozen=True)
class Problem:
    """What is wrong at one place of a document."""

    keys: Keys
    position: Position
    text: str


@dataclass
class Document:
    """What a file says, where it says it, and what is wrong with it.

    Attributes:
        data: None, booleans, integers, finite floats, strings, lists, dicts with string keys; None for a refused value.
        values: position of every value.
        keys: position of the key of every value that stands in a mapping.
        problems: everything that was refused.
    """

    data: Any = None
    values: dict[Keys, Position] = field(default_factory=dict)
    keys: dict[Keys, Position] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def load_yaml(path: str | os.PathLike[str]) -> tuple[Any, dict[Keys, Position]]:
    """Read a YAML file strictly; return its data and the position of every value.

    Args:
        path: the file.

    Raises:
        SpecError: every problem of the file, each as `file:line:column: path: problem`.
    """
    document = read_document(path)
    if document.problems:
        raise spec_error(path, document.problems)
    return document.data, document.values


def read_document(path: str | os.PathLike[str]) -> Document:
    """Read a YAML file strictly; problems are collected in the result.

    Args:
        path: the file.

    Raises:
        SpecError: the file does not exist or cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror or error}") from error
    return parse_document(content)


def parse_document(content: bytes) -> Document:
    """Parse the bytes of a YAML document strictly; problems are collected in the result."""
    start = Position(1, 1)
    if len(content) > MAX_BYTES:
        return Document(problems=[Problem((), start, f"the document is larger than {MAX_BYTES} bytes")])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return Document(
            problems=[Problem((), Position(line, 1), f"byte {error.start} is not UTF-8 (save it as UTF-8)")]
        )
    return _Reader(text).read()


def spec_error(path: str | os.PathLike[str], problems: list[Problem]) -> SpecError:
    """Make the error that lists `problems` of the file `path`, in the order of the text."""
    ordered = sorted(problems, key=lambda problem: (problem.position.line, problem.position.column))
    more = [f"{os.fspath(path)}: and {len(ordered) - MAX_PROBLEMS} more"] if len(ordered) > MAX_PROBLEMS else []
    return SpecError([_line(path, problem) for problem in ordered[:MAX_PROBLEMS]] + more)


def plain_value(text: str) -> Any:
    """Return what a plain (unquoted) scalar means.

    Args:
        text: the scalar.

    Raises:
        ValueError: YAML versions differ about it, or it is a number that is not finite; the message has the advice.
    """
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    if _INT.fullmatch(text) or _FLOAT.fullmatch(text):
        return _number(text)
    if _is_ambiguous(text):
        raise ValueError(f"{text} means different things in different YAML versions ({_advice(text)})")
    return text


def _number(text: str) -> int | float:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"{text[:10]}... has more than {MAX_DIGITS} digits")
    value = int(text) if _INT.fullmatch(text) else float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a number")
    return value


def _is_ambiguous(text: str) -> bool:
    tag: str = _YAML_1_1.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return bool(_CORE_1_2.fullmatch(text)) or tag != _TEXT_TAG


def _advice(text: str) -> str:
    if text.lower() in ("yes", "on", "no", "off"):
        return f'"{text}" in quotes as text, {"true" if text.lower() in ("yes", "on") else "false"} as a truth value'
    return f'"{text}" in quotes as text, plain decimal digits as a number'


class _Stop(Exception):
    """Nothing sensible can be read after this problem."""


class _Reader:
    """Builds a document from parser events."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._document = Document()
        self._events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)

    def read(self) -> Document:
        try:
            self._read_stream()
        except _Stop:
            pass
        except yaml.reader.ReaderError as error:
            before = self._text[: error.position]
            position = Position(before.count("\n") + 1, error.position - (before.rfind("\n") + 1) + 1)
            code = error.character if isinstance(error.character, int) else ord(error.character)
            self._refuse((), position, f"the character #x{code:04x} is not allowed (write it as an escape in quotes)")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            position = _position(mark) if mark else Position(1, 1)
            self._refuse((), position, " ".join(filter(None, [error.context, error.problem])))
        return self._document

    def _read_stream(self) -> None:
        next(self._events)
        for number, event in enumerate(self._events):
            if isinstance(event, yaml.StreamEndEvent):
                if number == 0:
                    self._refuse((), Position(1, 1), "the file is empty")
                return
            if number:
                self._stop((), event, "a second document begins here (one document a file)")
            if event.version or event.tags:
                self._refuse((), event, "directives are not allowed (remove the % lines)")
            self._document.data = self._read_node((), next(self._events))
            next(self._events)

    def _read_node(self, keys: Keys, event: Any) -> Any:
        self._document.values[keys] = _position(event.start_mark)
        if len(keys) > MAX_DEPTH:
            self._stop(keys[:3], event, f"nested deeper than {MAX_DEPTH}")
        if len(self._document.values) > MAX_VALUES:
            self._stop(keys[:1], event, f"the document holds more than {MAX_VALUES} values")
        if isinstance(event, yaml.AliasEvent):
            return self._refuse(
                keys, _position(event.start_mark), f"aliases are not allowed (write *{event.anchor} out)"
            )
        self._refuse_decoration(keys, event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._read_sequence(keys)
        if isinstance(event, yaml.MappingStartEvent):
            return self._read_mapping(keys)
        return self._read_scalar(keys, event)

    def _refuse_decoration(self, keys: Keys, event: Any) -> None:
        if event.anchor is not None:
            self._refuse(keys, event, f"anchors are not allowed (remove &{event.anchor})")
        if event.tag is not None:
            self._refuse(keys, event, f"tags are not allowed (remove {event.tag})")

    def _read_sequence(self, keys: Keys) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._read_node((*keys, len(items)), event))
        return items

    def _read_mapping(self, keys: Keys) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._read_key(keys, event)
            inside = (*keys, key)
            if key in mapping:
                first = self._document.keys[inside]
                self._refuse(inside, event, f"duplicate key, first on line {first.line}")
            self._document.keys.setdefault(inside, _position(event.start_mark))
            mapping[key] = self._read_node(inside, next(self._events))
        return mapping

    def _read_key(self, keys: Keys, event: Any) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            self._stop(keys, event, "a key must be text, not an alias, a list or a mapping")
        self._refuse_decoration(keys, event)
        known = len(self._document.problems)
        value = self._read_scalar(keys, event)
        if not isinstance(value, str) and len(self._document.problems) == known:
            self._refuse(keys, event, f'the key {event.value} is not text (write "{event.value}" in quotes)')
        return str(event.value)

    def _read_scalar(self, keys: Keys, event: Any) -> Any:
        if _SURROGATE.search(event.value):
            return self._refuse(keys, event, "half of a surrogate pair is not a character")
        if event.style is not None:
            return event.value
        try:
            return plain_value(event.value)
        except ValueError as error:
            return self._refuse(keys, event, str(error))

    def _refuse(self, keys: Keys, place: yaml.Event | Position, text: str) -> None:
        position = place if isinstance(place, Position) else _position(place.start_mark)
        self._document.problems.append(Problem(keys, position, text))

    def _stop(self, keys: Keys, event: yaml.Event, text: str) -> NoReturn:
        self._refuse(keys, event, text)
        raise _Stop


def _position(mark: Any) -> Position:
    return Position(mark.line + 1, mark.column + 1)


def _line(path: str | os.PathLike[str], problem: Problem) -> str:
    where = f"{os.fspath(path)}:{problem.position.line}:{problem.position.column}"
    return ": ".join(filter(None, [where, show_keys(problem.keys), problem.text]))
