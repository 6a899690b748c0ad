"""The YAML specification of several branched networks for sets of tasks that may overlap."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, model_validator

from branchnet.builder.network.grouped_networks import GroupedNetworks
from branchnet.data.arguments import check_by_task
from branchnet.errors import SpecError
from branchnet.specification.architecture import MAX_NAMES, SCHEMA_VERSION, Architecture
from branchnet.specification.content_order import in_file_order
from branchnet.specification.nested_tree import Section, check_levels
from branchnet.specification.strict_yaml import read_document
from branchnet.specification.validation import RuleError, model_problems, validate_document
from branchnet.specification.yaml_text import dump_yaml
from branchnet.utils.document_keys import Keys, show_keys
from branchnet.utils.files import write_text

if TYPE_CHECKING:
    from torch import nn

_HEADER = """\
# Networks for sets of tasks that may overlap. Each is trained with all tasks of its architecture and serves some.
"""
_LEVELS = 3
"""An architecture is nested so deeply here: in a group of the list of groups."""


class Group(Section):
    """One network: the tasks that it serves, and its architecture, which may have more, auxiliary ones."""

    serves: tuple[str, ...] = Field(max_length=MAX_NAMES)
    architecture: Architecture


class GroupedArchitecture(Section):
    """The specification of grouped networks.

    Immutable. `==` compares content, and equal content is written as the same bytes.

    Attributes:
        schema_version: the version of the file format.
        groups: for each network the tasks that it `serves`, and its `architecture`.

    >>> import branchnet
    >>> trees = [branchnet.Tree.shared(tasks, 1) for tasks in ("ab", "bc")]
    >>> architectures = [branchnet.Architecture.from_tree(tree, locations=["layer1"]) for tree in trees]
    >>> grouped = branchnet.specification.GroupedArchitecture.of(architectures, [["a", "b"], ["c"]])
    >>> grouped.tasks, [group.architecture.tasks for group in grouped.groups]
    (('a', 'b', 'c'), [('a', 'b'), ('b', 'c')])
    """

    schema_version: int = SCHEMA_VERSION
    groups: tuple[Group, ...] = Field(min_length=1, max_length=MAX_NAMES)

    @model_validator(mode="after")
    def _check_rules(self) -> GroupedArchitecture:
        if problems := _problems(self):
            raise RuleError(problems)
        return self

    @classmethod
    def of(cls, architectures: Sequence[Architecture], served: Sequence[Sequence[str]]) -> GroupedArchitecture:
        """Put architectures together.

        Args:
            architectures: one for each network.
            served: for each network the tasks that it serves.

        Returns:
            the specification.

        Raises:
            SpecError: a task that a network serves and does not have, or that two serve.
        """
        pairs = zip(architectures, served, strict=True)
        try:
            return cls(groups=tuple(Group(serves=tuple(own), architecture=each) for each, own in pairs))
        except ValidationError as error:
            raise SpecError([f"{show_keys(keys)}: {text}" for keys, text in model_problems(error, cls)]) from error

    @classmethod
    def from_networks(cls, grouped: GroupedNetworks) -> GroupedArchitecture:
        """Describe grouped networks.

        Args:
            grouped: the networks.

        Returns:
            the specification.

        Raises:
            SpecError: as `Architecture.from_network`.
        """
        served = [[t for t in grouped.tasks if grouped.serving[t] == k] for k in range(len(grouped.networks))]
        return cls.of([Architecture.from_network(network) for network in grouped.branched_networks], served)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that are served, group by group."""
        return tuple(task for group in self.groups for task in group.serves)

    def to_yaml(self) -> str:
        """Write the specification as text.

        Returns:
            what `save` writes.

        Raises:
            SpecError: a tree that would be nested too deeply.
        """
        for group in self.groups:
            check_levels(group.architecture.roots, _LEVELS)
        groups = [{"serves": list(g.serves), "architecture": in_file_order(g.architecture)} for g in self.groups]
        return _HEADER + dump_yaml({"schema_version": self.schema_version, "groups": groups})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the specification, atomically; equal content gives equal bytes.

        Args:
            path: the file to write.

        Raises:
            SpecError: a tree that would be nested too deeply.
        """
        write_text(path, self.to_yaml())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GroupedArchitecture:
        """Read a specification. Nothing is run, fetched or built.

        Args:
            path: the file.

        Returns:
            the specification.

        Raises:
            SpecError: every problem of the file, each as `file:line:column: path: problem; expected ...`.
        """
        return validate_document(cls, read_document(path), path)

    def build(self, networks: Mapping[str, nn.Module] | None = None, *, example: Any = None) -> GroupedNetworks:
        """Build the networks.

        Args:
            networks: the single-task networks of tasks without a named constructor, and of others, by task; see
                `Architecture.build`.
            example: inputs to trace the networks with, where the file describes none.

        Returns:
            the networks.

        Raises:
            SpecError, SplitError, BuildError: as `Architecture.build`.
        """
        given = networks or {}
        check_by_task(given, SpecError)
        known = {task for group in self.groups for task in group.architecture.tasks}
        if unknown := [task for task in given if task not in known]:
            raise SpecError(f"networks are passed for unknown tasks {unknown}; expected some of {sorted(known)}")
        built = [
            group.architecture.build(
                {task: given[task] for task in group.architecture.tasks if task in given}, example=example
            )
            for group in self.groups
        ]
        return GroupedNetworks(built, {task: k for k, group in enumerate(self.groups) for task in group.serves})


def is_grouped(path: str | os.PathLike[str]) -> bool:
    """Whether a YAML file claims to describe several networks: it has `groups`, which no architecture has.

    Args:
        path: the file.
    """
    data = read_document(path).data
    return isinstance(data, dict) and "groups" in data and "tree" not in data


def _problems(grouped: GroupedArchitecture) -> list[tuple[Keys, str]]:
    problems: list[tuple[Keys, str]] = []
    if grouped.schema_version != SCHEMA_VERSION:
        text = f"{grouped.schema_version} is not a known version; expected {SCHEMA_VERSION}"
        problems.append((("schema_version",), text))
    home: dict[str, int] = {}
    for k, group in enumerate(grouped.groups):
        for number, task in enumerate(group.serves):
            keys: Keys = ("groups", k, "serves", number)
            if task not in group.architecture.tasks:
                problems.append((keys, f"unknown task {task!r}; expected one of {', '.join(group.architecture.tasks)}"))
            elif task in home:
                problems.append((keys, f"{task!r} is served by group {home[task]}, too; expected one group"))
            home.setdefault(task, k)
    if not home:
        problems.append((("groups",), "no group serves a task; expected at least one"))
    first = grouped.groups[0].architecture.locations
    problems += [
        (
            ("groups", k, "architecture", "locations"),
            f"other locations than in the first group; expected {list(first)}",
        )
        for k, group in enumerate(grouped.groups)
        if group.architecture.locations != first
    ]
    return problems
