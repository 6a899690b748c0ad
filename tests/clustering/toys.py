"""Random affinities, hypothesis strategies and the published numbers that several clustering tests use."""

from __future__ import annotations

import csv
import json
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from branchnet.affinity.tensor import Affinity
from branchnet.clustering import Tree, enumerate_trees
from branchnet.clustering.deadline import Deadline

FACTS = Path(__file__).parents[1] / "facts"


class Counting(Deadline):
    """Adds up the steps that it is told of."""

    announced = counted = 0

    def begin(self, what: str, total: int) -> None:
        self.announced = total

    def step(self, steps: int = 1) -> None:
        self.counted += steps


def facts_json(name: str) -> Any:
    return json.loads((FACTS / name).read_text())


def facts_rows(name: str) -> list[dict[str, str]]:
    with (FACTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def names(n: int) -> list[str]:
    return [f"t{i}" for i in range(n)]


def as_affinity(values: np.ndarray) -> Affinity:
    depth, n = values.shape[:2]
    return Affinity(names(n), [f"stage{d}" for d in range(depth)], values)


def random_affinity(n: int, depth: int, seed: int) -> Affinity:
    """Independent uniform affinities."""
    values = np.random.default_rng(seed).uniform(-1, 1, (depth, n, n))
    return _closed(values)


def rsa_like_affinity(n: int, depth: int, seed: int, drift: float = 0.93, noise: float = 0.03) -> Affinity:
    """Distances between grouped task vectors that drift from stage to stage, as in published RSA tensors."""
    generator = np.random.default_rng(seed)
    groups = max(2, round(n / 6))
    vectors = generator.normal(size=(groups, 8))[generator.integers(groups, size=n)] + generator.normal(size=(n, 8))
    values = []
    for stage in range(depth):
        if stage:
            fresh = generator.normal(size=(n, 8)) * vectors.std()
            vectors = drift * vectors + np.sqrt(1 - drift**2) * fresh
        distance = np.sqrt(((vectors[:, None] - vectors[None]) ** 2).sum(-1))
        distance *= 1 + noise * generator.normal(size=(n, n))
        values.append(1 - (0.04 + 0.06 * stage / max(depth - 1, 1)) * distance / distance.mean())
    return _closed(np.array(values))


def _closed(values: np.ndarray) -> Affinity:
    values = (values + values.transpose(0, 2, 1)) / 2
    diagonal = np.arange(values.shape[1])
    values[:, diagonal, diagonal] = 1.0
    return as_affinity(values)


@st.composite
def affinities(draw: st.DrawFn, max_tasks: int = 5, max_depth: int = 3) -> Affinity:
    """Both kinds of tensors, and ones with few distinct values, where many trees tie."""
    n, depth = draw(st.integers(2, max_tasks)), draw(st.integers(1, max_depth))
    seed = draw(st.integers(0, 2**32 - 1))
    kind = draw(st.sampled_from(["random", "rsa", "coarse"]))
    if kind == "random":
        return random_affinity(n, depth, seed)
    if kind == "rsa":
        return rsa_like_affinity(n, depth, seed)
    return as_affinity(np.round(random_affinity(n, depth, seed).values * 2) / 2)


@cache
def all_trees(n: int, depth: int) -> list[Tree]:
    return list(enumerate_trees(names(n), depth))


@cache
def _tree_table(n: int, depth: int) -> tuple[list[list[list[int]]], np.ndarray, np.ndarray]:
    """Partitions, and for every tree the number of each stage's partition and the widths, (T, D)."""
    trees = all_trees(n, depth)
    numbers: dict[Any, int] = {}
    rows = [[numbers.setdefault(stage, len(numbers)) for stage in tree.partitions] for tree in trees]
    partitions = [[[int(task[1:]) for task in cluster] for cluster in stage] for stage in numbers]
    return partitions, np.array(rows), np.array([tree.widths for tree in trees])


def brute_costs(affinity: Affinity, name: str) -> np.ndarray:
    """Cost of every tree, in the order of `all_trees`, from the slow definitions."""
    depth, n = affinity.values.shape[:2]
    partitions, rows, _ = _tree_table(n, depth)
    upper = np.triu_indices(n, 1)
    centred = affinity.values[:, upper[0], upper[1]].mean() - affinity.values
    loss = 1 - affinity.values
    table = np.array([[slow_stage_cost(name, loss[d], centred[d], p) for p in partitions] for d in range(depth)])
    return table[np.arange(depth), rows].sum(axis=1)


def brute_sizes(n: int, costs: list[float]) -> np.ndarray:
    """Size of every tree, in the order of `all_trees`."""
    return _tree_table(n, len(costs))[2] @ np.array(costs)


def slow_stage_cost(name: str, loss: np.ndarray, centred: np.ndarray, partition: list[list[int]]) -> float:
    n = sum(map(len, partition))
    pairs = [[loss[i, j] for i, j in combinations(c, 2)] for c in partition]
    if name == "mean-max":
        return sum(max(p, default=0.0) for p in pairs) / len(partition)
    if name == "diameter-sum":
        return sum(max(p, default=0.0) for p in pairs)
    if name == "mean-pair":
        return sum(len(c) * sum(p) / len(p) for c, p in zip(partition, pairs, strict=True) if p) / n
    if name == "sum-pair":
        return sum(map(sum, pairs))
    if name == "medoid":
        return sum(min(sum(loss[i, j] for j in c if j != i) for i in c) for c in partition)
    return sum(centred[i, j] for c in partition for i, j in combinations(c, 2))
