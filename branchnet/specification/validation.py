"""Checking a YAML file against a pydantic model: every problem of the file at once, each with its line and column."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from branchnet.specification.strict_yaml import MAX_PROBLEMS, Document, Position, Problem, read_document, spec_error
from branchnet.utils.document_keys import Keys

Model = TypeVar("Model", bound=BaseModel)


class RuleError(ValueError):
    """What breaks a model's own rules; a validator raises it once for all of them.

    Attributes:
        problems: pairs of the place inside the model that raised it, and what is wrong there.
    """

    def __init__(self, problems: Sequence[tuple[Keys, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(text for _, text in problems))


def validate(model_class: type[Model], path: str | os.PathLike[str]) -> Model:
    """Read a YAML file strictly and return it as a `model_class`.

    Args:
        model_class: the model.
        path: the file.

    Raises:
        SpecError: every problem of the file, each as `file:line:column: path: problem; expected ...`.
    """
    return validate_document(model_class, read_document(path), path)


def validate_document(model_class: type[Model], document: Document, path: str | os.PathLike[str]) -> Model:
    """Return what has been read from the file `path` as a `model_class`; arguments and errors as in `validate`."""
    if document.data is None and document.problems:
        raise spec_error(path, document.problems)
    refused = {problem.keys for problem in document.problems}
    found = [p for p in _located(document, _all_problems(model_class, document.data)) if p.keys not in refused]
    if found or document.problems:
        raise spec_error(path, document.problems + found)
    return _parse(model_class, document.data)


def _parse(model_class: type[Model], data: Any) -> Model:
    return model_class.model_validate_json(json.dumps(data), strict=True)


def _all_problems(model_class: type[BaseModel], data: Any) -> list[tuple[Keys, str]]:
    """List all problems: those of single values, and those that appear once the top-level keys with these are gone."""
    try:
        _parse(model_class, data)
    except ValidationError as error:
        problems = list(model_problems(error, model_class))
        places = {detail["loc"][0] for detail in error.errors(include_url=False) if detail["loc"]}
        bad = places | {keys[0] for keys, _ in problems if keys} if isinstance(data, dict) else set()
        rest = {key: value for key, value in data.items() if key not in bad} if bad else data
        if rest == data:
            return problems
        return problems + [p for p in _all_problems(model_class, rest) if not p[0] or p[0][0] not in bad]
    return []


def model_problems(error: ValidationError, model_class: type[BaseModel]) -> Iterator[tuple[Keys, str]]:
    """Yield the place and the text of every problem that a pydantic error reports."""
    details = list(islice(error.errors(include_url=False), MAX_PROBLEMS))
    for detail in details:
        if detail["type"] == "too_short" and any(_lies_in(detail["loc"], other["loc"]) for other in details):
            continue  # pydantic counts an entry that is wrong, and reported by itself, as missing
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, RuleError):
            for keys, text in cause.problems:
                yield (*detail["loc"], *keys), text
        else:
            yield detail["loc"], _text(detail, model_class)


def _lies_in(place: Keys, other: Keys) -> bool:
    return len(other) > len(place) and other[: len(place)] == place


def _text(detail: Any, model_class: type[BaseModel]) -> str:
    kind, value, key = detail["type"], detail["input"], detail["loc"][-1] if detail["loc"] else ""
    if kind == "missing":
        return "is missing"
    if kind == "too_short":
        found = f"has {_entries(len(value))}" if value else "is empty"
        return f"{found}; expected at least {_entries(detail['ctx']['min_length'])}"
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(key), sorted(_field_names(model_class) - {key}), n=1)
        return f"unknown key; did you mean {near[0]}?" if near else "unknown key (remove it)"
    if kind == "string_type":
        quoted = " (write it in quotes)" if isinstance(value, bool | int | float) else ""
        return f"{_short(value)} is not text{quoted}"
    if kind == "value_error":
        return str(detail["msg"]).removeprefix("Value error, ")
    return f"{_short(value)} is wrong: {detail['msg'].replace('Input should be', 'expected').replace('Input', 'it')}"


def _entries(count: int) -> str:
    return "one entry" if count == 1 else f"{count} entries"


def _short(value: Any) -> str:
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a mapping"
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


@cache
def _field_names(model_class: type[BaseModel]) -> frozenset[str]:
    schema = model_class.model_json_schema()
    models = [schema, *schema.get("$defs", {}).values()]
    return frozenset(name for model in models for name in model.get("properties", {}))


def _located(document: Document, problems: Sequence[tuple[Keys, str]]) -> Iterator[Problem]:
    for loc, text in problems:
        keys, position = _locate(document, loc)
        yield Problem(keys, document.keys.get(keys, position) if text.startswith("unknown key") else position, text)


def _locate(document: Document, loc: Keys) -> tuple[Keys, Position]:
    """Follow a pydantic location through the document, leaving out the names of union members.

    A key that is missing from the document is kept in the path, at the position of the mapping that lacks it.
    """
    keys: Keys = ()
    data = document.data
    for number, step in enumerate(loc):
        if step in (data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()):
            keys, data = (*keys, step), data[step]
        elif isinstance(data, dict) and number == len(loc) - 1 and isinstance(step, str):
            return (*keys, step), document.values[keys]
    return keys, document.values.get(keys, Position(1, 1))
