"""The backward pass in which every node's gradient is aggregated from those of the node's own tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from branchnet.builder import BranchedNetwork
from branchnet.errors import TrainingError
from branchnet.training.weighting.node_aggregators import Aggregator, AggregatorFactory, NodeAggregators
from branchnet.training.weighting.task_gradients import (
    Block,
    backward_through,
    check_losses,
    other_leaves,
    parameter_blocks,
    task_gradients,
)


def backward_per_node(
    network: nn.Module,
    losses: Mapping[str, Tensor],
    aggregator: Aggregator | AggregatorFactory,
    *,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> None:
    """Fill `.grad` as `backward` does, where several tasks meet with the aggregate of their gradients.

    Every node's own tasks alone count there: with the rows of all tasks, those of tasks that do not pass a node are
    zero, and MGDA or CAGrad leave it without a gradient. A node or head of one task gets the plain gradient, a frozen
    one none. A stitching layer belongs to the node that it feeds. What a task's loss depends on in other tasks'
    branches gets nothing from it. Parameters of the losses themselves, as learned uncertainties, get the plain gradient
    of the losses' sum.

    A chain of nodes that serve the same tasks is aggregated node by node. One backward pass is made for each task, over
    its own path: a node of n tasks is passed n times. Besides what a plain backward pass takes, memory is the sum over
    nodes of several tasks of (tasks x parameters), in float32 or wider, and the gradients of the longest path once
    more. With activation checkpointing, stages are computed again once for each task. Where gradients of some task are
    infinite or NaN, as GradScaler provokes and detects them, a node gets their sum instead of an aggregate. On several
    processes each one aggregates the rows of its own batch, and DistributedDataParallel averages the results.

    Args:
        network: a `BranchedNetwork` (of one that is wrapped, the module inside), not sharded by FSDP.
        losses: a scalar for some or all of its tasks, computed by this network. A task without labels in the batch is
            left out, as a loss of 0 gives a row of zeros, which MGDA and others answer with a zero gradient.
        aggregator: maps a matrix (tasks, parameters), rows in the network's order of tasks, to a vector: an instance of
            `torchjd.aggregation.Aggregator`, or any function. For methods that must know the number of rows, or
            remember earlier matrices, a function from that number to an aggregator, as `NashMTL`; it is called again in
            every call of this function, use `branchnet.training.Aggregate` to keep what it made for each node.
        backward: what stands for `Tensor.backward`, e.g. `lambda loss: scaler.scale(loss).backward()` or
            `fabric.backward`. It is called once, on a scalar.

    Raises:
        TrainingError: a network that is not branched, or is sharded; no loss, one of an unknown task, one that is no
            scalar or depends on nothing that is trained; an aggregator that fails or returns another shape.

    >>> from branchnet.training import backward_per_node
    >>> network = branchnet.build(branchnet.Tree.shared(["depth", "edges"], 2),
    ...     {task: networks[task] for task in ("depth", "edges")}, example=images, locations=["layer1", "layer3"],
    ...     init="donor").train()
    >>> outputs = network(images)
    >>> backward_per_node(network, {task: outputs[task].square().mean() for task in outputs}, lambda rows: rows.mean(0))
    >>> all(parameter.grad is not None for parameter in network.parameters())
    True
    """
    fill_per_node(network, losses, NodeAggregators(aggregator), backward)


def fill_per_node(
    network: nn.Module,
    losses: Mapping[str, Tensor],
    aggregate: Callable[[Block, Tensor], Tensor],
    backward: Callable[[Tensor], None],
) -> None:
    """Do what `backward_per_node` does, with something that aggregates the matrix of a block.

    Args:
        network, losses, backward: as for `backward_per_node`.
        aggregate: from a block and its matrix to a vector.

    Raises:
        TrainingError: as `backward_per_node`.
    """
    network = branched_network(network)
    check_losses(losses, network.tasks)
    trained = {task: losses[task] for task in network.tasks if task in losses and losses[task].requires_grad}
    blocks = parameter_blocks(network, trained)
    others = other_leaves(trained.values(), {id(parameter) for parameter in network.parameters()})
    inputs = [*(parameter for block in blocks for parameter in block.parameters), *others]
    if not inputs:
        raise TrainingError(
            f"the losses of {list(losses)} depend on nothing that is trained; expected losses computed from the "
            "network's outputs, outside of torch.no_grad, and some node on their paths that is not frozen"
        )

    def compute(scale: Tensor) -> list[Tensor | None]:
        found = task_gradients(trained, blocks, others, scale)
        gradients: list[Tensor | None] = []
        for i, block in enumerate(blocks):
            own, found.of_blocks[i] = found.of_blocks[i], None  # released one by one
            gradients += _aggregated(block, own, aggregate, scale) if isinstance(own, Tensor) else own
        return gradients + found.of_others

    values = [loss.detach() for loss in losses.values()]
    backward_through(compute, torch.stack(values).sum(), inputs, backward)


def branched_network(network: nn.Module) -> BranchedNetwork:
    """Return the network, if its nodes can be told apart.

    Args:
        network: any network.

    Raises:
        TrainingError: it is not branched, or its parameters are sharded.
    """
    if not isinstance(network, BranchedNetwork):
        inside = "; pass the module inside" if isinstance(getattr(network, "module", None), BranchedNetwork) else ""
        raise TrainingError(
            f"gradients are aggregated by node in a BranchedNetwork, not a {type(network).__name__}{inside}"
        )
    if any(hasattr(parameter, "device_mesh") for parameter in network.parameters()):
        raise TrainingError("the network is sharded, and gradients by task are not; expected a replicated network")
    return network


def _aggregated(
    block: Block, matrix: Tensor, aggregate: Callable[[Block, Tensor], Tensor], scale: Tensor
) -> list[Tensor]:
    if not matrix.sum().isfinite():  # isfinite() of the matrix would need as much memory again
        return block.gradients(matrix.sum(0))
    if scale == 1:
        return block.gradients(aggregate(block, matrix))
    scale = scale.to(matrix)
    return block.gradients(aggregate(block, matrix.div_(scale)) * scale)
