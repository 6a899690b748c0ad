"""Weights of tasks, for objectives that are sums over tasks of what each loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from branchnet.errors import AffinityError


def task_factors(weights: Mapping[str, float] | None, tasks: Sequence[str]) -> npt.NDArray[np.float64]:
    """The factor of every task's losses, (N,).

    Args:
        weights: `{task: weight}` for all tasks; None = 1 each.
        tasks: N names.

    Raises:
        AffinityError: other tasks, or weights that are negative or not finite.
    """
    if weights is None:
        return np.ones(len(tasks))
    if strange := sorted(set(weights) ^ set(tasks)):
        raise AffinityError(
            f"task_weights has other tasks, these differ: {', '.join(strange)}; expected {', '.join(tasks)}"
        )
    factors = np.array([weights[task] for task in tasks], dtype=np.float64)
    if not np.isfinite(factors).all() or (factors < 0).any():
        raise AffinityError(f"task_weights is {dict(weights)}; expected finite numbers, none negative")
    return factors
