"""What proposed trees do without any training: each is built with stitches and measured on other inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from branchnet.affinity import Affinity
from branchnet.affinity.probes import read_probe
from branchnet.builder import BranchedNetwork, build, choose_donors
from branchnet.builder.stitches.top_down_fit import stitch_donors
from branchnet.data.collation import placed
from branchnet.data.samples import Source, read_samples
from branchnet.pipeline.tree_choice.proposals import Proposal
from branchnet.reporting import MeasuredTree
from branchnet.stages import StagedNetwork, call
from branchnet.stages.interface import call_form
from branchnet.stitching.output_distances import OutputDistance, OutputKind
from branchnet.utils.progress import progress_bar


def measure_trees(
    proposals: Sequence[Proposal],
    sizes: Sequence[float],
    staged: Mapping[str, StagedNetwork],
    affinity: Affinity,
    probe: Any,
    held_out: Source,
    kinds: Mapping[str, OutputKind],
    *,
    preferred: str | None = None,
    batch_size: int = 32,
) -> list[MeasuredTree]:
    """Build every tree with stitches and measure it.

    Args:
        proposals: the trees.
        sizes: of each of them.
        staged: the single-task networks.
        affinity: chooses the donors.
        probe: inputs to fit stitches on.
        held_out: other inputs.
        kinds: how the outputs of some tasks are compared.
        preferred: a task to prefer as donor.
        batch_size: inputs run at once.

    Returns:
        the measured trees, in the order of the proposals.
    """
    measured = []
    read = read_probe(probe, batch_size, call_form(next(iter(staged.values()))))
    with progress_bar("measure trees", len(proposals)) as advance:
        for proposal, size in zip(proposals, sizes, strict=True):
            donors = choose_donors(proposal.tree, affinity, preferred=preferred)
            branched = build(proposal.tree, staged, init="donor", donors=donors).eval()
            stitch_donors(branched, staged, read, kinds, corrected=False)
            losses = distances(branched, staged, held_out, kinds, batch_size)
            measured.append(MeasuredTree(proposal.tree, proposal.by, size, proposal.predicted, losses))
            advance(f"{measured[-1].mean:.3f}")
    return measured


def distances(
    branched: BranchedNetwork,
    networks: Mapping[str, nn.Module],
    inputs: Source,
    kinds: Mapping[str, OutputKind],
    batch_size: int,
) -> dict[str, float]:
    """How far each task's outputs are from its own network's.

    Args:
        branched: the network, in eval mode.
        networks: the single-task networks.
        inputs: K samples.
        kinds: how the outputs of some tasks are compared.
        batch_size: samples run at once.

    Returns:
        for each task 0 for equal outputs, 1 for those of a constant predictor.
    """
    judged = {task: OutputDistance(kinds.get(task, "regression")) for task in branched.tasks}
    device = next(branched.parameters()).device
    with torch.no_grad():
        for batch in read_samples(inputs, call_form(branched)).batches(batch_size):
            found = branched(placed(batch.inputs, device))
            for task, distance in judged.items():
                distance.add(found[task], call(networks[task], placed(batch.inputs, device)))
    return {task: distance.value() for task, distance in judged.items()}
