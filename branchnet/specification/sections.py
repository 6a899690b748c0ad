"""The sections of the YAML specification of a branched network: inputs, networks, costs, and how the tree was found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from branchnet.clustering.budgets.budget import Budget
from branchnet.errors import BudgetError, SpecError
from branchnet.models.constructors import Constructor, check_arguments, split_name
from branchnet.specification.nested_tree import Section
from branchnet.stages.costs import FirstDifference, StageCost, StageCosts
from branchnet.utils.document_keys import Keys

Dtype = Literal[
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64"
]


def _whole(number: Any) -> Any:
    """Write 25.0 as 25, so that equal content is written in the same way."""
    return int(number) if isinstance(number, float) and number.is_integer() and abs(number) < 2**53 else number


MAX_ELEMENTS = 2**28
"""So no example that a specification describes takes more than a gigabyte in float32."""
MAX_DIMENSIONS = 8
MAX_INTEGER = 2**63
MAX_UNCOUNTED = 1000

Number = Annotated[int | float, BeforeValidator(_whole)]
Count = Annotated[int, Field(ge=0)]


class InputSection(Section):
    """One tensor that every network takes."""

    name: str | None = Field(default=None, description="The keyword, where the networks take keyword arguments.")
    shape: tuple[Count, ...]
    dtype: Dtype
    low: int | None = Field(default=None, description="Smallest value of integers, e.g. of token numbers.")
    high: int | None = Field(default=None, description="Largest value of integers.")

    def problems(self) -> list[tuple[Keys, str]]:
        """List what makes a tensor impossible: too many elements, or bounds without an integer between them."""
        problems: list[tuple[Keys, str]] = []
        if math.prod(self.shape) > MAX_ELEMENTS or len(self.shape) > MAX_DIMENSIONS:
            problems.append((("shape",), f"has over {MAX_ELEMENTS:,} elements or {MAX_DIMENSIONS} dimensions"))
        low, high = self.low or 0, 1 if self.high is None else self.high
        if not -MAX_INTEGER <= low <= high < MAX_INTEGER:
            problems.append((("high",), f"no integer lies between {low} and {high} (64 bits, low <= high)"))
        return problems


def _input_form(section: Any) -> str:
    return "several" if isinstance(section, list | tuple) else "one"


Inputs = Annotated[
    Annotated[InputSection, Tag("one")] | Annotated[tuple[InputSection, ...], Tag("several"), Field(min_length=1)],
    Discriminator(_input_form),
]


class NetworkSection(Section):
    """How the single-task network of one task is made."""

    constructor: str = Field(description="A named constructor, e.g. `torchvision:resnet18`.")
    arguments: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def of(cls, constructor: Constructor) -> NetworkSection:
        """Describe a constructor."""
        return cls(constructor=constructor.name, arguments=dict(constructor.arguments))

    def problems(self) -> list[tuple[Keys, str]]:
        """List what no specification may say: names outside the registries, arguments that could fetch or run code."""
        try:
            split_name(self.constructor)
        except SpecError as error:
            return [(("constructor",), str(error))]
        return [(("arguments", *keys), problem) for keys, problem in check_arguments(self.arguments)]


class CostSection(Section):
    """Cost of one copy of a stage, or of a head. FLOPs are multiply-adds."""

    params: Count
    flops: Count
    activation_bytes: Count = 0
    cut_bytes: Count = 0
    uncounted: Annotated[tuple[str, ...], Field(max_length=MAX_UNCOUNTED)] = Field(
        default=(), description="Operators whose multiply-adds are counted as nothing."
    )

    @classmethod
    def of(cls, cost: StageCost) -> CostSection:
        """Describe a cost."""
        return cls(
            params=cost.params,
            flops=cost.flops,
            activation_bytes=cost.activation_bytes,
            cut_bytes=cost.cut_bytes,
            uncounted=cost.uncounted,
        )

    def cost(self, name: str) -> StageCost:
        """Return the cost under the name of its location."""
        return StageCost(name, self.params, self.flops, self.activation_bytes, self.cut_bytes, self.uncounted)


class DifferenceSection(Section):
    """Where the structures of the networks part."""

    sides: dict[str, str] = Field(description="What each network does there, by task.")
    shareable: Annotated[float, Field(ge=0, le=1)] = Field(description="Share of all parameters that lies before.")
    reason: str = ""


class CostsSection(Section):
    """Costs of one copy of every stage, by location, and of every head, by task."""

    stages: dict[str, CostSection]
    heads: dict[str, CostSection] = Field(default_factory=dict)
    first_difference: DifferenceSection | None = None

    @classmethod
    def of(cls, stages: StageCosts, heads: Mapping[str, StageCost], tasks: Sequence[str]) -> CostsSection:
        """Describe the costs of stages and heads."""
        described = {task: CostSection.of(heads[task]) for task in tasks if task in heads}
        found = stages.first_difference
        difference = None if found is None else DifferenceSection(**asdict(found))
        return cls(
            stages={cost.name: CostSection.of(cost) for cost in stages}, heads=described, first_difference=difference
        )

    def stage_costs(self, locations: Sequence[str]) -> StageCosts:
        """Return the costs of the stages in the order of their locations."""
        found = self.first_difference
        difference = None if found is None else FirstDifference(found.sides, found.shareable, found.reason)
        return StageCosts(tuple(self.stages[name].cost(name) for name in locations), difference)

    def problems(self, tasks: Sequence[str], locations: Sequence[str]) -> list[tuple[Keys, str]]:
        """List stages that are not the locations, and heads that are not the tasks."""
        problems: list[tuple[Keys, str]] = []
        for section, names, known in (("stages", self.stages, locations), ("heads", self.heads, tasks)):
            problems += [
                ((section, name), "unknown key: not a location or task") for name in names if name not in known
            ]
            missing = [name for name in known if name not in names]
            if missing and names:
                problems.append(((section,), f"lacks {', '.join(map(repr, missing))}"))
        if not self.stages:
            problems.append((("stages",), f"lacks {', '.join(map(repr, locations))}"))
        return problems


class SearchSection(Section):
    """How the tree was found, and how good it is known to be."""

    budget: str | None = Field(default=None, description="Upper bound, e.g. `60% params` or `4 GMACs`.")
    objective: str | None = None
    measure: str | None = Field(default=None, description="The affinity measure, e.g. `rsa`.")
    method: str | None = None
    cost: Number | None = Field(default=None, description="Clustering cost of the tree under the objective.")
    size: Number | None = Field(default=None, description="Size of the tree in `unit`.")
    unit: Literal["params", "flops", "latency"] | None = None
    lower_bound: Number | None = Field(default=None, description="No tree within the budget costs less.")
    proven: bool | None = None
    probe_hash: str | None = Field(default=None, description="Content hash of the probe inputs.")
    seed: int | None = None

    def problems(self) -> list[tuple[Keys, str]]:
        """List a budget that cannot be read."""
        try:
            if self.budget is not None:
                Budget.parse(self.budget)
        except BudgetError as error:
            return [(("budget",), str(error))]
        return []


def budget_text(budget: Budget | str) -> str:
    """Write a budget so that `Budget.parse` reads exactly it.

    Args:
        budget: a budget, or its text, which is returned as it is.
    """
    # `str` rounds to what people read; where that loses digits, all of them are written.
    if isinstance(budget, str):
        return budget
    text = str(budget)
    if Budget.parse(text) == budget:
        return text
    if budget.also:
        return ", ".join(map(budget_text, budget.each))
    unit = {"params": "params", "flops": "MACs", "latency": "ms"}[budget.unit]
    whose = f" for {'+'.join(budget.tasks)}" if budget.tasks else ""
    return (f"{100 * budget.amount!r}% {budget.unit}" if budget.relative else f"{budget.amount!r} {unit}") + whose
