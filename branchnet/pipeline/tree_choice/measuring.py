"""What proposed trees do without any training: each is built with stitches and measured on other inputs."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch

from branchnet.affinity import Affinity
from branchnet.affinity.probes import read_probe
from branchnet.builder import BranchedNetwork, build, choose_donors
from branchnet.builder.stitches.probe_features import OwnFeatures
from branchnet.builder.stitches.top_down_fit import stitch_donors
from branchnet.clustering import Tree
from branchnet.data.samples import Source, read_samples
from branchnet.pipeline.tree_choice.held_out import HeldOut
from branchnet.stages import StagedNetwork
from branchnet.stages.interface import call_form
from branchnet.stitching.output_distances import OutputDistance, OutputKind
from branchnet.stitching.probe_division import divide_probe
from branchnet.utils.progress import progress_bar


def measure_trees(
    trees: Mapping[str, Tree],
    staged: Mapping[str, StagedNetwork],
    affinity: Affinity,
    probe: Any,
    inputs: Source,
    kinds: Mapping[str, OutputKind],
    *,
    preferred: str | None = None,
    batch_size: int = 32,
) -> dict[str, dict[str, float]]:
    """Build every tree with stitches and measure it.

    Args:
        trees: the trees, by any names.
        staged: the single-task networks.
        affinity: chooses the donors.
        probe: inputs to fit stitches on.
        inputs: other inputs, to measure on.
        kinds: how the outputs of some tasks are compared.
        preferred: a task to prefer as donor.
        batch_size: inputs run at once.

    Returns:
        for each tree the distance of each task's outputs from its own network's, see `distances`.
    """
    measured = {}
    form = call_form(next(iter(staged.values())))
    read = read_probe(probe, batch_size, form)
    held_out = HeldOut(read_samples(inputs, form), staged, batch_size)
    own = OwnFeatures(staged, read, divide_probe(read.inputs, read.inputs), _device(staged))
    with progress_bar("measure trees", len(trees)) as advance:
        for name, tree in trees.items():
            donors = choose_donors(tree, affinity, preferred=preferred)
            branched = build(tree, staged, init="donor", donors=donors).eval()
            stitch_donors(branched, staged, read, kinds, corrected=False, own=own)
            measured[name] = distances(branched, held_out, kinds)
            advance(f"{fmean(measured[name].values()):.3f}")
    return measured


def _device(staged: Mapping[str, StagedNetwork]) -> torch.device:
    return next((p.device for network in staged.values() for p in network.parameters()), torch.device("cpu"))


def distances(branched: BranchedNetwork, held_out: HeldOut, kinds: Mapping[str, OutputKind]) -> dict[str, float]:
    """How far each task's outputs are from its own network's.

    Args:
        branched: the network, in eval mode.
        held_out: inputs, with the outputs of the single-task networks.
        kinds: how the outputs of some tasks are compared.

    Returns:
        for each task 0 for equal outputs, 1 for those of a constant predictor.
    """
    judged = {task: OutputDistance(kinds.get(task, "regression")) for task in branched.tasks}
    device = next(branched.parameters()).device
    with torch.no_grad():
        for inputs, own in held_out.batches(device):
            found = branched(inputs)
            for task, distance in judged.items():
                distance.add(found[task], own[task])
    return {task: distance.value() for task, distance in judged.items()}
