"""From affinities to the tree of a run: proposed by searches, decided by what networks do with stitching layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from branchnet.affinity import Affinity, stitch_affinity
from branchnet.clustering import SearchResult, clustering_cost
from branchnet.clustering.stitching.stitch_losses import STITCH
from branchnet.data.samples import count_samples, read_samples
from branchnet.pipeline.problem import Problem
from branchnet.pipeline.tree_choice.measuring import measure_trees
from branchnet.pipeline.tree_choice.proposals import Limits, Proposal, propose_trees
from branchnet.pipeline.tree_choice.work import FITTED, work_of
from branchnet.pipeline.workspace import Workspace, load_json, save_json
from branchnet.reporting import MeasuredTree
from branchnet.stages import StagedNetwork
from branchnet.stages.interface import call_form

LOSS_OBJECTIVES = ("medoid", STITCH)
"""How trees are searched with stitching losses: for networks that will be trained, and for those that will not.

The latter does not know budgets for some of the tasks."""


@dataclass(frozen=True)
class Choice:
    """The chosen tree, and what it was chosen from.

    Attributes:
        chosen: the tree; its method and `why` say how it was found.
        proposer: who proposed it.
        losses: stitching losses as an affinity; None where RSA alone decides.
        measured: the proposed trees, and what each did before any training; none where RSA alone decides.
    """

    chosen: SearchResult
    proposer: str
    losses: Affinity | None = None
    measured: tuple[MeasuredTree, ...] = ()


def choose_tree(
    problem: Problem,
    staged: Mapping[str, StagedNetwork],
    limits: Limits,
    proposed: SearchResult,
    affinity: Affinity,
    workspace: Workspace,
) -> Choice:
    """Take the tree that does best with stitches of those proposed; that of RSA where nothing else is to be measured.

    Args:
        problem: what is asked.
        staged: the single-task networks.
        limits: sizes, and the budget.
        proposed: the best tree by RSA.
        affinity: that of RSA.
        workspace: where losses and measurements are kept.

    Returns:
        the choice.
    """
    options = problem.options
    if options.measure == "rsa":
        return Choice(proposed, f"RSA ({options.objective})")
    losses = workspace.step(
        "stitch_affinity.npz",
        [problem.identity, list(affinity.locations), affinity.probe_hash, dict(problem.kinds)],
        make=lambda _: stitch_affinity(
            staged, problem.probe, kinds=problem.kinds, batch_size=options.batch_size, bootstrap=0
        ),
        save=lambda result, path: result.save(path),
        load=Affinity.load,
    )
    some = any(one.tasks for one in limits.budget.each)
    objectives = [name for name in LOSS_OBJECTIVES if name != STITCH or not some]
    affinities = {"RSA": (affinity, [options.objective]), "stitching losses": (losses, objectives)}
    probe = read_samples(problem.probe, call_form(next(iter(staged.values()))))
    count = probe.known_count
    work = work_of(staged, count, count_samples(problem.validation))
    proposals = propose_trees(affinities, limits, options.seed, work)
    rows = torch.arange(min(FITTED, count)) * count // min(FITTED, count)
    trees = {str(one.tree): one.tree for one in proposals}
    found = workspace.step(
        "measured_trees.json",
        [
            problem.identity,
            list(affinity.locations),
            sorted(trees),
            options.donor,
            affinity.probe_hash,
            dict(problem.kinds),
            losses.task_weights,
        ],
        make=lambda _: measure_trees(
            trees,
            staged,
            losses,
            probe.take(rows).inputs,
            problem.validation,
            problem.kinds,
            preferred=options.donor,
            batch_size=options.batch_size,
        ),
        save=save_json,
        load=load_json,
    )
    measured = [_measured(one, limits, found[str(one.tree)], losses.task_weights) for one in proposals]
    best = min(measured, key=lambda tree: (tree.mean, tree.size))
    trees_tried = f"the best of {len(measured)} trees" if len(measured) > 1 else "the only tree that fits"
    said = f"stitched, before any training: {trees_tried} loses {best.mean:.3f} of what constant answers lose"
    workspace.console.print(f"[dim]{said}[/dim]", highlight=False, soft_wrap=True)
    chosen = _as_result(best, proposals, proposed, affinity, limits, len(measured))
    return Choice(chosen, best.by, losses, tuple(measured))


def _measured(
    proposal: Proposal, limits: Limits, losses: Mapping[str, float], weights: Mapping[str, float] | None
) -> MeasuredTree:
    """What was measured of a tree, next to what this run's search and budget say of it."""
    ordered = {task: losses[task] for task in proposal.tree.tasks}
    return MeasuredTree(proposal.tree, proposal.by, limits.size(proposal.tree), proposal.predicted, ordered, weights)


def _as_result(
    best: MeasuredTree,
    proposals: tuple[Proposal, ...],
    proposed: SearchResult,
    affinity: Affinity,
    limits: Limits,
    count: int,
) -> SearchResult:
    """The chosen tree as RSA's search sees it, whoever proposed it: its cost, with the bound of that search."""
    result = proposed
    if best.tree != proposed.tree:
        cost = clustering_cost(best.tree, affinity, objective=proposed.objective)
        also = limits.needed(best.tree, proposed.also)
        size = limits.size(best.tree, proposed.unit)
        result = replace(proposed, tree=best.tree, cost=cost, size=size, proven=False, method="measured", also=also)
    found = next((one.found for one in proposals if one.tree == best.tree), None)
    why = (
        f"the best of {count} trees that were measured with stitching layers before any training, proposed by {best.by}"
    )
    return replace(result, why=why, forced=() if found is None else found.forced)
