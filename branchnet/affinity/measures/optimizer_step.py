"""Steps of an optimizer: what one along a task's gradient would give, and one that trains all tasks jointly.

The former changes neither the network nor the optimizer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from branchnet.affinity.features.isolation import device_of
from branchnet.affinity.measures.multi_task_trunk import Cut, Trunk, own_copy
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


def joint_step(
    trunk: Trunk,
    losses: Mapping[str, Callable[[Any, Any], Tensor]],
    learning_rate: float | None,
    optimizer: torch.optim.Optimizer | None,
    autocast: torch.dtype | None = None,
) -> Callable[[Any, Mapping[str, Any]], None]:
    """A training step of all tasks that a batch has targets of, on the sum of their losses.

    Args:
        trunk: stages and heads, trained in place.
        losses: by task.
        learning_rate: of plain gradient steps.
        optimizer: takes the steps in their place.
        autocast: the dtype to run under.

    Returns:
        A function of (inputs, targets by task).

    Raises:
        AffinityError: neither or both of `learning_rate` and `optimizer`.
    """
    modules = [node for stage in trunk.nodes for node in stage]
    modules += [head for head in trunk.heads if isinstance(head, nn.Module)]
    found = dict.fromkeys(p for module in modules for p in module.parameters() if p.requires_grad)
    if (optimizer is None) == (learning_rate is None):
        raise AffinityError("training steps need either learning_rate or optimizer; expected one of both")
    own = torch.optim.SGD(list(found), lr=learning_rate or 0.0) if optimizer is None else optimizer

    def step(inputs: Any, targets: Mapping[str, Any]) -> None:
        present = [number for number, task in enumerate(trunk.tasks) if targets.get(task) is not None]
        device = device_of(trunk.nodes[0][0])
        precision: AbstractContextManager[Any] = (
            nullcontext() if autocast is None else torch.autocast(device.type, dtype=autocast)
        )
        with torch.enable_grad():
            own.zero_grad()
            with precision:
                outputs = _outputs(trunk, inputs, present)
                total = sum(losses[trunk.tasks[task]](outputs[task], targets[trunk.tasks[task]]) for task in present)
            torch.as_tensor(total).backward()
            own.step()
            own.zero_grad()

    return step


def _outputs(trunk: Trunk, inputs: Any, tasks: Sequence[int]) -> dict[int, Any]:
    """Each task's output, with the modules as they are: BatchNorm statistics are updated in training mode."""
    cuts: dict[tuple[int, int], Cut] = {}
    for stage in range(trunk.depth):
        for node in sorted({trunk.clusters[stage][task] for task in tasks}):
            member = next(task for task in tasks if trunk.clusters[stage][task] == node)
            before = inputs if stage == 0 else own_copy(cuts[stage - 1, trunk.clusters[stage - 1][member]])
            args = before if isinstance(before, tuple) else () if isinstance(before, dict) else (before,)
            after = trunk.nodes[stage][node](*args, **(before if isinstance(before, dict) else {}))
            cuts[stage, node] = after if isinstance(after, tuple) else (after,)
    return {task: trunk.heads[task](*own_copy(cuts[trunk.depth - 1, trunk.clusters[-1][task]])) for task in tasks}


def _parameters(optimizer: Any) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
