"""Tasks added and removed, nodes joined and split: what must not change does not, bit-exact, also after saving."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.builder import add_task
from branchnet.clustering import tree_size
from branchnet.errors import BranchnetError, BuildError
from tests.builder.toys import KINDS, LOCATIONS, TiedStages, images, networks, staged

TASKS = tuple(KINDS)
DONORS = networks()
STAGED = staged(DONORS)
DEPTH = len(LOCATIONS)
X = images(2)


def built(tree: Tree) -> BranchedNetwork:
    return branchnet.build(tree, {task: STAGED[task] for task in tree.tasks}, init="donor")


def tree_of(seed: int, tasks: tuple[str, ...] = TASKS) -> Tree:
    return branchnet.random_tree(tasks, DEPTH, seed=random.Random(seed))


def assert_same(first: BranchedNetwork, second: BranchedNetwork, tasks: tuple[str, ...]) -> None:
    with torch.no_grad():
        one, other = first(X, tasks), second(X, tasks)
    assert all(torch.equal(one[task], other[task]) for task in tasks)


def assert_saved_alike(branched: BranchedNetwork, directory: Path) -> None:
    branchnet.save(branched, directory)
    loaded = branchnet.load(directory)
    assert (loaded.tree, loaded.donors, loaded.locations) == (branched.tree, branched.donors, branched.locations)
    assert (loaded.costs, loaded.head_costs) == (branched.costs, branched.head_costs)
    assert_same(loaded, branched, branched.tasks)


def assert_size(branched: BranchedNetwork) -> None:
    predicted = tree_size(branched.tree, branched.costs, head_costs=branched.head_costs)
    assert sum(p.numel() for p in branched.parameters()) == predicted


@given(seed=st.integers(0, 10**6), beside=st.sampled_from(TASKS[:3]), until=st.sampled_from([None, *LOCATIONS]))
@settings(max_examples=12, deadline=None)
def test_a_new_task_shares_its_siblings_path_and_changes_no_output(seed: int, beside: str, until: str | None) -> None:
    before = built(tree_of(seed, TASKS[:3]))
    after = before.add_task("count", STAGED["count"], beside=beside, until=until)
    assert_same(before, after, TASKS[:3])
    assert after.tasks == TASKS and before.tasks == TASKS[:3]
    shared = 0 if until is None else LOCATIONS.index(until) + 1
    assert after.tree.shared_depth("count", beside) == shared
    assert_size(after)
    with torch.no_grad():
        cut = (X,)
        path = [before.nodes[d][before.tree.cluster_of(beside, d)] for d in range(shared)]  # type: ignore[index]
        for stage in [*path, *STAGED["count"].stages[shared:]]:
            cut = stage(*cut)
        assert torch.equal(after(X, ["count"])["count"], STAGED["count"].head(*cut))


def test_grown_and_pruned_networks_come_back_from_disk(tmp_path: Path) -> None:
    before = built(tree_of(1, TASKS[:3]))
    grown = before.add_task("count", STAGED["count"], beside="edges", until="layer2")
    assert_saved_alike(grown, tmp_path / "grown")
    assert_saved_alike(grown.remove_task("depth"), tmp_path / "pruned")
    shared = built(Tree.shared(TASKS, DEPTH))
    halves = shared.split_node("nodes.2.0", [["depth", "count"], ["edges", "scene"]])
    assert_saved_alike(halves, tmp_path / "split")
    assert_saved_alike(halves.merge_nodes("nodes.2.1", "nodes.2.0"), tmp_path / "joined")


@given(seed=st.integers(0, 10**6), gone=st.sampled_from(TASKS))
@settings(max_examples=12, deadline=None)
def test_removing_a_task_changes_no_other_output(seed: int, gone: str) -> None:
    before = built(tree_of(seed))
    after = before.remove_task(gone)
    rest = tuple(task for task in TASKS if task != gone)
    assert after.tasks == rest and set(after.head_costs) == set(after.constructors) == set(rest)
    assert_same(before, after, rest)
    assert_size(after)
    assert all(node.donor in node.tasks for node in after.members())


def test_adding_and_removing_a_task_is_nothing() -> None:
    before = built(tree_of(2, TASKS[:3]))
    after = before.add_task("count", DONORS["count"], beside="edges", until="layer1").remove_task("count")
    assert after.tree == before.tree and after.donors == before.donors
    pairs = zip(before.state_dict().items(), after.state_dict().items(), strict=True)
    assert all(one == other and torch.equal(a, b) for (one, a), (other, b) in pairs)


@given(seed=st.integers(0, 10**6), stage=st.integers(0, DEPTH - 1), cut=st.integers(1, 3))
@settings(max_examples=12, deadline=None)
def test_splitting_a_node_changes_no_output(seed: int, stage: int, cut: int) -> None:
    before = built(tree_of(seed))
    tasks = before.tree.partitions[stage][0]
    assume(len(tasks) > 1)
    cut = min(cut, len(tasks) - 1)
    after = before.split_node(f"nodes.{stage}.0", [tasks[:cut], tasks[cut:]])
    assert tasks[:cut] in after.tree.partitions[stage] and tasks[cut:] in after.tree.partitions[stage]
    assert after.tree.partitions[:stage] == before.tree.partitions[:stage]
    assert_same(before, after, TASKS)
    assert_size(after)
    weights = [node.module for node in after.members() if node.id.startswith(f"nodes.{stage}.")]
    assert len({parameter.data_ptr() for module in weights for parameter in module.parameters()}) == sum(
        len(list(module.parameters())) for module in weights
    )


def test_merged_nodes_have_the_kept_ones_weights() -> None:
    before = built(Tree(TASKS, [[TASKS]] * 2 + [[("depth",), ("edges",), ("scene", "count")]] * 3))
    after = before.merge_nodes("nodes.2.1", "nodes.2.0")
    assert after.tree.partitions[2] == (("depth", "edges"), ("scene", "count"))
    assert after.tree.partitions[3:] == before.tree.partitions[3:]
    assert_same(before, after, ("edges", "scene", "count"))
    assert_size(after)
    with torch.no_grad():
        cut = (X,)
        for node in ("nodes.0.0", "nodes.1.0", "nodes.2.1", "nodes.3.0", "nodes.4.0", "heads.0"):
            cut = before.member(node).module(*cut)
        assert torch.equal(after(X, ["depth"])["depth"], cut)  # type: ignore[arg-type]


def test_the_network_changed_is_left_alone_and_shares_no_weight() -> None:
    before = built(Tree.shared(TASKS, DEPTH))
    state = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    after = before.split_node("nodes.3.0", [["depth"], ["edges", "scene", "count"]])
    for parameter in after.parameters():
        parameter.data.add_(1)
    assert all(torch.equal(tensor, state[name]) for name, tensor in before.state_dict().items())


def test_modes_frozen_nodes_and_ties_are_kept() -> None:
    before = built(Tree.shared(TASKS[:3], DEPTH)).train()
    before.freeze("nodes.0.0", "heads.2")
    before.recompute("layer1")
    after = before.add_task("count", DONORS["count"], beside="scene", until="stem")
    assert after.training and after.recomputed == {1} and after.frozen == {"nodes.0.0", "heads.2"}
    assert not after.member("nodes.0.0").module.training and after.member("nodes.1.1").module.training
    assert not any(parameter.requires_grad for parameter in after.member("heads.2").module.parameters())
    assert after.remove_task("depth").frozen == {"nodes.0.0", "heads.1"}
    tied = branchnet.split_all({"a": TiedStages(), "b": TiedStages()}, torch.rand(2, 4), locations=["first", "second"])
    split = branchnet.build(Tree.shared(("a", "b"), 2), tied, init="donor").split_node("nodes.0.0", [["a"], ["b"]])
    for k in range(2):
        weights = [split.get_parameter(f"nodes.{d}.{k}.{name}.0.weight") for d, name in enumerate(("first", "second"))]
        assert weights[0] is weights[1]


class OtherCut(nn.Module):
    def __init__(self, width: int = 4, *, skip: bool = False) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(4, width)
        self.out = nn.Linear(width, 1)
        self.skip = skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.tanh(self.one(x))
        second = torch.tanh(self.two(first))
        return self.out(second + first) if self.skip else self.out(second)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda net: net.add_task("depth", DONORS["depth"], beside="edges", until="stem"),
            "'depth' exists already",
        ),
        (
            lambda net: net.add_task("n", DONORS["depth"], beside="egdes", until="stem"),
            "^unknown task beside='egdes'; did you mean 'edges'",
        ),
        (
            lambda net: net.add_task("n", DONORS["depth"], beside="zoo", until="stem"),
            "^unknown task beside='zoo'; expected one of depth, edges, scene, count$",
        ),
        (
            lambda net: net.add_task("n", DONORS["depth"], beside="edges", until="layer9"),
            "unknown location until='layer9'; expected None or one of",
        ),
        (lambda net: net.add_task("n", nn.Conv2d(3, 1, 1), beside="edges", until="stem"), "no place at which to cut"),
        (lambda net: net.remove_task("dept"), "did you mean 'depth'"),
        (lambda net: net.split_node("nodes.9.0", [["depth"], ["edges"]]), "unknown node 'nodes.9.0'"),
        (lambda net: net.split_node("heads.0", [["depth"], ["edges"]]), "is a head"),
        (lambda net: net.split_node("nodes.0.0", [TASKS]), "two or more"),
        (lambda net: net.split_node("nodes.0.0", [["depth"], ["edges"]]), "do not partition the tasks"),
        (lambda net: net.merge_nodes("nodes.4.0", "nodes.4.2"), "are not siblings"),
        (lambda net: net.merge_nodes("nodes.3.0", "nodes.4.0"), "are not siblings"),
        (lambda net: net.merge_nodes("nodes.4.0"), "expected one or more other nodes"),
        (lambda net: net.merge_nodes("heads.0", "heads.1"), "is a head"),
    ],
)
def test_changes_that_cannot_be_made_are_refused(change: object, message: str) -> None:
    tree = Tree(TASKS, [[TASKS]] * 3 + [[("depth", "edges"), ("scene", "count")]] + [[(task,) for task in TASKS]])
    with pytest.raises(BranchnetError, match=message):
        change(built(tree))  # type: ignore[operator]


def test_the_only_task_stays() -> None:
    with pytest.raises(BuildError, match="the only task"):
        built(Tree.shared(("depth",), DEPTH)).remove_task("depth")


def test_a_network_of_another_backbone_is_refused() -> None:
    made = {task: OtherCut().eval() for task in "ab"}
    cut = branchnet.split_all(made, torch.rand(2, 3), locations=["one", "two"])
    net = branchnet.build(Tree.shared(("a", "b"), 2), cut, init="donor")
    with pytest.raises(
        BuildError, match=r"'two' is of another backbone \(.*two.weight is \(4, 4\) in one and \(5, 4\) in the other"
    ):
        add_task(net, "c", OtherCut(5), beside="a", until="one")
    with pytest.raises(BuildError, match=r"its head needs the tensors \[\(2, 4\), \(2, 4\)\]; expected \[\(2, 4\)\]"):
        add_task(net, "c", OtherCut(skip=True), beside="a", until="one")
    with pytest.raises(BuildError, match="has 1 stages, the branched network 2"):
        add_task(net, "c", branchnet.split(OtherCut(), torch.rand(2, 3), locations=["one"]), beside="a", until="one")


def test_of_many_differences_the_first_is_named_and_the_others_are_counted() -> None:
    net = built(Tree.shared(TASKS[:2], DEPTH))
    wide = branchnet.create("branchnet:scene_network", outputs=1, width=8).eval()
    # a convolution's weight, and weight, bias, mean and variance of a BatchNorm; its counter is alike
    with pytest.raises(
        BuildError, match=r"stem\.0\.weight is \(4, 3, 3, 3\) in one and \(8, 3, 3, 3\) in the other; 4 more of"
    ):
        net.add_task("wide", wide, beside="edges", until="stem")
    cut = branchnet.split_all({"a": OtherCut().eval()}, torch.rand(2, 3), locations=["one", "two"])
    longer = OtherCut().eval()
    longer.two = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(
        BuildError, match=r"\(two donors differ in a stage: two\.1\.weight is in the other only; 1 more"
    ):
        add_task(branchnet.build(Tree.shared(("a",), 2), cut, init="donor"), "b", longer, beside="a", until="one")


def test_a_task_is_added_to_a_network_of_another_type() -> None:
    before = built(tree_of(3, TASKS[:3])).double()
    with pytest.raises(BuildError, match=r"'count' is torch.float32; expected torch.float64"):
        before.add_task("count", DONORS["count"], beside="edges", until="layer1")
    network = networks()["count"].double()
    after = before.add_task("count", network, beside="edges", until=None)
    with torch.no_grad():
        assert torch.equal(after(X.double(), ["count"])["count"], network(X.double()))


def test_a_task_of_mixed_types_is_added_whatever_comes_first() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.body, self.more = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.more(self.body(x)).float())  # type: ignore[no-any-return]

    made, x = {task: Mixed().eval() for task in "ab"}, torch.rand(2, 4, dtype=torch.float64)
    cut = branchnet.split_all(made, x, locations=["body", "more"])
    network = Mixed().eval()
    after = branchnet.build(Tree.shared(("a", "b"), 2), cut, init="donor").add_task(
        "c", network, beside="a", until=None
    )
    with torch.no_grad():
        assert torch.equal(after(x)["c"], network(x))
