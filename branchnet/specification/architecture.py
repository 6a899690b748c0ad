"""The YAML specification of a branched network: readable, strict, versioned, and safe to load from anyone.

A specification names the tasks, how each task's network is made, where the networks are cut, which tasks share which
stages, what that costs, and how the tree was found. It holds no weights and no code: networks come from named
constructors (see `branchnet.models.constructors`), or are passed when the branched network is built.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, model_validator

from branchnet.builder.weights.donors import Donors, choose_donors
from branchnet.clustering.budgets.budget import Budget
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import SpecError
from branchnet.models.constructors import Constructor
from branchnet.specification.architecture_rules import architecture_problems
from branchnet.specification.content_order import in_file_order
from branchnet.specification.describing import constructor, input_sections, search_section, staged_networks, versions
from branchnet.specification.nested_tree import Node, Section, check_levels, donors_of, flatten, nest
from branchnet.specification.sections import CostsSection, Inputs, NetworkSection, SearchSection
from branchnet.specification.stitch_sections import StitchSection
from branchnet.specification.strict_yaml import Problem, read_document, spec_error
from branchnet.specification.validation import RuleError, model_problems, validate_document
from branchnet.specification.yaml_text import dump_yaml
from branchnet.stages.costs import StageCost, StageCosts
from branchnet.utils.document_keys import Keys, show_keys
from branchnet.utils.files import write_text

if TYPE_CHECKING:
    from torch import nn

    from branchnet.affinity import Affinity
    from branchnet.builder import BranchedNetwork
    from branchnet.clustering import SearchResult
    from branchnet.stages import Interface

SCHEMA_VERSION = 1
MAX_NAMES = 1000
"""Tasks, or locations: a file from anyone must not make the reader compare millions of names."""
MAX_STITCHES = 10_000
SCHEMA_FILE = "branchnet.schema.json"
_HEADER = f"""\
# yaml-language-server: $schema={SCHEMA_FILE}
# Read `tree` from the input down: a node runs until the end of a location and then splits into its branches;
# a task's name stands for its head. Networks that are not listed under `networks` are passed when building.
"""


class Architecture(Section):
    """The specification of a branched network.

    Immutable. `==` compares content, and equal content is written as the same bytes.

    Attributes:
        schema_version: the version of the file format.
        description: what this is and where it comes from, in words.
        tasks: the N task names.
        input: one tensor that the networks take, or several; None where it is not known.
        networks: per task the named constructor of its network; tasks without one must be passed to `build`.
        locations: the D locations at which the networks are cut.
        tree: which tasks share which stages, as a `Tree`.
        roots: the same as nodes inside nodes: `tree` in the file.
        stitches: by the id of a node or head the stitching layer in front of it (`nodes.<stage>.<k>`, `heads.<i>`).
        costs: cost of one copy of every stage and of every head; None where they are not known.
        search: how the tree was found; None where it was written by hand.
        versions: package versions it was made with.

    >>> import branchnet
    >>> tree = branchnet.Tree(["depth", "edges"], [[["depth", "edges"]], [["depth"], ["edges"]]])
    >>> architecture = branchnet.Architecture.from_tree(tree, locations=["layer1", "layer2"], description="by hand")
    >>> for line in architecture.to_yaml().splitlines()[5:-1]:
    ...     print(line)
    tasks: [depth, edges]
    locations: [layer1, layer2]
    tree:
      - until: layer1
        branches:
          - until: layer2
            branches: [depth]
          - until: layer2
            branches: [edges]
    """

    schema_version: int = SCHEMA_VERSION
    description: str | None = None
    tasks: tuple[str, ...] = Field(min_length=1, max_length=MAX_NAMES)
    input: Inputs | None = None
    networks: dict[str, NetworkSection] = Field(default_factory=dict)
    locations: tuple[str, ...] = Field(min_length=1, max_length=MAX_NAMES)
    roots: tuple[Node, ...] = Field(alias="tree", min_length=1)
    stitches: dict[str, StitchSection] = Field(default_factory=dict, max_length=MAX_STITCHES)
    costs: CostsSection | None = None
    search: SearchSection | None = None
    versions: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_rules(self) -> Architecture:
        problems = architecture_problems(self, SCHEMA_VERSION)
        if problems:
            raise RuleError(problems)
        return self

    @classmethod
    def create(cls, **content: Any) -> Architecture:
        """Make an architecture from the content that a file would hold.

        Args:
            content: the file's top-level keys and values, as plain data.

        Returns:
            the specification.

        Raises:
            SpecError: content that breaks a rule; every problem is named.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise SpecError([f"{show_keys(keys)}: {text}" for keys, text in model_problems(error, cls)]) from error

    @classmethod
    def from_search(
        cls,
        result: SearchResult,
        *,
        networks: Mapping[str, nn.Module] | None = None,
        affinity: Affinity | None = None,
        locations: Sequence[str] | None = None,
        costs: StageCosts | None = None,
        head_costs: Mapping[str, StageCost] | None = None,
        budget: Budget | str | None = None,
        seed: int | None = None,
        description: str | None = None,
    ) -> Architecture:
        """Describe what a search has found.

        Args:
            result: the search's result; donors that it has are those of the specification.
            networks: the single-task networks, plain or staged. Staged ones also bring locations, costs and inputs.
            affinity: what was searched on; it names the measure and the probe, and chooses the donors.
            locations: the D locations, where neither networks nor affinity bring them.
            costs: cost per stage, where the networks do not bring them.
            head_costs: cost per head, where the networks do not bring them.
            budget: the budget as it was asked for; by default the absolute one that the search used.
            seed: the seed of the search.
            description: what this is, in words.

        Returns:
            the specification.

        Raises:
            SpecError: locations that are not known, content that does not fit together, or sharing that is not nested.
        """
        if result.sharing is not None:
            raise SpecError(["the result has no tree, as its sharing is not nested; expected that of a nested search"])
        return cls.from_tree(
            result.tree,
            networks=networks,
            affinity=affinity,
            locations=locations,
            costs=costs,
            head_costs=head_costs,
            donors=result.donors,
            search=search_section(result, affinity, budget, seed),
            description=description,
        )

    @classmethod
    def from_tree(
        cls,
        tree: Tree,
        *,
        networks: Mapping[str, nn.Module] | None = None,
        affinity: Affinity | None = None,
        locations: Sequence[str] | None = None,
        costs: StageCosts | None = None,
        head_costs: Mapping[str, StageCost] | None = None,
        donors: Donors | None = None,
        search: SearchSection | None = None,
        description: str | None = None,
    ) -> Architecture:
        """Describe a tree that was published, drawn by hand, or found in some other way.

        Donors are named where networks or an affinity are given.

        Args:
            tree: D stages over the tasks.
            networks, affinity, locations, costs, head_costs, description: as for `from_search`.
            donors: for each stage the donors of its nodes; by default those of `choose_donors` by the affinity.
            search: how the tree was found.

        Returns:
            the specification.

        Raises:
            SpecError: locations that are not known, or content that does not fit together.
        """
        networks = networks or {}
        if donors is None and (networks or affinity is not None):
            donors = choose_donors(tree, affinity)
        staged = staged_networks(networks, tree.tasks)
        first = next(iter(staged.values()), None)
        if first is not None:
            locations, costs = locations or first.locations, costs or first.costs
            head_costs = head_costs or {task: network.head_cost for task, network in staged.items()}
        return cls._describe(
            tree,
            locations or (affinity.locations if affinity is not None else costs.names if costs else ()),
            constructors={task: constructor(network) for task, network in networks.items()},
            donors=donors,
            costs=costs,
            head_costs=head_costs or {},
            interface=first.interface if first is not None else None,
            search=search,
            description=description,
        )

    @classmethod
    def from_network(
        cls, branched: BranchedNetwork, *, search: SearchSection | None = None, description: str | None = None
    ) -> Architecture:
        """Describe a branched network.

        Args:
            branched: the network.
            search: how its tree was found, e.g. the `search` of the architecture that it was built from.
            description: what this is, in words.

        Returns:
            the specification.

        Raises:
            SpecError: stitches that were folded into the weights next to them; describe the network before that. Or
                another network than a branched one.
        """
        if not hasattr(branched, "tree"):
            raise SpecError(
                f"the network is a {type(branched).__name__}; expected a BranchedNetwork; "
                "specification.GroupedArchitecture.from_networks describes grouped ones"
            )
        return cls._describe(
            branched.tree,
            branched.locations,
            constructors=branched.constructors,
            donors=branched.donors,
            costs=branched.costs,
            head_costs=branched.head_costs,
            interface=branched.interface,
            search=search,
            description=description,
            stitches={child: StitchSection.of(stitch) for (_, child), stitch in branched.stitches.items()},
        )

    @classmethod
    def _describe(
        cls,
        tree: Tree,
        locations: Sequence[str],
        *,
        constructors: Mapping[str, Constructor | None],
        donors: Donors | None,
        costs: StageCosts | None,
        head_costs: Mapping[str, StageCost],
        interface: Interface | None,
        search: SearchSection | None,
        description: str | None,
        stitches: Mapping[str, StitchSection] | None = None,
    ) -> Architecture:
        if len(locations) != tree.depth:
            raise SpecError(
                f"{len(locations)} locations are known, {list(locations)}; expected {tree.depth}, one for each stage "
                "of the tree; pass locations="
            )
        return cls.create(
            description=description,
            tasks=tree.tasks,
            input=input_sections(interface),
            networks={t: NetworkSection.of(c) for t in tree.tasks if (c := constructors.get(t)) is not None},
            locations=tuple(locations),
            tree=nest(tree, locations, donors),
            stitches=dict(stitches or {}),
            costs=CostsSection.of(costs, head_costs, tree.tasks) if costs is not None else None,
            search=search,
            versions=versions(constructors),
        )

    @property
    def tree(self) -> Tree:
        """Which tasks share which stages."""
        return flatten(self.roots, self.tasks, self.locations)

    @property
    def donors(self) -> Donors | None:
        """For each stage the donor task of each node, in the order of `tree.partitions`; None where none is named."""
        return donors_of(self.roots, self.tree, self.locations)

    @property
    def constructors(self) -> dict[str, Constructor | None]:
        """For each task the constructor of its network, or None where the network must be passed."""
        named = {task: Constructor(network.constructor, network.arguments) for task, network in self.networks.items()}
        return {task: named.get(task) for task in self.tasks}

    @property
    def stage_costs(self) -> StageCosts | None:
        """Cost of one copy of each stage."""
        costs = None if self.costs is None else self.costs.stage_costs(self.locations)
        return None if costs is None else replace(costs, depths=self.tree.depths)

    @property
    def head_costs(self) -> dict[str, StageCost]:
        """Cost of each task's head, where it is known."""
        return {task: cost.cost("head") for task, cost in self.costs.heads.items()} if self.costs else {}

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data, e.g. for JSON.

        Returns:
            the content in the file's order.
        """
        return in_file_order(self)

    def to_yaml(self) -> str:
        """Write the specification as text.

        Returns:
            what `save` writes.

        Raises:
            SpecError: the tree branches so often on one path that the text would be nested too deeply to be read back.
        """
        check_levels(self.roots)
        return _HEADER + dump_yaml(self.to_dict())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the specification, atomically; equal content gives equal bytes.

        Args:
            path: the file to write.

        Raises:
            SpecError: a tree that would be nested too deeply.
        """
        write_text(path, self.to_yaml())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Architecture:
        """Read a specification. Nothing is run, fetched or built.

        Args:
            path: the file.

        Returns:
            the specification.

        Raises:
            SpecError: every problem of the file, each as `file:line:column: path: problem; expected ...`.
        """
        document = read_document(path)
        version = document.data.get("schema_version") if isinstance(document.data, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            advice = f"this one reads up to {SCHEMA_VERSION} (pip install --upgrade branchnet)"
            keys: Keys = ("schema_version",)
            problem = Problem(keys, document.values[keys], f"{version} was written by a newer branchnet; {advice}")
            raise spec_error(path, [problem])
        return validate_document(cls, document, path)

    def build(self, networks: Mapping[str, nn.Module] | None = None, *, example: Any = None) -> BranchedNetwork:
        """Build the branched network.

        Args:
            networks: the networks of the tasks without a named constructor; those of other tasks are taken, too. Either
                all are plain, or all tasks' networks are given staged (e.g. with transforms) and taken as they are.
            example: inputs to trace the networks with, where the file describes none.

        Returns:
            the network; tasks with a constructor have fresh weights.

        Raises:
            SpecError: a network that must be passed, a task that is not in the file, or inputs that are not known.
            SplitError: networks that cannot be cut at the locations.
            BuildError: networks whose stages do not have the parameters that the file says.
        """
        from branchnet.specification.realisation import build_architecture

        return build_architecture(self, networks or {}, example)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a specification, for editors."""
    schema = Architecture.model_json_schema(by_alias=True)
    schema["description"] = schema["description"].partition("\n\n>>>")[0]  # the example is for readers of the code
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "branchnet architecture"}
