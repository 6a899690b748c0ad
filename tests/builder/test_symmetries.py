"""Permutations of units: the spaces of networks by hand, functions kept in any order, mergers in closed form."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import branchnet
from branchnet import StagedNetwork, Tree
from branchnet.builder.network.module_structure import tensors_of
from branchnet.builder.weights.normalisation import estimate_batchnorm
from branchnet.builder.weights.symmetries import Symmetries, find_symmetries
from branchnet.builder.weights.unit_spaces import permuted
from branchnet.errors import BuildError
from tests.builder.toys import images, split_networks
from tests.stages.checks import assert_untouched, everything


class Residual(nn.Module):
    """A stem, a block that adds to the stem's channels, a depthwise and a squeezing block, a flattened head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 5, 3, padding=1)
        self.back = nn.Conv2d(5, 6, 3, padding=1, bias=False)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.squeeze, self.excite = nn.Linear(6, 2), nn.Linear(2, 6)
        self.side = nn.Conv2d(6, 4, 1)
        self.out = nn.Linear(10 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.back(F.relu(self.inner(x)))
        x = self.depthwise(x)
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))[:, :, None, None]
        x = torch.cat([x, self.side(x)], 1)
        return self.out(F.adaptive_avg_pool2d(x, 2).flatten(1))  # type: ignore[no-any-return]


def made(seed: int, network: type[nn.Module] = Residual) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = network()
        net.train()(torch.rand(8, 3, 8, 8))
        return net.eval()


def shuffled(network: StagedNetwork, found: Symmetries, seed: int, task: str = "a") -> StagedNetwork:
    """A copy whose units are in another order, without a change of its function."""
    generator = torch.Generator().manual_seed(seed)
    orders = {space: torch.randperm(size, generator=generator) for space, size in found.sizes.items()}
    moved = copy.deepcopy(network)
    pieces: list[tuple[int | str, nn.Module]] = [*enumerate(moved.stages), (task, moved.head)]
    with torch.no_grad():
        for key, piece in pieces:
            for name, tensor in tensors_of(piece).items():
                tensor.copy_(permuted(tensor, found.tensors.get((key, name), {}), orders))
    return moved


X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))
CUTS = ["norm", "back", "side"]


def test_the_spaces_of_a_residual_network_by_hand() -> None:
    found = find_symmetries({"a": branchnet.split(made(0), X, locations=CUTS)}, X)
    assert Counter(found.sizes.values()) == Counter([6, 5, 2, 4])
    stream = next(space for space, size in found.sizes.items() if size == 6)
    side = next(space for space, size in found.sizes.items() if size == 4)
    carried = {
        name: [axis for axis, parts in axes.items() if any(part.space == stream for part in parts)]
        for (_, name), axes in found.tensors.items()
    }
    assert {name: axes for name, axes in carried.items() if axes} == {
        "stem.weight": [0], "stem.bias": [0], "norm.weight": [0], "norm.bias": [0], "norm.running_mean": [0],
        "norm.running_var": [0], "inner.weight": [1], "back.weight": [0], "depthwise.weight": [0],
        "depthwise.bias": [0], "squeeze.weight": [1], "excite.weight": [0], "excite.bias": [0], "side.weight": [1],
        "out.weight": [1],
    }  # fmt: skip
    first, second = found.tensors["a", "out.weight"][1]
    assert (first.space, second.space) == (stream, side)
    assert first.index.T.flatten().tolist() == list(range(24))  # four places for each channel, channel by channel
    assert second.index.T.flatten().tolist() == list(range(24, 40))


class Grouped(nn.Module):
    """Two groups that a group normalisation tells apart, and attention heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.stem(x)).flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens)
        return self.out(F.gelu(mixed).mean(1))  # type: ignore[no-any-return]


def test_what_an_operator_tells_apart_keeps_its_place() -> None:
    found = find_symmetries({"a": branchnet.split(made(0, Grouped), X, locations=["norm", "attention"])}, X)
    assert {name for _, name in found.tensors} == {
        "attention.out_proj.weight", "attention.out_proj.bias", "out.weight",
    }  # fmt: skip


@given(seed=st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_any_order_of_the_units_keeps_the_function(seed: int) -> None:
    network = branchnet.split(made(0), X, locations=CUTS).double()
    moved = shuffled(network, find_symmetries({"a": network}, X.double()), seed)
    assert not torch.equal(
        moved.stages[1].get_parameter("inner.weight"), network.stages[1].get_parameter("inner.weight")
    )
    with torch.no_grad():
        torch.testing.assert_close(moved(X.double()), network(X.double()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["timm:convnext_atto", "torchvision:shufflenet_v2_x0_5", "torchvision:mobilenet_v3_small"]
)
@pytest.mark.slow
def test_any_order_of_the_units_keeps_the_function_of_known_backbones(name: str) -> None:
    x = torch.randn(2, 3, 64, 64)
    network = branchnet.split(branchnet.create(name).eval(), x).double()
    found = find_symmetries({"a": network}, x.double())
    assert sum(found.sizes.values()) > 1000
    with torch.no_grad():
        torch.testing.assert_close(shuffled(network, found, 1)(x.double()), network(x.double()), rtol=1e-8, atol=1e-9)


def test_a_network_and_its_reordered_copy_merge_to_the_same_function_exactly() -> None:
    donors = split_networks(("depth", "scene"))
    probe = images(64, 16)
    found = find_symmetries({"depth": donors["depth"]}, probe[:2])
    pair = {"a": donors["depth"], "b": shuffled(donors["depth"], found, 3, "depth")}
    tree = Tree(("a", "b"), [[("a", "b")]] * 3 + [[("a",), ("b",)]] * 2)
    merged = branchnet.build(tree, pair, init="merge", probe=probe)
    node = merged.member("nodes.0.0").module.state_dict()
    assert all(torch.equal(tensor, donors["depth"].stages[0].state_dict()[name]) for name, tensor in node.items())
    with torch.no_grad():
        outputs, expected = merged(images(3)), pair["a"](images(3))
    assert torch.equal(outputs["a"], expected)
    torch.testing.assert_close(outputs["b"], expected, rtol=1e-4, atol=1e-5)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=6, deadline=None)
def test_merging_into_a_separate_tree_gives_the_donors_bit_for_bit(seed: int) -> None:
    donors = {
        "a": branchnet.split(made(seed), X, locations=CUTS),
        "b": branchnet.split(made(seed + 1), X, locations=CUTS),
    }
    merged = branchnet.build(Tree.separate(donors, 3), donors, init="merge", probe=X)
    with torch.no_grad():
        assert all(torch.equal(merged(X)[task], network(X)) for task, network in donors.items())


def test_branches_below_a_merged_node_take_its_order() -> None:
    """Each task of three reordered copies keeps its function, in a tree that shares less and less."""
    network = branchnet.split(made(0), X, locations=CUTS)
    found = find_symmetries({"a": network}, X)
    copies = {task: shuffled(network, found, seed) for seed, task in enumerate("abc")}
    tree = Tree(("a", "b", "c"), [[("a", "b", "c")], [("a",), ("b", "c")], [("a",), ("b",), ("c",)]])
    merged = branchnet.build(tree, copies, init="merge", probe=torch.rand(64, 3, 8, 8))
    with torch.no_grad():
        for output in merged(X).values():
            torch.testing.assert_close(output, network(X), rtol=1e-4, atol=1e-5)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.decode = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(F.relu(self.mix(self.embed(x))))  # type: ignore[no-any-return]


def test_heads_tied_to_their_stages_are_refused() -> None:
    words = torch.arange(6).view(3, 2)
    donors = branchnet.split_all({"a": Tied(), "b": Tied()}, words, locations=["mix"])
    with pytest.raises(BuildError, match=r"head of 'a' shares \['decode.weight'\]"):
        branchnet.build(Tree.shared(("a", "b"), 1), donors, init="merge", probe=words)


def test_merging_needs_a_probe() -> None:
    donors = {task: branchnet.split(made(0), X, locations=CUTS) for task in "ab"}
    with pytest.raises(BuildError, match="expected probe="):
        branchnet.build(Tree.shared(donors, 3), donors, init="merge")


def test_merging_refuses_batches_without_statistics() -> None:
    made = {task: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)) for task in "ab"}
    donors = branchnet.split_all(made, torch.rand(2, 3), locations=1)
    tree = Tree.shared(("a", "b"), 1)
    with pytest.raises(BuildError, match="batches of two inputs"):
        branchnet.build(tree, donors, init="merge", probe=[torch.rand(1, 3) for _ in range(20)])
    branched = branchnet.build(tree, donors, init="donor")
    before = {name: value.clone() for name, value in branched.state_dict().items()}
    with pytest.raises(BuildError, match="there are no inputs"):
        estimate_batchnorm(branched, [branched], [])
    assert all(torch.equal(value, before[name]) for name, value in branched.state_dict().items())


class Counts(nn.Module):
    """Counts its calls, in evaluation, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.last(torch.relu(self.second(torch.relu(self.first(x) + self.calls))))


def test_merging_leaves_what_donors_keep_alone() -> None:
    networks, x = {task: Counts().eval() for task in "ab"}, torch.rand(16, 4)
    before = [everything(network) for network in networks.values()]
    branchnet.build(Tree.shared("ab", 1), networks, init="merge", probe=x, example=x, locations=["second"])
    for known, network in zip(before, networks.values(), strict=True):
        assert_untouched(known, everything(network))
