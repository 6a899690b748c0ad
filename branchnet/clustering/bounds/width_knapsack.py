"""The best vector of widths when every stage's cost is a function of its width alone.

Minimise sum_d table[d, w_d] over non-decreasing w within a budget. The budget is cut into steps: sizes rounded up give
a feasible vector, sizes rounded down a valid lower bound, and with 4,000 steps the two differ by less than D / 4000 of
the budget. A price on the budget (`PricedWidths`) is a weaker bound in a fraction of the time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from branchnet.clustering.constraints import Rules

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
STEPS = 4000
_ROOM = 1 + 1e-9  # what fits may exceed the limit by rounding


def best_widths(table: Floats, sizes: Floats, limit: float) -> tuple[int, ...] | None:
    """A feasible vector of widths of near least cost; None if rounding finds none.

    Args:
        table: (D, N + 1) cost of stage d at width w, column 0 unused; inf = not allowed.
        sizes: (D, N + 1) size of stage d at width w.
        limit: largest sum of sizes.
    """
    steps = _steps(sizes, limit, STEPS, up=True)
    layers = _programme(table, steps, STEPS)
    return _trace(steps, layers) if np.isfinite(layers[-1].costs).any() else None


class WidthBounds:
    """Lower bounds on the least sum of costs over vectors of widths that fit, for many tables of costs.

    Args:
        rules: the constraints; they limit the widths of every stage.
        sizes: (D, N + 1) size of stage d at width w.
        limit: largest sum of sizes.
        number: into how many steps the limit is cut; fewer are faster, and the bound a little lower.
    """

    def __init__(self, rules: Rules, sizes: Floats, limit: float, number: int = STEPS) -> None:
        self._barred, self._number = _barred(rules, sizes), number
        self._steps = _steps(sizes, limit, number, up=False)

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
        layers = _programme(allowed, self._steps, self._number)
        value = float(layers[-1].costs.min(initial=np.inf))
        return (value, _trace(self._steps, layers)) if value < most else (np.inf, ())


@dataclass(frozen=True, eq=False)
class WidthMixture:
    """Widths of least priced cost on either side of a limit, mixed so that they just meet it.

    Attributes:
        value: a lower bound on the least sum of costs.
        wide, narrow: D widths each.
        share: the share of `wide`.
    """

    value: float
    wide: Ints
    narrow: Ints
    share: float


class PricedWidths:
    """Lower bounds on the same sum by the best price on the budget; neighbouring stages are not tied together.

    Args:
        rules: the constraints; they limit the widths of every stage.
        sizes: (D, N + 1) size of every stage at every width.
        limit: largest sum of sizes; some vector of widths must keep to it.
    """

    def __init__(self, rules: Rules, sizes: Floats, limit: float) -> None:
        self._barred = _barred(rules, sizes)
        if limit <= 0:
            self._barred |= sizes > 0
        self._sizes = np.where(self._barred, 0.0, sizes / (limit * _ROOM if limit > 0 else 1.0))
        self._stages = np.arange(len(sizes))

    def least(self, table: Floats) -> WidthMixture:
        """The bound for a table of costs, (D, N + 1), in which the widths that the rules allow are finite."""
        allowed = np.where(self._barred, np.inf, table)
        low = self._at(allowed, 0.0)
        if low.size <= 1.0:
            return WidthMixture(low.value, low.widths, low.widths, 1.0)
        high, price = low, max(float(np.ptp(table[:, 1:], axis=1).max()), 1e-300)
        while high.size > 1.0 and np.isfinite(price):
            price *= 4.0
            high = self._at(allowed, price)
        while low.size > high.size:
            # The value is concave in the price: the two lines meet above it, or at it.
            price = (high.value - low.value - high.price * (high.size - 1) + low.price * (low.size - 1)) / (
                low.size - high.size
            )
            meeting = low.value + (price - low.price) * (low.size - 1)
            middle = self._at(allowed, price)
            if middle.value >= meeting - 1e-12 * abs(meeting) or not low.price < price < high.price:
                low, high = (middle, high) if middle.size > 1.0 else (low, middle)
                break
            low, high = (middle, high) if middle.size > 1.0 else (low, middle)
        share = min(max((1.0 - high.size) / (low.size - high.size), 0.0), 1.0) if low.size > high.size else 0.0
        return WidthMixture(max(low.value, high.value), low.widths, high.widths, share)

    def _at(self, allowed: Floats, price: float) -> _Priced:
        paid = allowed + price * self._sizes
        widths = paid.argmin(axis=1)
        size = float(self._sizes[self._stages, widths].sum())
        return _Priced(price, float(paid[self._stages, widths].sum()) - price, size, widths)


@dataclass(frozen=True, eq=False)
class _Priced:
    price: float
    value: float
    size: float
    widths: Ints


def _barred(rules: Rules, sizes: Floats) -> npt.NDArray[np.bool_]:
    widths = np.arange(sizes.shape[1])
    least, most = np.array(rules.min_width)[:, None], np.array(rules.max_width)[:, None]
    return np.asarray((widths < np.maximum(least, 1)) | (widths > most))


def _steps(sizes: Floats, limit: float, number: int, *, up: bool) -> Ints:
    if limit <= 0:
        return np.where(sizes > 0, number + 1, 0)
    # 1e-9 of a step: a size that is a whole number of steps must not become one more (or fewer) by rounding.
    exact = sizes * (number / limit)
    rounded = np.ceil(exact - 1e-9) if up else np.floor(exact + 1e-9)
    return np.minimum(rounded, number + 1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class _Layer:
    """Least costs of stages 0..d: row r for widths up to `widths[r]`, column s for a size of at most s steps."""

    widths: Ints
    costs: Floats


def _programme(table: Floats, steps: Ints, number: int) -> list[_Layer]:
    """One layer for each stage, with the widths that are possible there."""
    layers: list[_Layer] = []
    for stage, (costs, needed) in enumerate(zip(table, steps, strict=True)):
        widths = np.flatnonzero(np.isfinite(costs) & (needed <= number))
        least = np.full((len(widths), number + 1), np.inf)
        for row, width in enumerate(widths.tolist()):
            step = int(needed[width])
            if stage == 0:
                least[row, step:] = costs[width]
            elif (last := int(np.searchsorted(layers[-1].widths, width, side="right"))) > 0:
                np.add(layers[-1].costs[last - 1, : number + 1 - step], costs[width], out=least[row, step:])
            if row:
                np.minimum(least[row], least[row - 1], out=least[row])
        layers.append(_Layer(widths, least))
    return layers


def _trace(steps: Ints, layers: list[_Layer]) -> tuple[int, ...]:
    widths: list[int] = []
    most, room = layers[-1].widths[-1], layers[-1].costs.shape[1] - 1
    for stage in range(len(layers) - 1, -1, -1):
        layer = layers[stage]
        column = layer.costs[: int(np.searchsorted(layer.widths, most, side="right")), room]
        most = int(layer.widths[np.flatnonzero(column == column[-1])[0]])
        widths.append(most)
        room -= int(steps[stage, most])
    return tuple(reversed(widths))
