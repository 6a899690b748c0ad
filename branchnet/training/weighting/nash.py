"""Nash-MTL: the aggregate on which tasks agree that bargain over the direction of the step."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 100
"""Of Newton's method; some ten are needed."""
RIDGE = 1e-8
"""Opposite gradients have no finite solution."""
LARGEST_NORM = 1.0
"""Of the result, as in the authors' code; the solution's own is the square root of the number of rows."""


def nash_mtl(matrix: Tensor) -> Tensor:
    """Aggregate gradients as a bargain between tasks ("Multi-Task Learning as a Bargaining Game", Navon et al. 2022).

    The coefficients a > 0 solve K a = 1 / a for the Gram matrix K of the rows. They are the minimum of
    a' K a / 2 - sum log a, found here by damped Newton steps, so that the result depends on the matrix alone; the
    paper's sequence of convex programmes, which TorchJD's `NashMTL` has, starts from the previous step's coefficients,
    which no checkpoint keeps.

    Args:
        matrix: (rows, parameters), the gradients.

    Returns:
        (parameters,), of norm 1 at most.

    >>> import torch
    >>> from branchnet.training import nash_mtl
    >>> nash_mtl(torch.tensor([[0.1, 0.0], [0.0, 10.0]]))  # both tasks gain, whatever the scales of their losses
    tensor([0.7071, 0.7071])
    """
    products = (matrix @ matrix.T).double()
    lengths = products.diagonal().sqrt()
    lengths = torch.where(lengths > 0, lengths, 1)
    # The solution does not depend on the lengths of the rows; divided by them, the numbers are of one order.
    coefficients = bargaining_coefficients(products / torch.outer(lengths, lengths)) / lengths
    vector = coefficients.to(matrix) @ matrix
    return torch.renorm(vector[None], p=2, dim=0, maxnorm=LARGEST_NORM)[0]


def bargaining_coefficients(products: Tensor) -> Tensor:
    """Solve K a = 1 / a for a > 0.

    Args:
        products: K, (n, n), positive semidefinite, float64.

    Returns:
        (n,).
    """
    regular = products + RIDGE * torch.eye(len(products)).to(products)
    a = regular.diagonal().rsqrt()
    for _ in range(STEPS):
        slope = regular @ a - 1 / a
        step = torch.linalg.solve(regular + torch.diag(a.square().reciprocal()), slope)
        decrement = (slope @ step).clamp(min=0).sqrt()
        # Of a self-concordant function; such a step never leaves a > 0 (Boyd & Vandenberghe 2004, section 9.6.4).
        a = a - step / (1 + decrement if decrement > 0.25 else 1)
        if decrement < 1e-9:
            break
    return a
