"""BatchNorm statistics of nodes that are fed by another donor's features, estimated again from data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from branchnet.builder import BranchedNetwork, GroupedNetworks, estimate_batchnorm
from branchnet.data.samples import Source, read_samples
from branchnet.stages.interface import call_form
from branchnet.stages.tracing.input_order import InputOrder, run_tasks
from branchnet.stitching import StitchedStage
from branchnet.training.optimization.choosing.held_out_judge import Judge
from branchnet.utils.modes import evaluation_mode
from branchnet.utils.random_state import seeded

SAMPLES = 512
"""A mean over so many samples is off by about 1 / sqrt(512) = 4% of a channel's deviation, by less with pixels."""


def foreign_modules(branched: BranchedNetwork) -> list[nn.Module]:
    """Return the nodes and heads that do not get their own donor's features: some node above them has another donor.

    A stitch turns features into those that its node expects, which begins the path to it again. Frozen nodes are not
    among them.

    Args:
        branched: the network.
    """
    arriving: dict[str, set[str]] = {"": set()}
    """By the id of a node the donors whose features its results are made of."""
    foreign = []
    for node in branched.members():
        stitched = isinstance(node.module, StitchedStage)
        above = set() if stitched else arriving[branched.parent_of(node)]
        arriving[node.id] = above | {node.donor}
        if above - {node.donor} and node.id not in branched.frozen:
            foreign.append(node.module)
    return foreign


def reestimate_batchnorm(branched: BranchedNetwork | GroupedNetworks, images: Source, *, batch_size: int = 64) -> int:
    """Replace the running statistics below foreign features by the mean over batches of up to 512 samples.

    BatchNorm that tracing turned into operators of a stage's graph cannot be estimated; a warning counts those layers.

    Args:
        branched: the network, changed in place; or `GroupedNetworks`, each of which is.
        images: K samples, of which the first 512 are used.
        batch_size: samples a batch.

    Returns:
        the number of BatchNorm layers that were estimated.
    """
    if isinstance(branched, GroupedNetworks):
        return sum(reestimate_batchnorm(one, images, batch_size=batch_size) for one in branched.branched_networks)
    device = next(branched.parameters()).device
    batches = read_samples(images, call_form(branched)).first(SAMPLES, batch_size, seed=0)
    order = InputOrder(branched, run_tasks)
    inputs = (order.placed(batch.inputs, device) for batch in batches if len(batch) > 1)  # one sample has no variance
    # A network may draw random numbers; the first batch is laid out for the mode in which all are run.
    with seeded(0, device), torch.no_grad(), evaluation_mode(branched):
        return estimate_batchnorm(branched, foreign_modules(branched), inputs)


def reestimate_without_harm(branched: BranchedNetwork, images: Source, judge: Judge) -> None:
    """Estimate BatchNorm statistics again, and take back those of nodes that serve a task which is worse with them.

    Args:
        branched: the network, changed in place.
        images: K samples.
        judge: measures each task.
    """
    before, _ = judge.measure()
    nodes = list(branched.members())
    kept = [[buffer.clone() for buffer in node.module.buffers()] for node in nodes]
    reestimate_batchnorm(branched, images)
    changed = [
        (node, buffers)
        for node, buffers in zip(nodes, kept, strict=True)
        if not all(map(torch.equal, node.module.buffers(), buffers))
    ]
    while changed:
        after, _ = judge.measure()
        harmed = {task for task, loss in before.items() if not after[task] <= loss + judge.tolerance(task, loss)}
        if not harmed:
            return
        taken_back = [(node, buffers) for node, buffers in changed if harmed & set(node.tasks)] or changed
        for node, buffers in taken_back:
            _put_back(node.module, buffers)
        changed = [pair for pair in changed if all(pair is not one for one in taken_back)]


def _put_back(module: nn.Module, kept: list[Tensor]) -> None:
    with torch.no_grad():
        for buffer, value in zip(module.buffers(), kept, strict=True):
            buffer.copy_(value)
