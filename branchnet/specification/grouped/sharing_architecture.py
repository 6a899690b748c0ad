"""The YAML specification of a network whose sharing is not nested: the separate networks, and what they share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, model_validator

from branchnet.builder.sharing_network import SharingNetwork
from branchnet.builder.weights.donors import Donors, sharing_donors
from branchnet.clustering import Sharing, Tree
from branchnet.errors import SpecError, TreeError
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

    from branchnet.affinity import Affinity

_HEADER = """\
# Tasks that are computed one at a time. `architecture` has a path for each; nodes of `sharing` exist once for all tasks
# of theirs, with the donor's weights to start from.
"""
_LEVELS = 1


class SharedNode(Section):
    """One copy of a stage: the tasks that it serves, and whose weights it starts from."""

    tasks: tuple[str, ...] = Field(min_length=1, max_length=MAX_NAMES)
    donor: str


class SharedStage(Section):
    """A stage: where it ends, and its nodes."""

    until: str
    nodes: tuple[SharedNode, ...] = Field(min_length=1, max_length=MAX_NAMES)


class SharingArchitecture(Section):
    """The specification of a sharing network.

    Immutable. `==` compares content, and equal content is written as the same bytes.

    Attributes:
        schema_version: the version of the file format.
        sharing: for each stage the nodes that exist once.
        architecture: the tasks' separate networks.

    >>> import torch, branchnet
    >>> networks = {task: branchnet.create("branchnet:scene_network", outputs=1, width=2) for task in "ab"}
    >>> sharing = branchnet.Sharing("ab", [[["a"], ["b"]], [["a", "b"]]])
    >>> network = branchnet.build(sharing, networks, example=torch.zeros(1, 3, 16, 16), locations=["layer1", "layer3"])
    >>> described = branchnet.specification.SharingArchitecture.from_network(network)
    >>> [[node.tasks for node in stage.nodes] for stage in described.sharing]
    [[('a',), ('b',)], [('a', 'b')]]
    """

    schema_version: int = SCHEMA_VERSION
    sharing: tuple[SharedStage, ...] = Field(min_length=1, max_length=MAX_NAMES)
    architecture: Architecture

    @model_validator(mode="after")
    def _check_rules(self) -> SharingArchitecture:
        if problems := _problems(self):
            raise RuleError(problems)
        return self

    @classmethod
    def from_network(cls, network: SharingNetwork) -> SharingArchitecture:
        """Describe a network.

        Args:
            network: the network.

        Returns:
            the specification.

        Raises:
            SpecError: as `Architecture.from_network`.
        """
        return cls._of(network.sharing, network.donors, Architecture.from_network(network.separate_paths()))

    @classmethod
    def from_sharing(
        cls, sharing: Sharing, separate: Architecture, *, affinity: Affinity | None = None
    ) -> SharingArchitecture:
        """Describe what a search has found, before it is built.

        Args:
            sharing: which tasks share which stage.
            separate: the tasks' separate networks, as `branchnet split` describes them.
            affinity: chooses the donors; without one they are the first tasks.

        Returns:
            the specification.

        Raises:
            SpecError: separate networks of other tasks or another depth, or that share nodes already.
        """
        if (separate.tasks, len(separate.locations)) != (sharing.tasks, sharing.depth):
            raise SpecError(
                f"the sharing has {sharing.depth} stages of {', '.join(sharing.tasks)}; expected the specification's "
                f"{len(separate.locations)} of {', '.join(separate.tasks)}"
            )
        return cls._of(sharing, sharing_donors(sharing, affinity), separate)

    @classmethod
    def _of(cls, sharing: Sharing, donors: Donors, separate: Architecture) -> SharingArchitecture:
        stages = zip(separate.locations, sharing.partitions, donors, strict=True)
        shared = tuple(
            SharedStage(
                until=name,
                nodes=tuple(SharedNode(tasks=tasks, donor=donor) for tasks, donor in zip(clusters, own, strict=True)),
            )
            for name, clusters, own in stages
        )
        try:
            return cls(sharing=shared, architecture=separate)
        except ValidationError as error:
            raise SpecError([f"{show_keys(keys)}: {text}" for keys, text in model_problems(error, cls)]) from error

    @property
    def task_sharing(self) -> Sharing:
        """Which tasks share which stage."""
        return Sharing(self.architecture.tasks, [[node.tasks for node in stage.nodes] for stage in self.sharing])

    def to_yaml(self) -> str:
        """Write the specification as text.

        Returns:
            what `save` writes.

        Raises:
            SpecError: a tree that would be nested too deeply.
        """
        check_levels(self.architecture.roots, _LEVELS)
        sharing = [stage.model_dump(mode="json") for stage in self.sharing]
        content = {"sharing": sharing, "architecture": in_file_order(self.architecture)}
        return _HEADER + dump_yaml({"schema_version": self.schema_version, **content})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the specification, atomically; equal content gives equal bytes.

        Args:
            path: the file to write.

        Raises:
            SpecError: a tree that would be nested too deeply.
        """
        write_text(path, self.to_yaml())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SharingArchitecture:
        """Read a specification. Nothing is run, fetched or built.

        Args:
            path: the file.

        Returns:
            the specification.

        Raises:
            SpecError: every problem of the file, each as `file:line:column: path: problem; expected ...`.
        """
        return validate_document(cls, read_document(path), path)

    def build(self, networks: Mapping[str, nn.Module] | None = None, *, example: Any = None) -> SharingNetwork:
        """Build the network.

        Args:
            networks: the single-task networks of tasks without a named constructor, see `Architecture.build`.
            example: inputs to trace the networks with, where the file describes none.

        Returns:
            the network.

        Raises:
            SpecError, SplitError, BuildError: as `Architecture.build`.
        """
        separate = self.architecture.build(networks, example=example)
        donors = [[node.donor for node in stage.nodes] for stage in self._ordered()]
        return SharingNetwork(self.task_sharing, separate, donors)

    def _ordered(self) -> list[SharedStage]:
        """The stages with their nodes in the order of the partitions."""
        place = {task: number for number, task in enumerate(self.architecture.tasks)}
        return [
            SharedStage(
                until=s.until, nodes=tuple(sorted(s.nodes, key=lambda node: min(map(place.__getitem__, node.tasks))))
            )
            for s in self.sharing
        ]


def is_sharing(path: str | os.PathLike[str]) -> bool:
    """Whether a YAML file claims to describe sharing that is not nested.

    Args:
        path: the file.
    """
    data = read_document(path).data
    return isinstance(data, dict) and "sharing" in data and "tree" not in data


def _problems(described: SharingArchitecture) -> list[tuple[Keys, str]]:
    problems: list[tuple[Keys, str]] = []
    separate = described.architecture
    if described.schema_version != SCHEMA_VERSION:
        text = f"{described.schema_version} is not a known version (expected {SCHEMA_VERSION})"
        problems.append((("schema_version",), text))
    if (names := tuple(stage.until for stage in described.sharing)) != separate.locations:
        problems.append((("sharing",), f"stages end at {list(names)} (expected {list(separate.locations)})"))
    if separate.tree != Tree.separate(separate.tasks, separate.tree.depth):
        problems.append((("architecture", "tree"), "tasks share nodes or leave the trunk (expected separate networks)"))
    for d, stage in enumerate(described.sharing):
        for k, node in enumerate(stage.nodes):
            if node.donor not in node.tasks:
                problems.append(
                    (("sharing", d, "nodes", k, "donor"), f"{node.donor!r} (expected one of {', '.join(node.tasks)})")
                )
        try:
            Sharing(separate.tasks, [[node.tasks for node in stage.nodes]])
        except TreeError as error:
            problems.append((("sharing", d, "nodes"), str(error)))
    return problems
