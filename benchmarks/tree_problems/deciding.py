"""What decides on trees before they are trained: affinities of a problem's networks, and short trainings of pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import branchnet
from branchnet import Affinity, PairMeasurements, StagedNetwork, Tree
from branchnet.training.studies.tree_tables import TreeTable
from tree_problems.problem import TreeProblem

PROBE = 256
EVERY = 10
"""Steps between two look-aheads in a joint training, as TAG's authors have it."""

Staged = Mapping[str, StagedNetwork]
Measure = Callable[[TreeProblem, Staged], Affinity]


def _of_probe(measure: Callable[..., Affinity], **options: Any) -> Measure:
    def measured(problem: TreeProblem, networks: Staged) -> Affinity:
        return measure(networks, problem.train[0][:PROBE], bootstrap=0, **options)

    return measured


def _stitched(problem: TreeProblem, networks: Staged) -> Affinity:
    return branchnet.stitch_affinity(networks, problem.train[0][:PROBE], bootstrap=0)


def _stitched_with_labels(problem: TreeProblem, networks: Staged) -> Affinity:
    labels = {task: label[:PROBE] for task, label in problem.train[1].items()}
    losses = {task: known_only(loss) for task, loss in problem.losses.items()}
    return branchnet.stitch_affinity(networks, problem.train[0][:PROBE], losses=losses, labels=labels, bootstrap=0)


def _jointly(method: str, *, per_stage: bool) -> Measure:
    """Along one joint training of the fully shared network from random weights, as long as a tree's."""

    def measured(problem: TreeProblem, networks: Staged) -> Affinity:
        torch.manual_seed(0)
        fresh = {task: factory() for task, factory in problem.factories.items()}
        staged = branchnet.split_all(fresh, problem.train[0][:2], locations=problem.locations)
        shared = branchnet.build(Tree.shared(problem.tasks, len(problem.locations)), staged, init="donor").train()
        found = branchnet.gradient_affinity(
            shared,
            random_batches(problem),
            {task: known_only(loss) for task, loss in problem.losses.items()},
            method=method,  # type: ignore[arg-type]
            per_stage=per_stage,
            optimizer=torch.optim.AdamW(shared.parameters(), lr=problem.learning_rate),
            every=EVERY,
            bootstrap=0,
        )
        return found if per_stage else at_all_stages(found, problem.locations)

    return measured


def _by_distillation(method: str, *, per_stage: bool) -> Measure:
    """Along one distillation of the fully shared network from stitched donors: labels are not needed."""

    def measured(problem: TreeProblem, networks: Staged) -> Affinity:
        probe = problem.train[0][:PROBE]
        shared = branchnet.build(
            Tree.shared(problem.tasks, len(problem.locations)), networks, init="stitch", probe=probe
        ).train()
        with torch.no_grad():
            wanted = {task: network(problem.train[0]) for task, network in networks.items()}
        spread = {task: float(output.var()) for task, output in wanted.items()}
        batches = [
            (problem.train[0][rows], {task: output[rows] for task, output in wanted.items()})
            for rows in random_rows(problem)
        ]
        found = branchnet.gradient_affinity(
            shared,
            batches,
            {task: scaled_error(spread[task]) for task in problem.tasks},
            method=method,  # type: ignore[arg-type]
            per_stage=per_stage,
            optimizer=torch.optim.AdamW(shared.parameters(), lr=3e-4),
            every=EVERY,
            bootstrap=0,
        )
        return found if per_stage else at_all_stages(found, problem.locations)

    return measured


def scaled_error(variance: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The squared error in units of a variance, and a hundredth, for the donor's own is 0 at first."""

    def loss(output: Tensor, wanted: Tensor) -> Tensor:
        return nn.functional.mse_loss(output, wanted) / variance + 0.01

    return loss


def at_all_stages(affinity: Affinity, locations: Sequence[str]) -> Affinity:
    """One affinity of the whole trunk, repeated for each of its stages."""
    values = np.repeat(affinity.values, len(locations), axis=0)
    return Affinity(affinity.tasks, tuple(locations), values, affinity.measure, directed=affinity.directed)


MEASURES: dict[str, Measure] = {
    "RSA": _of_probe(branchnet.rsa),
    "RSA, centred": _of_probe(branchnet.rsa, center=True),
    "RSA, Euclidean": _of_probe(branchnet.rsa, dissimilarity="euclidean"),
    "CKA": _of_probe(branchnet.cka),
    "Procrustes": _of_probe(branchnet.procrustes),
    "SVCCA": _of_probe(branchnet.svcca),
    "stitching loss": _stitched,
    "stitching loss with labels": _stitched_with_labels,
    "TAG": _jointly("lookahead", per_stage=False),
    "TAG of stages": _jointly("lookahead", per_stage=True),
    "gradient cosine": _jointly("cosine", per_stage=False),
    "gradient cosine of stages": _jointly("cosine", per_stage=True),
    "TAG by distillation": _by_distillation("lookahead", per_stage=False),
    "TAG of stages by distillation": _by_distillation("lookahead", per_stage=True),
    "gradient cosine by distillation": _by_distillation("cosine", per_stage=False),
}


def known_only(loss: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """A loss of the labels that are known, 0 where there is none."""

    def masked(output: Tensor, label: Tensor) -> Tensor:
        if not label.is_floating_point():
            return loss(output, label)
        known = ~label.isnan().reshape(len(label), -1).any(1)
        return loss(output[known], label[known]) if known.any() else output.sum() * 0

    return masked


def random_batches(problem: TreeProblem) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """As many batches as a tree is trained on."""
    x, labels = problem.train
    return [(x[rows], {task: label[rows] for task, label in labels.items()}) for rows in random_rows(problem)]


def random_rows(problem: TreeProblem) -> list[Tensor]:
    """Numbers of samples, a batch for each step of a tree's training."""
    draws = torch.Generator().manual_seed(1)
    return [torch.randint(len(problem.train[0]), (problem.batch_size,), generator=draws) for _ in range(problem.steps)]


def measured_affinity(
    name: str, problem: TreeProblem, networks: Mapping[int, Mapping[str, nn.Module]], file: Path
) -> Affinity:
    """The mean over seeds of an affinity, kept in a file."""
    if file.exists():
        return Affinity.load(file)
    found = []
    for members in networks.values():
        staged = branchnet.split_all(members, problem.train[0][:2], locations=problem.locations)
        found.append(MEASURES[name](problem, staged))
        if name.startswith(("TAG", "gradient")):
            break  # these train a network of their own
    first = found[0]
    values = np.mean([affinity.values for affinity in found], axis=0)
    mean = Affinity(first.tasks, first.locations, values, first.measure, directed=first.directed)
    file.parent.mkdir(parents=True, exist_ok=True)
    mean.save(file)
    return mean


def pair_trees(tasks: tuple[str, ...], depth: int) -> dict[tuple[int, str, str], Tree]:
    """The trees in which two tasks share so many stages and all others are alone."""
    separate = [[task] for task in tasks]
    found = {}
    for one, other in combinations(tasks, 2):
        together = [[one, other], *([task] for task in tasks if task not in (one, other))]
        for shared in range(1, depth + 1):
            found[shared, one, other] = Tree(tasks, [together] * shared + [separate] * (depth - shared))
    return found


def pairs_of(table: TreeTable) -> PairMeasurements:
    """What pairs gain, from trees in which all other tasks are alone: tasks that share nothing train apart."""
    depth, numbers = table.trees[0].depth, {task: k for k, task in enumerate(table.tasks)}
    rows = {tree: k for k, tree in enumerate(table.trees)}
    base = table.values[rows[Tree.separate(table.tasks, depth)]].mean(0)
    signs = np.array([-1.0 if table.lower_is_better[task] else 1.0 for task in table.tasks])
    gain = np.zeros((depth + 1, len(numbers), len(numbers)))
    for (shared, one, other), tree in pair_trees(table.tasks, depth).items():
        change = 100 * signs * (table.values[rows[tree]].mean(0) - base) / np.abs(base)
        gain[shared, numbers[one], numbers[other]] = change[numbers[one]]
        gain[shared, numbers[other], numbers[one]] = change[numbers[other]]
    return PairMeasurements(table.tasks, gain, unit="percent")
