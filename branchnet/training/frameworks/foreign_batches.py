"""Batches as the loaders of other frameworks give them, and one scalar from the losses of several tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from branchnet.builder import BranchedNetwork
from branchnet.data.samples import Batch, Samples
from branchnet.errors import TrainingError
from branchnet.stages.interface import call_form
from branchnet.training.task_losses import Batches, TaskLosses, losses_by_task
from branchnet.training.weighting.weighting_base import Weighting


def trained_losses(network: Any, losses: Any, who: str) -> TaskLosses:
    """The losses of a branched network's tasks.

    Args:
        network: what is trained.
        losses: for each task a function of (output, labels).
        who: asks, for errors.

    Raises:
        TrainingError: a network that is not branched, or that cannot be trained, or losses that are missing.
    """
    if not isinstance(network, BranchedNetwork):
        raise TrainingError(f"{who} was given a {type(network).__name__}; expected a BranchedNetwork")
    if network.eval_only:
        raise TrainingError(
            f"this network can only be evaluated ({network.eval_only}); expected one that can be trained"
        )
    return TaskLosses(network, losses_by_task(network, losses))


def read_batches(content: Any, network: BranchedNetwork) -> Batches:
    """What a loader yields as a batch; of a loader for each task, as Lightning's CombinedLoader gives, a batch of each.

    Args:
        content: (inputs, {task: labels}), a mapping of inputs and labels by name, or {task: batch}.
        network: what the inputs are for.

    Raises:
        DataError: inputs that the network does not take.
    """
    samples = Samples((), "batched", None, call_form(network), with_labels=True)
    if isinstance(content, Mapping) and content and set(content) <= set(network.tasks):
        return {task: samples.read_batch(one) for task, one in content.items() if one is not None}
    return samples.read_batch(content)


def combined(weighting: Weighting | None, network: BranchedNetwork, losses: Mapping[str, Tensor]) -> Tensor:
    """One scalar whose `backward` gives the gradients that a weighting asks for; by default the sum of the losses.

    Args:
        weighting: of losses or gradients, or None.
        network: that the losses were computed with.
        losses: of one or more tasks.
    """
    if weighting is None:
        return torch.stack(list(losses.values())).sum()
    found: list[Tensor] = []
    weighting.backward(network, losses, found.append)
    return found[0]


def batch_size(batch: Batches) -> int:
    """How many samples there are.

    Args:
        batch: one, or one for each task.
    """
    return len(batch) if isinstance(batch, Batch) else sum(len(one) for one in batch.values())
