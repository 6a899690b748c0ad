"""What proposed trees do without any training: each is built with stitches and measured on other inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from branchnet.affinity import Affinity
from branchnet.affinity.probes import read_probe
from branchnet.builder import BranchedNetwork, build, choose_donors
from branchnet.builder.stitches.top_down_fit import stitch_donors
from branchnet.clustering import Tree
from branchnet.data.collation import placed
from branchnet.data.samples import Source, read_samples
from branchnet.pipeline.tree_choice.proposals import Proposal
from branchnet.stages import StagedNetwork, call
from branchnet.stages.interface import call_form
from branchnet.stitching.output_distances import OutputDistance, OutputKind
from branchnet.utils.progress import progress_bar


@dataclass(frozen=True)
class MeasuredTree:
    """A proposed tree, and what it does without training.

    Attributes:
        tree: the tree.
        by: who proposed it.
        size: in the budget's unit, stitches and heads included.
        predicted: the mean over tasks of the stitching losses at the last change of donor; None where not known.
        losses: for each task the distance of its outputs from its own network's: 0 as that network, 1 as a constant.
    """

    tree: Tree
    by: str
    size: float
    predicted: float | None
    losses: Mapping[str, float]

    @property
    def mean(self) -> float:
        """The mean over tasks of the losses."""
        return sum(self.losses.values()) / len(self.losses)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values.

        Returns:
            the tree by its partitions, and the other attributes.
        """
        return asdict(self) | {
            "tree": [list(map(list, stage)) for stage in self.tree.partitions],
            "losses": dict(self.losses),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> MeasuredTree:
        """Read what `to_dict` gave.

        Args:
            stored: its result.

        Returns:
            an equal object.
        """
        partitions = stored["tree"]
        tasks = [task for cluster in partitions[0] for task in cluster]
        return cls(**{**stored, "tree": Tree(tasks, partitions)})


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
