"""What the outputs of tasks are, and what they are measured by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from branchnet.errors import DataError
from branchnet.pipeline.config.run_config import Kind
from branchnet.stitching.output_distances import kind_of
from branchnet.training import (
    Metric,
    cohen_kappa,
    explained_direction,
    explained_divergence,
    explained_variance,
    kl_divergence,
    mean_angle,
    top1_agreement,
)
from branchnet.utils.installed_torch.torch_internals import pytree


def known_kinds(kinds: Mapping[str, Kind], outputs: Mapping[str, Tensor]) -> dict[str, Kind]:
    """The kind of each task.

    Args:
        kinds: those that are stated.
        outputs: of each task's network for some images.

    Returns:
        The kinds stated; of the others what shows in the outputs.
    """
    return {task: kinds.get(task) or kind_of(output) for task, output in outputs.items()}


def metrics_of(kinds: Mapping[str, Kind]) -> tuple[dict[str, Metric], tuple[tuple[str, Metric], ...]]:
    """The metric of each task, and further ones: agreement with the single-task network.

    Args:
        kinds: the kind of each task.

    Returns:
        The metrics by task; the further ones as (task, metric).
    """
    usual: dict[Kind, tuple[Metric, ...]] = {
        "classification": (explained_divergence(), cohen_kappa(), kl_divergence(), top1_agreement()),
        "direction": (explained_direction(), mean_angle()),
        "regression": (explained_variance(),),
    }
    metrics = {task: on_first_tensor(usual[kind][0]) for task, kind in kinds.items()}
    further = tuple((task, on_first_tensor(metric)) for task, kind in kinds.items() for metric in usual[kind][1:])
    return metrics, further


def on_first_tensor(metric: Metric) -> Metric:
    """Apply a metric to the first floating-point tensor of an output, which may be a dict or a tuple."""
    return replace(metric, sums=lambda output, target: metric.sums(first_tensor(output), target))


def first_tensor(output: Any) -> Tensor:
    """First floating-point tensor of a nested output.

    Args:
        output: a tensor, or tensors nested in dicts, tuples and the like.

    Returns:
        The tensor.

    Raises:
        DataError: there is none.
    """
    for leaf in pytree.tree_leaves(output):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return leaf
    raise DataError(f"the network's output, {type(output).__name__}, holds no floating-point tensor to compare")
