"""What losses of classifiers count: shares of what their outputs say, in nats, as scipy computes it."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from torch import nn

import branchnet
from branchnet import Affinity, Tree
from branchnet.builder import choose_donors
from branchnet.errors import AffinityError
from branchnet.stitching import OutputDistance

X = torch.randn(90, 6, generator=torch.Generator().manual_seed(0))


def network(seed: int, outputs: int, scale: float) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, outputs))
    with torch.no_grad():
        made[4].weight.mul_(scale)  # type: ignore[operator,union-attr]
    return made.eval()


NETWORKS = {"many": network(0, 12, 20.0), "few": network(1, 3, 0.5), "depth": network(2, 1, 1.0)}
KINDS: dict[str, Any] = {"many": "classification", "few": "classification"}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 9), scale=st.floats(0.01, 5))
def test_what_a_classifier_says_is_the_mutual_information(seed: int, classes: int, scale: float) -> None:
    logits = scale * torch.randn(30, classes, generator=torch.Generator().manual_seed(seed))
    distance = OutputDistance("classification")
    distance.add(logits[:11], logits[:11])
    distance.add(logits[11:], logits[11:])
    shares = logits.double().softmax(1).numpy()
    expected = entropy(shares.mean(0)) - entropy(shares, axis=1).mean()
    assert distance.constant() == pytest.approx(expected, rel=1e-6, abs=1e-9)
    plain = OutputDistance()
    plain.add(logits, logits)
    assert plain.constant() == pytest.approx(float(logits.double().var(0, correction=0).sum()), rel=1e-6)


def test_weights_are_shares_of_it_and_are_kept(tmp_path: Path) -> None:
    options: dict[str, Any] = {"locations": ["1", "3"], "kinds": KINDS, "cache": tmp_path / "cache", "bootstrap": 3}
    affinity = branchnet.stitch_affinity(NETWORKS, X, **options)
    weights = affinity.task_weights
    assert weights is not None and weights["depth"] == 1.0
    assert weights["many"] + weights["few"] == pytest.approx(2)
    assert weights["many"] > 3 * weights["few"]
    assert branchnet.stitch_affinity(NETWORKS, X, **options).task_weights == weights  # from the cache
    affinity.save(tmp_path / "affinity.npz")
    assert Affinity.load(tmp_path / "affinity.npz").task_weights == weights
    assert branchnet.stitch_affinity(NETWORKS, X, locations=["1", "3"], bootstrap=0).task_weights is None


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_donors_and_objectives_take_the_weights(seed: int) -> None:
    """Brute force over the donors of a fully shared tree: one donor for all stages."""
    drawn = np.random.default_rng(seed)
    tasks = ("a", "b", "c")
    values = 1 - drawn.uniform(0, 1.5, (2, 3, 3))
    values[:, range(3), range(3)] = 1
    weights = dict(zip(tasks, drawn.uniform(0, 3, 3).tolist(), strict=True))
    affinity = Affinity(tasks, ("x", "y"), values, "stitch", directed=True, task_weights=weights)
    lost = {a: sum(weights[t] * (1 - values[-1, i, j]) for j, t in enumerate(tasks)) for i, a in enumerate(tasks)}
    tree = Tree.shared(tasks, 2)
    assert choose_donors(tree, affinity) == (((best := min(lost, key=lambda a: lost[a])),),) * 2
    assert branchnet.clustering_cost(tree, affinity, objective="stitch") == pytest.approx(lost[best])
    plain = Affinity(tasks, ("x", "y"), values, "stitch", directed=True)
    for objective, one in product(("stitch", "medoid"), (Tree.shared(tasks, 2), Tree.separate(tasks, 2))):
        given = branchnet.clustering_cost(one, plain, objective=objective, task_weights=weights)
        assert branchnet.clustering_cost(one, affinity, objective=objective) == pytest.approx(given)


@pytest.mark.parametrize("weights", [{"a": 1.0}, {"a": 1.0, "b": -1.0}, {"a": 1.0, "b": float("nan")}])
def test_weights_that_are_none_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(AffinityError, match="task_weights is"):
        Affinity(("a", "b"), ("x",), np.ones((1, 2, 2)), task_weights=weights)
