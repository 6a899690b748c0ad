"""Weightings by name, by weights, or as given: what `weights=` of the training functions may be."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from torch import nn

from branchnet.builder.network.task_names import did_you_mean
from branchnet.errors import TrainingError
from branchnet.training.weighting.famo import FamoWeighting
from branchnet.training.weighting.gradient_weightings import Aggregate, ImpartialWeighting
from branchnet.training.weighting.gradnorm import GradNormWeighting, common_nodes
from branchnet.training.weighting.loss_weightings import (
    DynamicWeightAverage,
    EqualWeighting,
    GivenWeighting,
    ImpartialLossWeighting,
    RandomWeighting,
    UncertaintyWeighting,
)
from branchnet.training.weighting.nash import nash_mtl
from branchnet.training.weighting.per_node import branched_network
from branchnet.training.weighting.weighting_base import LossWeighting, Weighting

OF_LOSSES: dict[str, Callable[[Sequence[str]], LossWeighting]] = {
    "equal": EqualWeighting,
    "uncertainty": UncertaintyWeighting,
    "dwa": DynamicWeightAverage,
    "rlw": RandomWeighting,
    "imtl-l": ImpartialLossWeighting,
    "famo": FamoWeighting,
    "gradnorm": GradNormWeighting,
}
FROM_TORCHJD: dict[str, tuple[str, dict[str, Any]]] = {
    "mgda": ("MGDA", {}),
    "pcgrad": ("PCGrad", {}),
    "graddrop": ("GradDrop", {}),
    "cagrad": ("CAGrad", {"c": 0.5}),
    "aligned-mtl": ("AlignedMTL", {}),
    "config": ("ConFIG", {}),
    "upgrad": ("UPGrad", {}),
    "imtl-g": ("IMTLG", {}),
}
"""The class in `torchjd.aggregation` and its arguments."""
NAMES = (*OF_LOSSES, "imtl", *FROM_TORCHJD, "nash-mtl")


def weighting_of(
    weights: str | Mapping[str, float] | Weighting | None, tasks: Sequence[str], network: nn.Module
) -> Weighting:
    """Return the weighting that `weights` asks for, on the network's device.

    Args:
        weights: None for the sum of the losses; a number of 0 or more for each task; a name: `equal`, `uncertainty`,
            `dwa`, `rlw`, `imtl`, `imtl-l`, `famo`, `gradnorm`, `mgda`, `pcgrad`, `graddrop`, `cagrad`, `nash-mtl`,
            `aligned-mtl`, `config`, `upgrad`, `imtl-g`; `Aggregate(...)` for any other aggregator.
        tasks: the tasks that are trained.
        network: what is trained; methods that use the gradients of tasks need a branched one.

    Returns:
        the weighting; its parameters are to be trained with the network.

    Raises:
        TrainingError: an unknown name, weights that lack a task, name an unknown one or are negative, a method that the
            network is not made for, TorchJD not installed.

    >>> from branchnet.training import weighting_of
    >>> weighting_of({"depth": 1.0, "edges": -2.0}, ["depth", "edges"], networks["depth"])
    Traceback (most recent call last):
    branchnet.errors.TrainingError: the weight of 'edges' is -2.0; expected a finite number of 0 or more
    """
    made = _made(weights, tasks)
    if isinstance(made, GradNormWeighting):
        common_nodes(branched_network(network))
    elif not isinstance(made, LossWeighting):
        branched_network(network)
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    return made.to(device)


def _made(weights: str | Mapping[str, float] | Weighting | None, tasks: Sequence[str]) -> Weighting:
    if weights is None:
        return EqualWeighting(tasks)
    if isinstance(weights, str):
        return _named(weights, tasks)
    if isinstance(weights, Mapping):
        return _given(weights, tasks)
    if not isinstance(weights, Weighting):
        raise TrainingError(
            f"weights={weights!r}; expected None, a number for each task, one of {', '.join(NAMES)}, or "
            "branchnet.training.Aggregate(an aggregator)"
        )
    if isinstance(weights, LossWeighting) and set(weights.tasks) != set(tasks):
        raise TrainingError(f"weights is made for {list(weights.tasks)}; expected {list(tasks)}")
    return weights


def _named(name: str, tasks: Sequence[str]) -> Weighting:
    if name in OF_LOSSES:
        return OF_LOSSES[name](tasks)
    if name == "imtl":
        return ImpartialWeighting(tasks, torchjd_aggregator("imtl-g"))
    if name in FROM_TORCHJD:
        return Aggregate(torchjd_aggregator(name))
    if name == "nash-mtl":
        return Aggregate(nash_mtl)
    raise TrainingError(f"weights={name!r} is not the name of a weighting{did_you_mean(name, NAMES)}")


def torchjd_aggregator(name: str) -> Any:
    """Make an aggregator of TorchJD.

    Args:
        name: one of `FROM_TORCHJD`.

    Raises:
        TrainingError: TorchJD, or the solver that this one uses, is not installed.
    """
    kind, arguments = FROM_TORCHJD[name]
    try:
        return getattr(importlib.import_module("torchjd.aggregation"), kind)(**arguments)
    except ImportError as error:
        raise TrainingError(f"weights={name!r} needs TorchJD ({error}): pip install 'branchnet[mtl]'") from error


def _given(weights: Mapping[str, float], tasks: Sequence[str]) -> GivenWeighting:
    if unknown := [task for task in weights if task not in tasks]:
        raise TrainingError(f"weights names the unknown task {unknown[0]!r}{did_you_mean(unknown[0], tasks)}")
    if missing := [task for task in tasks if task not in weights]:
        raise TrainingError(f"weights lacks {missing}; expected a number for each of {list(tasks)}")
    for task, weight in weights.items():
        if not isinstance(weight, Real) or not (math.isfinite(weight) and weight >= 0):
            raise TrainingError(f"the weight of {task!r} is {weight!r}; expected a finite number of 0 or more")
    if not any(weights.values()):
        raise TrainingError(f"weights={dict(weights)}; expected one larger than 0")
    return GivenWeighting({task: float(weights[task]) for task in tasks})
