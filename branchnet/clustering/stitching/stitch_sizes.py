"""The size of stitches, which the widths of a tree decide.

Of the children of a node, one keeps its donor, and so does one of the heads of a last node; every other one needs a
stitch. So with w_D = N there are w_{d+1} - w_d stitches at location d, and a tree's size stays a sum over stages:
sum_d w_d (cost_d + stitch_{d-1} - stitch_d) + N stitch_{D-1} + heads, with stitch_{-1} = 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from branchnet.errors import BudgetError

Floats = npt.NDArray[np.float64]
StitchSizes = Sequence[float] | Mapping[str, Sequence[float]]
"""Size of one stitch at each of the D locations, in the unit of the budget; or these by unit."""


def with_stitches(table: Floats, stitch_sizes: StitchSizes | None, unit: str) -> tuple[Floats, float, float]:
    """The table with stitches, what they add at any widths, and the size of one at the last location.

    A stage may cost less than nothing then: a copy more of it saves a large stitch. Every stage has at least one copy,
    so what its cheapest width saves is moved into the constant, and tables are never negative.

    Args:
        table: (D, N + 1) size of every stage at every width, column 0 unused.
        stitch_sizes: of one stitch at each location, or these by unit; None = not counted.
        unit: which of them is meant.

    Raises:
        BudgetError: sizes that are negative, not finite or not D, or none in this unit.
    """
    if stitch_sizes is None:
        return table, 0.0, 0.0
    sizes = _checked_stitch_sizes(stitch_sizes, len(table), unit)
    slope = np.concatenate([[0.0], sizes[:-1]]) - sizes
    table = table + slope[:, None] * np.arange(table.shape[1])
    saved = np.minimum(table[:, 1:].min(axis=1), 0.0)
    table[:, 1:] -= saved[:, None]
    last = float(sizes[-1])
    return table, math.fsum([(table.shape[1] - 1) * last, *saved.tolist()]), last


def sizes_between(networks: Mapping[str, Any]) -> StitchSizes | None:
    """The sizes of stitches between staged networks; None in something else, or where latency would be needed.

    Args:
        networks: the result of `split_all`.

    Returns:
        one number for each location, in parameters and multiply-adds.
    """
    from branchnet.stages import StagedNetwork
    from branchnet.stages.staged import deepest
    from branchnet.stitching import stitch_costs  # networks are at hand, so torch is imported already

    staged = {task: network for task, network in networks.items() if isinstance(network, StagedNetwork)}
    return stitch_costs(deepest(staged)) if staged and len(staged) == len(networks) else None


def _checked_stitch_sizes(stitch_sizes: StitchSizes, depth: int, unit: str) -> Floats:
    if isinstance(stitch_sizes, Mapping):
        if unit not in stitch_sizes:
            raise BudgetError(
                f"stitch_sizes knows {', '.join(stitch_sizes)}; expected {unit!r}, the unit of the budget"
            )
        stitch_sizes = stitch_sizes[unit]
    sizes = np.array(stitch_sizes, dtype=np.float64)
    if sizes.shape != (depth,) or not np.isfinite(sizes).all() or (sizes < 0).any():
        raise BudgetError(
            f"stitch_sizes is {list(stitch_sizes)}; expected {depth} finite numbers, none negative: the size of one "
            "stitch at each location"
        )
    return sizes
