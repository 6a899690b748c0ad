"""Which option each node takes, exactly: a knapsack in which every node has several options and limits are several."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def choose_options(costs: Floats, uses: Floats, limits: Floats) -> npt.NDArray[np.int64] | None:
    """Return the options that cost least in all and keep to the limits.

    Solved by HiGHS as an integer programme, to a gap of 0; limits are kept to a millionth of each.

    Args:
        costs: (N, M), what option m of node n costs; infinite where a node does not have it.
        uses: (N, M, R), what it takes of each of R resources; infinite where it must not be taken.
        limits: (R,) what is there of each, 0 or more; infinite where there is no limit.

    Returns:
        the option of each node, (N,); None where no choice keeps to the limits.

    >>> import numpy as np
    >>> from branchnet.deploy.quantization.node_choice import choose_options
    >>> costs = np.array([[4.0, 1.0], [2.0, 1.0]])  # two nodes, as they are or smaller
    >>> losses = np.array([[[0.0], [0.3]], [[0.0], [0.1]]])
    >>> choose_options(costs, losses, np.array([0.35])).tolist()  # both smaller would lose 0.4
    [1, 0]
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    count, options = costs.shape
    if not count:
        return np.zeros(0, dtype=np.int64)
    allowed = np.isfinite(costs) & np.isfinite(uses).all(2)
    costs, uses = np.where(allowed, costs, 0.0), np.where(allowed[..., None], uses, 0.0)
    rows = [LinearConstraint(np.kron(np.eye(count), np.ones(options)), 1, 1)]
    for resource, limit in enumerate(limits):
        if np.isfinite(limit):
            used = uses[:, :, resource].reshape(1, -1)
            unit = limit or np.abs(used).max() * 1e-6 or 1.0
            rows.append(LinearConstraint(used / unit, ub=limit / unit))
    scale = np.abs(costs).max() or 1.0
    answer = milp(
        costs.reshape(-1) / scale,
        integrality=np.ones(count * options),
        bounds=Bounds(0, allowed.reshape(-1).astype(float)),
        constraints=rows,
        options={"mip_rel_gap": 0.0},
    )
    if answer.status == 2:
        return None
    if answer.x is None:
        raise RuntimeError(f"HiGHS gave up: {answer.message}")
    chosen: npt.NDArray[np.int64] = answer.x.reshape(count, options).argmax(1)
    return chosen
