"""The steps of a run: compare the networks and find the trees, build and train them; `measuring_steps` has the rest.

Every step that takes long is kept in the workspace, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from branchnet.affinity import Affinity, rsa
from branchnet.builder import BranchedNetwork, build, choose_donors
from branchnet.builder.weights.donors import Donors
from branchnet.clustering import (
    SearchResult,
    Tree,
    pareto_front,
    random_tree,
    tree_size,
)
from branchnet.clustering.budgets.tree_sizes import Costs, HeadCosts
from branchnet.clustering.stitching.stitch_sizes import StitchSizes
from branchnet.data.samples import count_samples
from branchnet.deploy import load_weights, save_weights
from branchnet.errors import TrainingError
from branchnet.inference import compiler_problem, latency_table
from branchnet.pipeline.distillation_steps import DistillationInputs, distill_in_two_steps, teachers_for
from branchnet.pipeline.labelled_run.labelled_steps import train_on_labels
from branchnet.pipeline.problem import Problem
from branchnet.pipeline.search_inputs import read_latency
from branchnet.pipeline.tree_choice.choosing import Choice, choose_tree
from branchnet.pipeline.tree_choice.proposals import Limits, drawn_trees
from branchnet.pipeline.workspace import Workspace, save_json
from branchnet.reporting.plots.history_plot import write_histories
from branchnet.stages import StagedNetwork, call, split_all
from branchnet.stages.staged import deepest
from branchnet.stages.tracing.trace_check import at_least_two
from branchnet.stitching import stitch_costs
from branchnet.training import Teachers
from branchnet.training.matching.output_forms import check_forms
from branchnet.utils.interrupt import deferred_interrupt
from branchnet.utils.modes import evaluation_mode

RANDOM_TREES = 200
COUNTED = ("params", "flops")
CHOSEN = "branched"
"""What the network of the chosen tree is called."""


@dataclass(frozen=True)
class Trees:
    """What the search found.

    Attributes:
        staged: the single-task networks, split.
        affinity: how well each pair of tasks could share each stage.
        front: the Pareto front over parameters.
        chosen: the best tree within the budget.
        compared: the trees that are built: the chosen one first.
        limits: sizes of stages, stitches and heads in the budget's unit, and the budget.
        proposed: the best tree by the affinity alone.
        choice: how the chosen tree was chosen among those proposed.
    """

    staged: Mapping[str, StagedNetwork]
    affinity: Affinity
    front: list[SearchResult]
    chosen: SearchResult
    compared: Mapping[str, Tree]
    limits: Limits
    proposed: SearchResult
    choice: Choice

    @property
    def first(self) -> StagedNetwork:
        """The first network that passes all stages; they stand for those of all."""
        return deepest(self.staged)

    def size(self, tree: Tree, unit: str) -> float:
        """Parameters or multiply-adds of `tree`, stitches and heads included."""
        heads = {task: network.head_cost for task, network in self.staged.items()}
        stitches = stitch_costs(self.first)
        return tree_size(tree, self.first.costs, head_costs=heads, unit=unit, stitch_sizes=stitches)


def find_trees(problem: Problem, workspace: Workspace) -> Trees:
    """Split the networks, compare them on the probe, and search.

    Args:
        problem: what is asked.
        workspace: where the affinities are kept.

    Returns:
        The trees, and what they were found from.

    Raises:
        SplitError: networks without a common structure.
        AffinityError: a probe that nothing can be learnt from.
        BudgetError: a budget below the smallest tree.
        TrainingError: outputs whose forms differ between training and evaluation mode, which cannot be distilled.
    """
    options = problem.options
    staged = split_all(problem.networks, problem.example, locations=options.locations, depth=options.depth)
    if difference := form_difference(problem, staged):
        raise TrainingError(difference)
    first = deepest(staged)
    limits = _limits(problem, staged, workspace)
    check_budget(problem, first.locations, limits)
    left = [dict(limits.depths)] if limits.depths else []
    settings = [problem.identity, list(first.locations), count_samples(problem.probe), *left]
    affinity = workspace.step(
        "affinity.npz",
        settings,
        make=lambda _: rsa(staged, problem.probe, batch_size=options.batch_size),
        save=lambda result, path: result.save(path),
        load=Affinity.load,
    )
    with deferred_interrupt() as interrupted:  # a search that is interrupted returns its best tree so far
        proposed = limits.search(affinity, options.objective, options.seed)
        params = {task: network.head_cost for task, network in staged.items()}
        counted: dict[str, Any] = {"head_costs": params, "stitch_sizes": stitch_costs(first)}
        front = pareto_front(affinity, first.costs, objective=options.objective, **counted)
        if interrupted():
            raise KeyboardInterrupt
    choice = choose_tree(problem, staged, limits, proposed, affinity, workspace)
    chosen = choice.chosen
    compared = {CHOSEN: chosen.tree}
    if "shared" in options.compared_with:
        compared["shared"] = Tree.shared(chosen.tree.tasks, chosen.tree.depth, chosen.tree.depths)
    if "random" in options.compared_with:
        compared |= _random_trees_of_same_size(chosen, limits, problem)
    return Trees(staged, affinity, front, chosen, compared, limits, proposed, choice)


def form_difference(problem: Problem, staged: Mapping[str, StagedNetwork]) -> str:
    """Why outputs cannot be compared with those of the single-task networks in training; empty where they can."""
    if not problem.options.steps or problem.labelled is not None:
        return ""
    example = at_least_two(problem.example)
    for task, network in staged.items():
        with torch.no_grad(), evaluation_mode(problem.networks[task]):
            wanted = {task: call(problem.networks[task], example)}
        try:
            check_forms(network, partial(_called, task, example), wanted, modes=(True, False))
        except TrainingError as error:
            return str(error)
    return ""


def _called(task: str, example: Any, network: Any) -> dict[str, Any]:
    return {task: call(network, example)}


def _limits(problem: Problem, staged: Mapping[str, StagedNetwork], workspace: Workspace) -> Limits:
    """What stages, stitches and heads cost in the budget's unit; milliseconds are measured here and now."""
    if "latency" not in {budget.unit for budget in problem.budget.each}:
        return limits_of(problem, staged)
    first = deepest(staged)
    compiled = problem.compiled and not compiler_problem(problem.device.type)
    table = workspace.step(
        "latency_table.json",
        [problem.identity, list(first.locations), compiled, *problem.hardware],
        make=lambda _: latency_table(staged, problem.example, compiled=compiled, progress=True),
        save=lambda made, path: save_json(made.to_dict(), path),
        load=read_latency,
    )
    workspace.console.print(str(table), markup=False, highlight=False)
    heads = {task: network.head_cost for task, network in staged.items()}
    costs: dict[str, Costs] = {"latency": table.costs, **dict.fromkeys(COUNTED, staged)}
    head_costs: dict[str, HeadCosts] = {"latency": table.head_costs, **dict.fromkeys(COUNTED, heads)}
    stitches: StitchSizes | None = table.stitch_sizes and {"latency": table.stitch_sizes, **stitch_costs(first)}
    return Limits(costs, head_costs, problem.budget, stitches, table.depths)


def limits_of(problem: Problem, staged: Mapping[str, StagedNetwork]) -> Limits:
    """What decides how large a tree is, for a budget of parameters or multiply-adds.

    Args:
        problem: what is asked.
        staged: the single-task networks.

    Returns:
        The limits.
    """
    first = deepest(staged)
    heads = {task: network.head_cost for task, network in staged.items()}
    return Limits(staged, heads, problem.budget, stitch_costs(first), first.costs.depths)


def check_budget(problem: Problem, locations: Sequence[str], limits: Limits) -> None:
    """Raise BudgetError where not even the smallest tree fits, before anything takes long.

    Args:
        problem: what is asked.
        locations: where the networks can be cut.
        limits: sizes, and the budget.
    """
    unknown = replace(nothing_known(tuple(problem.networks), locations), depths=limits.depths)
    limits.search(unknown, problem.options.objective, seed=0)


def nothing_known(tasks: Sequence[str], locations: Sequence[str]) -> Affinity:
    """An affinity that tells no tree from another."""
    return Affinity(tasks, locations, np.ones((len(locations), len(tasks), len(tasks))))


def _random_trees_of_same_size(chosen: SearchResult, limits: Limits, problem: Problem) -> dict[str, Tree]:
    """Of trees drawn uniformly under the budget those nearest to the chosen one's size: neither that nor the shared."""
    generator = random.Random(problem.options.seed)
    depths = chosen.tree.depths
    draw = partial(random_tree, chosen.tree.tasks, chosen.tree.depth, seed=generator, costs=limits.costs, depths=depths)
    within = partial(draw, budget=limits.budget, head_costs=limits.heads)
    drawn = dict.fromkeys(drawn_trees(within, RANDOM_TREES))
    shared = Tree.shared(chosen.tree.tasks, chosen.tree.depth, depths)
    others = [tree for tree in drawn if tree not in (chosen.tree, shared) and limits.fits(tree, chosen)]
    others.sort(key=lambda tree: abs(limits.size(tree) - chosen.size))
    nearest = others[: problem.options.random_trees]
    return {f"random {number}": tree for number, tree in enumerate(nearest, start=1)}


def build_stitched(problem: Problem, trees: Trees, tree: Tree) -> BranchedNetwork:
    """The network of a tree before any training: copies of its donors, with stitches fitted on the probe.

    Args:
        problem: what is asked.
        trees: what was found.
        tree: one of the compared trees.

    Returns:
        The network, in eval mode.
    """
    donors = donors_of(problem, trees, tree)
    return build(tree, trees.staged, donors=donors, init="stitch", probe=problem.probe, kinds=problem.kinds).eval()


def donors_of(problem: Problem, trees: Trees, tree: Tree) -> Donors:
    """The donor of every node of a tree.

    Args:
        problem: what is asked.
        trees: what was found.
        tree: the tree.

    Returns:
        The donors.
    """
    return choose_donors(tree, trees.choice.losses or trees.affinity, preferred=problem.options.donor)


def train_networks(problem: Problem, trees: Trees, workspace: Workspace) -> dict[str, BranchedNetwork]:
    """Build each compared tree with stitches and distil it, all with the same number of steps.

    Args:
        problem: what is asked.
        trees: what was found.
        workspace: where the trained weights are kept, the state of a training that is interrupted, and the histories of
            the chosen network.

    Returns:
        The networks by name, in eval mode, the chosen one first.
    """
    options = problem.options
    teachers: list[Teachers] = []

    def make(tree: Tree, name: str, unfinished: Path | None) -> BranchedNetwork:
        branched = build_stitched(problem, trees, tree)
        if (options.steps or problem.labelled is not None) and not teachers:
            teachers.append(teachers_for(problem.networks, trees.staged, problem.train, options, problem.kinds))
        histories = {}
        if problem.labelled is not None:
            histories = train_on_labels(branched, teachers[0], problem, unfinished, name)
        elif options.steps:
            given = DistillationInputs(teachers[0], problem.train, problem.validation, options)
            histories = distill_in_two_steps(branched, given, checkpoint=unfinished, name=name)
        for phase, history in histories.items():
            workspace.console.print(f"[dim]{name}, {phase}: {history.in_words()}[/dim]", highlight=False)
        if name == CHOSEN and workspace.directory is not None:
            write_histories(histories, workspace.directory)
        return branched

    def load(tree: Tree, path: Path) -> BranchedNetwork:
        branched = build_stitched(problem, trees, tree)
        load_weights(branched, path)
        return branched

    settings = [
        list(trees.first.locations),
        dict(problem.kinds),
        count_samples(problem.validation),
        options.measure,
        options.steps,
        options.stitch_steps,
        options.batch_size,
        options.learning_rate,
        options.seed,
        options.donor,
        *([options.distillation] if options.distillation else []),
        *([dict(problem.labelled.settings)] if problem.labelled is not None else []),
    ]
    return {
        name: workspace.step(
            f"{name.replace(' ', '-')}.safetensors",
            [problem.identity, *settings, str(tree), donors_of(problem, trees, tree), trees.affinity.probe_hash],
            make=partial(make, tree, name),
            save=save_weights,
            load=partial(load, tree),
        )
        for name, tree in trees.compared.items()
    }
