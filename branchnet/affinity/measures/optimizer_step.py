"""The weights that one step along a task's gradient would give, without changing the network or the optimizer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from branchnet.errors import AffinityError

Gradients: TypeAlias = dict[nn.Parameter, Tensor]

# A power of two, so that scaling up and down again is exact; small enough that gradients of ordinary losses stay below
# float16's largest number, 65,504.
_HALF_SCALE = 1024.0


def stepped_weights(
    gradients: Gradients, learning_rate: float | None, optimizer: torch.optim.Optimizer | None
) -> dict[nn.Parameter, Tensor]:
    """Parameters after one step: the plain gradient step, or what a copy of `optimizer` in its present state does.

    Raises:
        AffinityError: neither or both of `learning_rate` and `optimizer` were given.
    """
    if optimizer is None:
        if learning_rate is None or not learning_rate > 0:
            raise AffinityError(f"learning_rate is {learning_rate}; expected a positive number, or optimizer=")
        return {p: p.detach() - learning_rate * gradient for p, gradient in gradients.items()}
    if learning_rate is not None:
        raise AffinityError(
            f"learning_rate is {learning_rate} and an optimizer was given; expected one of both: it has its own rate"
        )
    trial = copy.deepcopy(optimizer)
    pairs = list(zip(_parameters(optimizer), _parameters(trial), strict=True))
    for original, double in pairs:
        double.grad = gradients[original].clone() if original in gradients else None
    trial.step()
    return {original: double.detach() for original, double in pairs if original in gradients}


def zero_gradients(parameters: Sequence[nn.Parameter]) -> Gradients:
    """The gradients of a step that no task asks for: what momentum and weight decay do alone."""
    return {parameter: torch.zeros_like(parameter) for parameter in parameters}


def task_gradients(loss: Tensor, parameters: Sequence[nn.Parameter], autocast: torch.dtype | None = None) -> Gradients:
    """Gradients of one loss, zero where it does not reach; `.grad` stays as it is.

    Under float16 the loss is scaled up meanwhile, so that small gradients do not vanish.
    """
    scale = _HALF_SCALE if autocast == torch.float16 else 1.0
    with torch.enable_grad():
        found = torch.autograd.grad(loss * scale, list(parameters), retain_graph=True, allow_unused=True)
    return {
        parameter: torch.zeros_like(parameter) if gradient is None else gradient.detach() / scale
        for parameter, gradient in zip(parameters, found, strict=True)
    }


def _parameters(optimizer: Any) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
