"""Budgets that trees must meet next to the first one, each in a unit of its own.

A tree's size in every unit is a sum over stages of tables by width. With each table divided by its limit, a tree fits
if its largest sum is at most 1. What needs one table gets a *surrogate*: a mixture of the tables, whose sum is at most
1 for every tree that fits (so bounds under it hold), or the largest entry of all tables, whose sum is at least that of
each (so that trees that fit it fit all).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from branchnet.clustering.budgets.budget import Budget
from branchnet.clustering.budgets.tree_sizes import SizeModel, fits
from branchnet.clustering.search_result import Resource

Floats = npt.NDArray[np.float64]

MIXTURES = 5
"""Of two budgets so many surrogates are tried, from one alone to the other alone."""


@dataclass(frozen=True, eq=False)
class FurtherLimit:
    """One more budget.

    Attributes:
        sizes: in its unit.
        limit: the largest size.
        budget: as it was written; None where only the sizes are wanted.
    """

    sizes: SizeModel
    limit: float
    budget: Budget | None

    def fits(self, widths: Sequence[int]) -> bool:
        """Whether a tree with these widths meets it."""
        return bool(fits(self.sizes.of_widths(widths), self.limit))

    def resource(self, widths: Sequence[int]) -> Resource:
        """What a tree with these widths needs of it."""
        return Resource(self.sizes.unit, self.sizes.of_widths(widths), self.limit)


def shares_of_limits(sizes: SizeModel, limit: float, further: Sequence[FurtherLimit]) -> Floats:
    """The tables of all budgets, each divided by what its limit leaves for the stages, (budgets, D, N + 1).

    A limit that leaves nothing allows only stages of size 0: their shares are 0, all others infinite.
    """
    tables = []
    for model, most in ((sizes, limit), *((one.sizes, one.limit) for one in further)):
        room = most - model.fixed
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = model.table / room if room > 0 else np.where(model.table > 0, np.inf, 0.0)
        tables.append(shares)
    return np.array(tables)


def mixtures(shares: Floats) -> Iterator[Floats]:
    """Weighted means of the tables: of two in several proportions, of more each alone and all equally."""
    count = len(shares)
    weights: list[Sequence[float]] = [[1.0 / count] * count, *np.eye(count).tolist()]
    if count == 2:
        weights += [[share, 1 - share] for share in np.linspace(0, 1, MIXTURES)[1:-1].tolist() if share != 0.5]
    for weight in weights:
        counted = [factor * table for factor, table in zip(weight, shares, strict=True) if factor > 0]
        yield np.asarray(sum(counted))


def largest_shares(shares: Floats) -> Floats:
    """The largest entry of all tables."""
    return np.asarray(shares.max(axis=0))


def of_widths(shares: Floats, widths: Sequence[int]) -> float:
    """The largest sum of all tables, at most 1 for a tree that fits."""
    return float(max(sum(float(row[width]) for row, width in zip(table, widths, strict=True)) for table in shares))
