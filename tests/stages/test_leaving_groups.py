"""Which networks leave the trunk where: against all chains of subsets, and split networks of several depths."""

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from branchnet.errors import SplitError
from branchnet.stages import split_all
from branchnet.stages.graph.common_subgraph import align
from branchnet.stages.graph.early_leaving import leaving_groups
from branchnet.stages.tracing.trace import trace_all
from tests.stages.checks import assert_evaluates_alike, assert_same_keys, assert_trains_alike

KINDS = {"r": nn.ReLU, "t": nn.Tanh, "s": nn.Sigmoid}
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def chain(word: str, outputs: int) -> nn.Module:
    """A linear layer with an activation for each letter, and a head."""
    layers = [layer for letter in word for layer in (nn.Linear(4, 4), KINDS[letter]())]
    return nn.Sequential(*layers, nn.Linear(4, outputs)).eval()


def saved(groups: list[tuple[int, ...]], words: list[str]) -> int:
    """Parameters saved, 20 a layer: a group shares the layers of its longest common prefix, and what follows them."""
    total = known = 0
    for group in groups:
        length = _common([words[k] for k in group])
        total += (length - known) * (len(group) - 1)
        known = length
    return total


def _common(words: list[str]) -> int:
    """Layers of the longest common prefix; the layer after it is the same, too, if no network ends there."""
    length = 0
    while len({word[length : length + 1] for word in words}) == 1 and length < len(words[0]):
        length += 1
    return length + all(len(word) > length for word in words)


def chains(members: tuple[int, ...]) -> list[list[tuple[int, ...]]]:
    smaller = [part for size in range(2, len(members)) for part in combinations(members, size)]
    return [[members], *([members, *rest] for part in smaller for rest in chains(part))]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("rt", min_size=1, max_size=3), min_size=3, max_size=4))
def test_no_chain_of_groups_saves_more(words: list[str]) -> None:
    networks = {str(k): chain(word, k + 5) for k, word in enumerate(words)}
    flows = align([network.evaluation for network in trace_all(networks, X, {})]).flows
    found = leaving_groups(flows)
    everyone = tuple(range(len(words)))
    assert found[0] == everyone and all(set(b) < set(a) for a, b in pairwise(found))
    assert saved(found, words) == max(saved(each, words) for each in chains(everyone))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0)])
def test_tasks_leave_one_after_another(order: tuple[int, ...]) -> None:
    words = ["rr", "rrtt", "rrttss", "rrttsss"]
    networks = {words[k]: chain(words[k], k + 5) for k in order}
    staged = split_all(networks, X, locations=["1", "3", "5", "7", "9"], depth="auto")
    assert {task: network.depth for task, network in staged.items()} == {"rr": 2, "rrtt": 4, "rrttss": 5, "rrttsss": 5}
    for task, network in staged.items():
        assert_same_keys(networks[task], network)
        assert_evaluates_alike(networks[task], network, X)
        assert_trains_alike(networks[task], network, X)
        assert len(network.cuts) == len(network.locations) == len(network.own_locations) == 5
    chosen = split_all(networks, X, depth="auto")
    depths = [chosen[word].depth for word in words]
    assert depths == sorted(depths) and depths[0] < depths[1] < depths[2] == depths[3]


def test_two_networks_have_nothing_to_leave_to() -> None:
    networks = {"short": chain("r", 5), "long": chain("rr", 6)}
    assert {n.depth for n in split_all(networks, X, depth="auto").values()} == {1}


def test_all_must_have_something_in_common() -> None:
    networks = {
        "a": chain("rr", 5),
        "b": chain("rr", 6),
        "other": nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)),
    }
    with pytest.raises(SplitError, match="too little in common"):
        split_all({task: network.eval() for task, network in networks.items()}, X, depth="auto")
