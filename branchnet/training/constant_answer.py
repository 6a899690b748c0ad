"""The loss of the best constant answer under any loss: what a network reaches that does not look at its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from torch import Tensor

LARGEST = 2**22
"""Numbers of an output that are kept for it; more samples change little."""
STEPS = 40


def best_constant(
    batches: Sequence[tuple[Callable[[Any, Any], Tensor], Tensor, Any, float]],
) -> float | None:
    """The smallest mean loss of outputs that are the same for all samples and positions, one number for each channel.

    Args:
        batches: for each batch the loss, an output (B, channels, ...) for its form, the labels, and how many there are.

    Returns:
        the loss, found by L-BFGS from the mean output; None for a loss that has no gradient, or is not finite.
    """
    outputs = [output.detach().float() for _, output, _, _ in batches]
    dims = [d for d in range(outputs[0].dim()) if d != 1] if outputs[0].dim() > 1 else [0]
    start = torch.stack([output.mean(dims, keepdim=True) for output in outputs]).mean(0)
    total = sum(count for *_, count in batches)

    def loss(answer: Tensor) -> Tensor:
        parts = [
            count / total * one(answer.expand_as(output), labels).float()
            for (one, _, labels, count), output in zip(batches, outputs, strict=True)
        ]
        return torch.stack([part.reshape(()) for part in parts]).sum()

    def value_and_slope(point: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        answer = torch.tensor(point, dtype=torch.float32).reshape(start.shape).to(start.device).requires_grad_()
        value = loss(answer)
        (slope,) = torch.autograd.grad(value, answer)
        return float(value.detach()), slope.double().cpu().numpy().ravel()

    with torch.enable_grad():
        first = loss(start.clone().requires_grad_())
        if not (first.requires_grad and bool(first.isfinite())):
            return None
        found = minimize(
            value_and_slope,
            start.double().cpu().numpy().ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": STEPS},
        )
    return float(found.fun) if np.isfinite(found.fun) else None
