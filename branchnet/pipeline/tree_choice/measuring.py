"""What proposed trees do without any training: each is measured with stitches, on other inputs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from branchnet.affinity import Affinity
from branchnet.affinity.features.isolation import untouched
from branchnet.affinity.features.memory_order import in_fast_order
from branchnet.affinity.probes import read_probe
from branchnet.builder import choose_donors
from branchnet.builder.stitches.probe_features import OwnFeatures
from branchnet.builder.weights.donors import Donors
from branchnet.clustering import Tree
from branchnet.data.samples import Source
from branchnet.pipeline.tree_choice.donor_paths import DonorPath, PathLosses
from branchnet.stages import StagedNetwork
from branchnet.stages.interface import call_form
from branchnet.stitching.output_distances import OutputKind
from branchnet.stitching.probe_division import ProbeDivision, divide_probe, warn_of_noise
from branchnet.utils.freed_memory import keeping_freed_memory
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
    """Measure every tree with stitches, as if it were built; what trees have in common runs once.

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
        for each tree the distance of each task's outputs from its own network's: 0 for equal outputs, 1 for those
        of a constant predictor.
    """
    form = call_form(next(iter(staged.values())))
    fitted = in_fast_order(read_probe(probe, batch_size, form), staged.values())
    held_out = replace(read_probe(inputs, batch_size, form, fewest=1), channels_last=fitted.channels_last)
    warn_of_noise(fitted.example)
    device = next((p.device for network in staged.values() for p in network.parameters()), torch.device("cpu"))
    own = OwnFeatures(staged, fitted, device, divide_probe(fitted.inputs, fitted.inputs))
    judged = ProbeDivision((), tuple(range(held_out.inputs)))
    losses = PathLosses(own, OwnFeatures(staged, held_out, device, judged), kinds)
    measured = {}
    with keeping_freed_memory(), ExitStack() as inside, progress_bar("measure trees", len(trees)) as advance:
        for network in {id(network): network for network in staged.values()}.values():
            inside.enter_context(untouched(network))
        for name, tree in trees.items():
            donors = choose_donors(tree, affinity, preferred=preferred)
            measured[name] = {task: losses.loss(_path(tree, donors, task)) for task in tree.tasks}
            advance(f"{fmean(measured[name].values()):.3f}")
    return measured


def _path(tree: Tree, donors: Donors, task: str) -> DonorPath:
    """The donors of a task's nodes from input to output, and of its head."""
    return (*(row[tree.cluster_of(task, stage)] for stage, row in enumerate(donors)), task)
