"""Losses with parameters of their own, as learned uncertainties: found, and trained together with the network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.errors import TrainingError


def check_losses(losses: Mapping[str, Any]) -> None:
    """Refuse losses that cannot be called with outputs and labels, such as the name of one, or a class.

    Args:
        losses: for each task what is given as its loss.

    Raises:
        TrainingError: what the loss of a task is instead.
    """
    for task, loss in losses.items():
        if isinstance(loss, type):
            raise TrainingError(f"the loss of {task!r} is the class {loss.__name__}; expected {loss.__name__}()")
        if not callable(loss):
            raise TrainingError(
                f"the loss of {task!r} is {loss!r}; expected a function of (output, labels), such as "
                "torch.nn.functional.mse_loss"
            )


def loss_modules(losses: Mapping[str, Callable[..., Any]]) -> dict[str, list[nn.Module]]:
    """The modules that are the loss of each task, or that it is a method or a `functools.partial` of.

    Args:
        losses: for each task a function of (output, labels).
    """
    return {task: _modules_of(loss) for task, loss in losses.items()}


def loss_parameters(
    modules: Mapping[str, Collection[nn.Module]], device: torch.device, trained: Collection[nn.Parameter]
) -> dict[str, list[nn.Parameter]]:
    """The parameters to train of each task's loss; one of several losses is in the first.

    Args:
        modules: the modules of each task's loss.
        device: where the network is.
        trained: parameters that are trained as the network's.

    Raises:
        TrainingError: parameters on another device than the network.
    """
    seen = {id(parameter) for parameter in trained}
    found = {}
    for task, held in modules.items():
        candidates = {id(p): p for module in held for p in module.parameters() if p.requires_grad}
        found[task] = [parameter for key, parameter in candidates.items() if key not in seen]
        seen.update(candidates)
        if elsewhere := sorted({str(p.device) for p in found[task] if p.device != device}):
            raise TrainingError(
                f"the loss of {task!r} has parameters on {elsewhere[0]}; expected {device}, where the network is: move "
                "it there with .to(...)"
            )
    return found


def check_all_trained(losses: Mapping[str, Tensor], trained: Collection[nn.Parameter]) -> None:
    """Look through the graphs of losses for parameters that no optimiser knows.

    Args:
        losses: the loss of each task.
        trained: what the optimiser updates.

    Raises:
        TrainingError: a loss depends on another parameter that requires a gradient.
    """
    known = {id(parameter) for parameter in trained}
    seen: set[Any] = set()
    for task, loss in losses.items():
        nodes = [loss.grad_fn]
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            nodes += [before for before, _ in node.next_functions]
            leaf = getattr(node, "variable", None)
            if isinstance(leaf, nn.Parameter) and id(leaf) not in known:
                raise TrainingError(
                    f"the loss of {task!r} depends on a parameter of shape {tuple(leaf.shape)} that would not be "
                    "trained; expected parameters of the network or of a loss that is a torch.nn.Module; call "
                    "requires_grad_(False) on it if it shall stay as it is"
                )


def _modules_of(loss: Any) -> list[nn.Module]:
    if isinstance(loss, nn.Module):
        return [loss]
    if isinstance(loss, partial):
        parts = [loss.func, *loss.args, *loss.keywords.values()]
        return [module for part in parts for module in _modules_of(part)]
    return _modules_of(loss.__self__) if isinstance(getattr(loss, "__self__", None), nn.Module) else []
