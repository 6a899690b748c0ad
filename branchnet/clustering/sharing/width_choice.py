"""The best width of every stage under several limits, where each stage's cost is a function of its own width alone.

Stage by stage, all choices are kept that no other one is as good as in cost and in every size. Exact; with sizes
rounded to steps of the limits, as few as there are steps.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_BLOCK = 512
_ROOM = 1 + 1e-12
# So many steps of a limit, by the number of limits: what is kept grows as their product.
_STEPS = {1: 4000, 2: 250}
_FEW_STEPS = 60


def best_choice(costs: Floats, shares: Floats, tie: float) -> tuple[float, tuple[int, ...]] | None:
    """Least sum of costs and its widths; of those that tie the smallest in the first size. None where nothing fits.

    Args:
        costs: (D, N + 1) of every stage at every width; inf = not allowed.
        shares: (limits, D, N + 1) of the limits; a choice fits if no sum is above 1.
        tie: sums that differ by no more than this are equal.
    """
    depth = len(costs)
    allowed = np.where(np.isfinite(costs)[None], shares, np.inf)
    least = allowed.min(axis=2)
    if not np.isfinite(least).all():
        return None
    rest = np.cumsum(least[:, ::-1], axis=1)[:, ::-1]  # what the stages from d on need at least
    kept, sizes, widths = np.zeros(1), np.zeros((len(shares), 1)), np.zeros((1, 0), np.int64)
    for d in range(depth):
        possible = np.flatnonzero(np.isfinite(allowed[:, d]).all(axis=0))
        total = (kept[:, None] + costs[d, possible]).ravel()
        needed = (sizes[:, :, None] + allowed[:, d][:, None, possible]).reshape(len(shares), -1)
        after = rest[:, d + 1, None] if d + 1 < depth else 0.0
        fitting = np.flatnonzero((needed + after <= _ROOM).all(axis=0))
        chosen = fitting[_undominated(total[fitting], needed[:, fitting])]
        if not len(chosen):
            return None
        rows, columns = np.divmod(chosen, len(possible))
        widths = np.column_stack([widths[rows], possible[columns]])
        kept, sizes = total[chosen], needed[:, chosen]
    tied = np.flatnonzero(kept <= kept.min() + tie)
    best = int(tied[sizes[0, tied].argmin()])
    return float(kept.min()), tuple(int(width) for width in widths[best])


def _undominated(costs: Floats, sizes: Floats) -> Ints:
    """Which choices no other one is as good as in cost and in all sizes; of equal ones the first."""
    order = np.lexsort((costs, *sizes[::-1]))
    if len(sizes) == 1:
        best = np.minimum.accumulate(costs[order])
        return order[np.concatenate([[True], costs[order][1:] < best[:-1]])] if len(order) else order
    kept = np.zeros(0, np.int64)
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        block = block[~_beaten(costs, sizes, block, kept)]
        earlier = np.tri(len(block), k=-1, dtype=np.bool_)  # a choice beats those that come after it only
        kept = np.concatenate([kept, block[~(_beats(costs, sizes, block, block) & earlier).any(axis=1)]])
    return kept


def _beaten(costs: Floats, sizes: Floats, block: Ints, by: Ints) -> npt.NDArray[np.bool_]:
    return np.asarray(_beats(costs, sizes, block, by).any(axis=1))


def _beats(costs: Floats, sizes: Floats, block: Ints, by: Ints) -> npt.NDArray[np.bool_]:
    """`[i, j]`: whether `by[j]` is as good as `block[i]` in everything."""
    return np.asarray(
        (costs[by][None] <= costs[block][:, None]) & (sizes[:, None, by] <= sizes[:, block, None]).all(axis=0)
    )


def rounded(shares: Floats, *, up: bool) -> Floats:
    """Shares of the limits in whole steps; rounded down what fits still fits, up only that."""
    steps = _STEPS.get(len(shares), _FEW_STEPS)
    exact = shares * steps
    # 1e-9 of a step: a size that is a whole number of steps must not become one more (or fewer) by rounding.
    return np.asarray((np.ceil(exact - 1e-9) if up else np.floor(exact + 1e-9)) / steps)
