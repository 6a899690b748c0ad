"""BatchNorm statistics of nodes that are fed by another donor's features, estimated again from data."""

from __future__ import annotations

from torch import nn

from branchnet.builder import BranchedNetwork, GroupedNetworks, estimate_batchnorm
from branchnet.data.collation import placed
from branchnet.data.samples import Source, read_samples
from branchnet.stages.interface import call_form
from branchnet.stitching import StitchedStage
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
    inputs = (placed(batch.inputs, device) for batch in batches if len(batch) > 1)  # one sample has no variance
    with seeded(0, device):  # a network may draw random numbers
        return estimate_batchnorm(branched, foreign_modules(branched), inputs)
