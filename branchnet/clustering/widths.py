"""The best vector of widths when every stage's cost is a function of its width alone.

Minimise sum_d table[d, w_d] over non-decreasing w within a budget. The budget is cut into steps: sizes rounded up give
a feasible vector, sizes rounded down a valid lower bound, and with 4,000 steps the two differ by less than D / 4000 of
the budget.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from branchnet.clustering.constraints import Rules

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
STEPS = 4000


def best_widths(table: Floats, sizes: Floats, limit: float) -> tuple[int, ...] | None:
    """A feasible vector of widths of near least cost; None if rounding finds none.

    Args:
        table: (D, N + 1) cost of stage d at width w, column 0 unused; inf = not allowed.
        sizes: (D, N + 1) size of stage d at width w.
        limit: largest sum of sizes.
    """
    steps = _steps(sizes, limit, up=True)
    least = _programme(table, steps)
    return _trace(table, steps, least) if np.isfinite(least[-1]).any() else None


class WidthBounds:
    """Lower bounds on the least sum of costs over vectors of widths that fit, for many tables of costs.

    Args:
        rules: the constraints; they limit the widths of every stage.
        sizes: (D, N + 1) size of stage d at width w.
        limit: largest sum of sizes.
    """

    def __init__(self, rules: Rules, sizes: Floats, limit: float) -> None:
        widths = np.arange(sizes.shape[1])
        least, most = np.array(rules.min_width)[:, None], np.array(rules.max_width)[:, None]
        self._barred = (widths < np.maximum(least, 1)) | (widths > most)
        self._steps = _steps(sizes, limit, up=False)

    def least(self, table: Floats, most: float = np.inf) -> tuple[float, tuple[int, ...]]:
        """The least sum, and widths that attain it; inf and no widths where no sum is below `most`.

        Args:
            table: (D, N + 1) lower bound on the cost of stage d at width w.
            most: sums from here on do not matter.
        """
        allowed = np.where(self._barred, np.inf, table)
        lowest = allowed.min(axis=1)
        if not np.isfinite(lowest).all():
            return np.inf, ()
        allowed[allowed + (lowest.sum() - lowest)[:, None] >= most] = np.inf
        layers = _programme(allowed, self._steps)
        value = float(layers[-1].min())
        return (value, _trace(allowed, self._steps, layers)) if value < most else (np.inf, ())


def _steps(sizes: Floats, limit: float, *, up: bool) -> Ints:
    if limit <= 0:
        return np.where(sizes > 0, STEPS + 1, 0)
    exact = sizes * (STEPS / limit)
    rounded = np.ceil(exact - 1e-9) if up else np.floor(exact + 1e-9)
    return np.minimum(rounded, STEPS + 1).astype(np.int64)


def _programme(table: Floats, steps: Ints) -> list[Floats]:
    """Per stage `[w, s]`: least cost of stages 0..d with w_d <= w and size at most s steps."""
    n = table.shape[1] - 1
    below = np.zeros((n + 1, STEPS + 1))
    layers = []
    for costs, needed in zip(table, steps, strict=True):
        layer = np.full((n + 1, STEPS + 1), np.inf)
        for width in range(1, n + 1):
            step = int(needed[width])
            if step <= STEPS and np.isfinite(costs[width]):
                layer[width, step:] = below[width, : STEPS + 1 - step] + costs[width]
            np.minimum(layer[width], layer[width - 1], out=layer[width])
        layers.append(layer)
        below = layer
    return layers


def _trace(table: Floats, steps: Ints, layers: list[Floats]) -> tuple[int, ...]:
    widths: list[int] = []
    most, room = table.shape[1] - 1, STEPS
    for stage in range(len(table) - 1, -1, -1):
        column = layers[stage][: most + 1, room]
        width = int(np.flatnonzero(column == column[most])[0])
        widths.append(width)
        most, room = width, room - int(steps[stage, width])
    return tuple(reversed(widths))
