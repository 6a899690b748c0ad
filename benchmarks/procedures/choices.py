"""What each procedure trains to decide, and which networks it ends with: BMTN, Standley et al., TAG, TreeMTL, and ours.

A choice names networks; none is trained here. What a procedure has trained when it decides is its search: networks that
it ends with and that were trained then already cost nothing more.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from tree_problems.deciding import pair_trees

import branchnet
from branchnet import Affinity, PairMeasurements, Selection, Tree
from branchnet.clustering import expected_losses, higher_order_estimates, task_sets
from procedures.trained_networks import EARLY, Network, Result, Setting, Start, affinity_of, components

BUDGETS = (1.25, 1.5, 2.0, 2.5, 3.0)
"""Inference costs, in trunks of one network; separate networks have four."""
RANDOM_TREES = 4
MEASURED = 2
"""Groups that `refine` trains beyond singles and pairs."""
Runs = Mapping[str, Result]


@dataclass(frozen=True)
class Choice:
    """Networks that a procedure ends with.

    Attributes:
        serving: by task the network that answers it.
        searched: names of the runs that were needed to choose.
        search_share: how much of each of these was needed, where they are cut short.
    """

    serving: Mapping[str, Network]
    searched: frozenset[str] = field(default_factory=frozenset)
    search_share: float = 1.0

    @property
    def networks(self) -> list[Network]:
        """Without repetition."""
        return list(dict.fromkeys(self.serving.values()))


def whole(tasks: Sequence[str], depth: int) -> Network:
    """One network whose tasks share all stages."""
    return Network(Tree.shared(tasks, depth))


class Candidates:
    """The networks of one problem that searches train.

    Args:
        setting: the problem.
    """

    def __init__(self, setting: Setting) -> None:
        self.tasks, self.depth = setting.problem.tasks, len(setting.problem.locations)
        self.sets = [whole(tasks, self.depth) for tasks in task_sets(self.tasks)]
        self.single, self.pairs = self.sets[: len(self.tasks)], [n for n in self.sets if len(n.tree.tasks) == 2]
        self.narrow = [Network(one.tree, narrow=True) for one in self.single]
        self.branched_pairs = {
            key: next(one for one in components(tree) if len(one.tree.tasks) == 2)
            for key, tree in pair_trees(self.tasks, self.depth).items()
        }

    def all(self) -> list[Network]:
        """Every network that some search trains, single-task ones first."""
        return list(dict.fromkeys([*self.sets, *self.narrow, *self.branched_pairs.values()]))


def of_tree(tree: Tree, searched: Iterator[str] | Sequence[str] = (), start: Start = "random") -> Choice:
    """The networks that a tree falls into."""
    parts = components(tree, start)
    return Choice({task: part for part in parts for task in part.tree.tasks}, frozenset(searched))


def names(networks: Sequence[Network]) -> list[str]:
    return [network.name for network in networks]


def separate(setting: Setting, runs: Runs, budget: float) -> Choice:
    """One network for each task, at its own cost."""
    return of_tree(Tree.separate(setting.problem.tasks, len(setting.problem.locations)))


def shared(setting: Setting, runs: Runs, budget: float) -> Choice:
    """One network for all."""
    return of_tree(Tree.shared(setting.problem.tasks, len(setting.problem.locations)))


def bmtn(setting: Setting, runs: Runs, budget: float, start: Start = "random") -> Choice:
    """Branched Multi-Task Networks: RSA of single-task networks, beam search."""
    affinity = affinity_of(setting, runs["rsa"], "RSA")
    tree = _searched(setting, affinity, budget, objective="mean-max", method="beam")
    return of_tree(tree, [*names(Candidates(setting).single), "rsa"], start)


def bmtn_from_donors(setting: Setting, runs: Runs, budget: float) -> Choice:
    """The same tree, from the single-task networks' weights."""
    return bmtn(setting, runs, budget, "donor")


def standley(setting: Setting, runs: Runs, budget: float) -> Choice:
    """All sets of tasks and narrow single-task networks are trained, and the best selection taken."""
    known = Candidates(setting)
    trained = [*known.sets, *known.narrow]
    return _selected(trained, [runs[one.name]["losses"] for one in trained], runs, budget, trained)


def standley_early(setting: Setting, runs: Runs, budget: float) -> Choice:
    """Early stopping approximation: the same by the losses after a fifth of each training."""
    known = Candidates(setting)
    trained = [*known.sets, *known.narrow]
    return _selected(trained, [runs[one.name]["early"] for one in trained], runs, budget, trained, EARLY)


def standley_pairs(setting: Setting, runs: Runs, budget: float) -> Choice:
    """Higher order approximation: single tasks, pairs and narrow networks are trained, larger sets estimated."""
    candidates, losses, trained = _estimated(setting, runs)
    return _selected(candidates, losses, runs, budget, trained, sizes=_sizes(setting, candidates, runs))


def refined(setting: Setting, runs: Runs, budget: float) -> Choice:
    """The same, and then the few larger sets trained that matter most (`branchnet.refine`)."""
    candidates, losses, trained = _estimated(setting, runs)
    found = branchnet.refine(
        losses,
        _sizes(setting, candidates, runs),
        budget,
        lambda m: runs[candidates[m].name]["losses"],
        known=[one in trained for one in candidates],
        measurements=MEASURED,
    )
    searched = [*trained, *(candidates[m] for m in found.measured)]
    return _serving(candidates, found.selection, searched, 1.0)


def tag(setting: Setting, runs: Runs, budget: float) -> Choice:
    """TAG: affinities every tenth step of one joint training, and the best groups by them."""
    tasks, depth = setting.problem.tasks, len(setting.problem.locations)
    matrix = affinity_of(setting, runs["tag"], "look-ahead").values[0]
    found = branchnet.group_by_affinity(matrix, int(budget), tasks=tasks)
    groups = [whole([task for task in tasks if task in group], depth) for group in found.groups]
    return Choice({task: groups[index] for task, index in found.assignment.items()}, frozenset(["tag"]))


def treemtl(setting: Setting, runs: Runs, budget: float) -> Choice:
    """TreeMTL: pairs at every branch point, and of all trees the one that they promise most for."""
    known = Candidates(setting)
    tree = _searched(setting, expected_losses(pairs_of(setting, runs)), budget)
    return of_tree(tree, names([*known.single, *known.branched_pairs.values()]))


def rsa_stitched(setting: Setting, runs: Runs, budget: float) -> Choice:
    """Ours without labels until the end: RSA, `medoid`, exact search, stitched single-task networks."""
    affinity = affinity_of(setting, runs["rsa"], "RSA")
    tree = _searched(setting, affinity, budget, objective="medoid")
    return of_tree(tree, [*names(Candidates(setting).single), "rsa"], "stitch")


def tag_tree(setting: Setting, runs: Runs, budget: float) -> Choice:
    """Ours by one joint training: TAG's affinities, `gain`, exact search for a tree."""
    affinity = affinity_of(setting, runs["tag"], "look-ahead").symmetric()
    return of_tree(_searched(setting, affinity, budget, objective="gain"), ["tag"])


PROCEDURES: dict[str, Callable[[Setting, Runs, float], Choice]] = {
    "shared": shared,
    "separate": separate,
    "BMTN": bmtn,
    "BMTN from single-task weights": bmtn_from_donors,
    "Standley, all sets": standley,
    "Standley, ESA": standley_early,
    "Standley, HOA": standley_pairs,
    "TAG": tag,
    "TreeMTL": treemtl,
    "ours: RSA, stitched": rsa_stitched,
    "ours: TAG, tree": tag_tree,
    "ours: HOA, refined": refined,
}


def random_trees(setting: Setting, budget: float, start: Start = "random") -> list[Choice]:
    """Trees drawn from those that use at least nine tenths of what a tree can use of the budget."""
    donors = [] if start == "random" else names(Candidates(setting).single)
    every = branchnet.enumerate_trees(setting.problem.tasks, len(setting.problem.locations))
    sizes = {tree: setting.size(tree) for tree in every}
    fitting = {tree: size for tree, size in sizes.items() if size <= budget * (1 + 1e-9)}
    largest = max(fitting.values())
    near = [tree for tree, size in fitting.items() if size > 0.9 * largest]
    return [of_tree(tree, donors, start) for tree in random.Random(0).sample(near, min(RANDOM_TREES, len(near)))]


def random_groups(setting: Setting, budget: float) -> list[Choice]:
    """All divisions of the tasks into as many whole networks as fit."""
    depth, every = len(setting.problem.locations), branchnet.enumerate_trees(setting.problem.tasks, 1)
    return [of_tree(Tree.grouped(one.partitions[0], depth)) for one in every if one.widths[0] == int(budget)]


def pairs_of(setting: Setting, runs: Runs) -> PairMeasurements:
    """Changes of metrics on held-out samples, in percent, that two tasks bring each other at every branch point."""
    known = Candidates(setting)
    alone = {one.tree.tasks[0]: runs[one.name]["validation"][one.tree.tasks[0]] for one in known.single}
    numbers = {task: k for k, task in enumerate(known.tasks)}
    gain = np.zeros((known.depth + 1, len(numbers), len(numbers)))
    for (shared_stages, *pair), network in known.branched_pairs.items():
        for task, partner in (pair, pair[::-1]):
            change = (runs[network.name]["validation"][task] - alone[task]) / abs(alone[task])
            sign = 1 if setting.problem.metrics[task].larger_is_better else -1
            gain[shared_stages, numbers[task], numbers[partner]] = 100 * sign * change
    return PairMeasurements(known.tasks, gain, tuple(setting.problem.locations), unit="percent")


def _searched(setting: Setting, affinity: Affinity | branchnet.StageLosses, budget: float, **options: str) -> Tree:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*heads.*")
        return branchnet.search(affinity, setting.stage_costs, budget * (1 + 1e-9), **options).tree  # type: ignore[arg-type]


def _estimated(setting: Setting, runs: Runs) -> tuple[list[Network], list[dict[str, float]], list[Network]]:
    """All sets and narrow networks with their losses, those of larger sets from pairs; and which were trained."""
    known = Candidates(setting)
    trained = [*known.single, *known.pairs]
    losses = higher_order_estimates(
        [runs[one.name]["losses"] for one in trained], [one.tree.tasks for one in known.sets]
    )
    narrow = [runs[one.name]["losses"] for one in known.narrow]
    return [*known.sets, *known.narrow], [*losses, *narrow], [*trained, *known.narrow]


def _sizes(setting: Setting, candidates: Sequence[Network], runs: Runs) -> list[float]:
    return [runs[one.name]["size"] if one.narrow else setting.size(one.tree) for one in candidates]


def _selected(
    candidates: Sequence[Network],
    losses: Sequence[Mapping[str, float]],
    runs: Runs,
    budget: float,
    trained: Sequence[Network],
    share: float = 1.0,
    sizes: Sequence[float] | None = None,
) -> Choice:
    costs = [runs[one.name]["size"] for one in candidates] if sizes is None else sizes
    return _serving(candidates, branchnet.select_networks(losses, costs, budget), trained, share)


def _serving(candidates: Sequence[Network], found: Selection, trained: Sequence[Network], share: float) -> Choice:
    serving = {task: candidates[m] for task, m in found.assignment.items()}
    return Choice(serving, frozenset(names(trained)), share)
