"""Learning rates over time, as shares of the peak rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

Schedule: TypeAlias = Literal["cosine", "constant"] | Callable[[int, int], float]
"""A name, or a function of (step, steps) to the share of the peak rate."""

WARM_UP = 0.05
"""Share of the steps in which the rate rises: AdamW's second moments are estimated from few gradients at first."""


def cosine(step: int, steps: int) -> float:
    """Return the share of the peak rate at `step` of `steps`: linear warm-up, then half a cosine down to zero.

    The cosine of "SGDR" (Loshchilov and Hutter 2017, equation 5), without restarts.
    """
    warm_up = _warm_up(steps)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def constant(step: int, steps: int) -> float:
    """Return the share of the peak rate at `step` of `steps`: linear warm-up, then all of it."""
    return min(1.0, (step + 1) / _warm_up(steps))


SCHEDULES: dict[str, Callable[[int, int], float]] = {"cosine": cosine, "constant": constant}


def share_of(schedule: Schedule) -> Callable[[int, int], float]:
    """Return the function of (step, steps) that a schedule is.

    Args:
        schedule: its name, or the function itself.
    """
    return schedule if callable(schedule) else SCHEDULES[schedule]


def _warm_up(steps: int) -> int:
    return max(1, round(WARM_UP * steps))
