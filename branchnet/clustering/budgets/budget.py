"""Budgets: upper bounds on the size of a tree, as they are written and read.

Parameters and FLOPs (one multiply-add is one FLOP), or milliseconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from branchnet.errors import BudgetError

UNITS = ("params", "flops", "latency")
_WRITTEN = {"params": "params", "flops": "MACs", "latency": "ms"}
_PREFIX = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_WORDS = {
    "params": ("params", 1.0),
    "parameters": ("params", 1.0),
    "param": ("params", 1.0),
    "macs": ("flops", 1.0),
    "mac": ("flops", 1.0),
    "flops": ("flops", 0.5),
    "flop": ("flops", 0.5),
    "ms": ("latency", 1.0),
    "us": ("latency", 1e-3),
    "s": ("latency", 1e3),
    "latency": ("latency", 1.0),
}
_NUMBER = r"[0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?"
_PATTERN = re.compile(rf"\s*({_NUMBER})\s*(%)?\s*([a-z ]*)", re.IGNORECASE)
_FOR = re.compile(r"\s+for\s+", re.IGNORECASE)


@dataclass(frozen=True)
class Budget:
    """An upper bound on the size of a tree, or several of them in different units.

    Attributes:
        amount: the bound: parameters, multiply-adds or milliseconds; a share (0.6 for 60%) if `relative`.
        unit: `"params"`, `"flops"` or `"latency"`.
        relative: whether the amount is a share of N separate networks, heads included where they are known.
        also: further budgets, each in a unit of its own or for other tasks, that the tree must meet, too.
        tasks: the tasks that count: nodes that serve one of them, and their heads. Empty = all tasks.

    Raises:
        BudgetError: an amount that is not a positive number, an unknown unit, or two budgets in one unit.

    >>> branchnet.Budget.parse("60% params")
    Budget(amount=0.6, unit='params', relative=True)
    >>> both = branchnet.Budget.parse("60% params, 45% flops")
    >>> [budget.unit for budget in both.each], str(both)
    (['params', 'flops'], '60% params, 45% flops')
    >>> branchnet.Budget.parse("8 GFLOPs") == branchnet.Budget.parse("4 GMACs")       # a multiply-add is two FLOPs
    True
    """

    amount: float
    unit: str = "params"
    relative: bool = False
    also: tuple[Budget, ...] = field(default=(), repr=False)
    tasks: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not (isinstance(self.amount, (int, float, np.number)) and math.isfinite(self.amount) and self.amount > 0):
            raise BudgetError(f"the budget is {self.amount!r}; expected a positive number")
        if self.unit not in UNITS:
            raise BudgetError(f"unknown unit {self.unit!r} of a budget; expected one of {', '.join(UNITS)}")
        if isinstance(self.tasks, str) or len(set(self.tasks)) < len(self.tasks):
            raise BudgetError(f"the tasks of the budget are {self.tasks!r}; expected distinct names")
        units = [budget.unit for budget in self.each]
        counted = {(budget.unit, frozenset(budget.tasks)) for budget in self.each}
        if len(counted) < len(units) or any(budget.also for budget in self.also):
            raise BudgetError(
                f"the budgets are in {', '.join(units)}; expected one for each unit and set of tasks at most"
            )

    @property
    def each(self) -> tuple[Budget, ...]:
        """All budgets, one by one."""
        return (replace(self, also=()), *self.also) if self.also else (self,)

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget.

        MACs are multiply-adds; a FLOP written out counts half of one. Percentages are of the separate networks.

        Args:
            text: such as `"60% params"`, `"25e6 params"`, `"25M params"`, `"4 GMACs"`, `"8 GFLOPs"` or `"4 ms"`, or
                several of them, `"25M params, 4 ms"`; with the tasks that count, `"8 ms for depth+edges"` (names with a
                comma or a plus are given to `Budget` itself).

        Returns:
            The budget.

        Raises:
            BudgetError: text of another form.
        """
        if not isinstance(text, str):
            raise BudgetError(f"budget={text!r}; expected text such as '60% params', '45% flops' or '4 ms'")
        if "," in text:
            first, *others = (cls.parse(part) for part in text.split(","))
            return replace(first, also=tuple(others))
        amount, *named = _FOR.split(text.rstrip(), maxsplit=1)
        if named:
            tasks = tuple(name.strip() for name in named[0].split("+"))
            if not all(tasks):
                raise _unreadable(text)
            return replace(cls.parse(amount), tasks=tasks)
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise _unreadable(text)
        number, percent, word = float(match[1]), match[2], match[3].lower().replace(" ", "")
        if percent:
            unit = _WORDS.get(word or "params", (None, 0.0))[0]
            if unit is None:
                raise _unreadable(text)
            return cls(number / 100, unit, relative=True)
        unit, factor = _unit_of(word, text)
        return cls(number * factor, unit)

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """Refuse tasks that there are none of.

        Args:
            tasks: those that there are.

        Raises:
            BudgetError: it names another task.
        """
        for one in self.each:
            if unknown := [task for task in one.tasks if task not in tasks]:
                raise BudgetError(
                    f"the budget {one} names the unknown task {unknown[0]!r}; expected {', '.join(tasks)}"
                )

    def __str__(self) -> str:
        if self.also:
            return ", ".join(map(str, self.each))
        whose = f" for {'+'.join(self.tasks)}" if self.tasks else ""
        if self.relative:
            return f"{100 * self.amount:g}% {self.unit}{whose}"
        return f"{self.amount:g} {_WRITTEN[self.unit]}{whose}"


def _unit_of(word: str, text: str) -> tuple[str, float]:
    if word in _WORDS and word != "latency":
        return _WORDS[word]
    prefix, rest = word[:1], word[1:]
    if word and prefix in _PREFIX and rest in _WORDS and _WORDS[rest][0] != "latency":
        unit, factor = _WORDS[rest]
        return unit, factor * _PREFIX[prefix]
    raise _unreadable(text)


def _unreadable(text: str) -> BudgetError:
    return BudgetError(
        f"cannot read the budget {text!r}; expected for example '60% params', '25e6 params', '4 GMACs', '8 GFLOPs' "
        "(two per multiply-add), '4 ms' or '8 ms for depth+edges'"
    )


AnyBudget: TypeAlias = Budget | float | str | Sequence[Budget | float | str]


def as_budget(budget: AnyBudget) -> Budget:
    """A budget from a budget, its text, a number of parameters, or several of these."""
    if isinstance(budget, Budget):
        return budget
    if isinstance(budget, Sequence) and not isinstance(budget, str):
        if not budget:
            raise BudgetError("there is no budget in the list; expected one or more")
        first, *others = (as_budget(one) for one in budget)
        return replace(first, also=(*first.also, *(one for other in others for one in other.each)))
    return Budget.parse(budget) if isinstance(budget, str) else Budget(float(budget))
