"""Branched networks against their donors: chains composed by hand, parameters counted, nodes called."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
import random
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import branchnet
from branchnet import Affinity, BranchedNetwork, Tree
from branchnet.builder.weights.donors import choose_donors
from branchnet.clustering import tree_size
from branchnet.errors import BuildError, SplitError
from branchnet.stages.codegen.device_rewrite import device_now, on_device_of_inputs
from tests.builder.toys import KINDS, LOCATIONS, TiedStages, images, networks, split_networks, staged

TASKS = tuple(KINDS)
DONORS = networks()
STAGED = staged(DONORS)
DEPTH = len(LOCATIONS)


def random_tree(seed: int) -> Tree:
    return branchnet.random_tree(TASKS, DEPTH, seed=random.Random(seed))


def affinity(seed: int) -> Affinity:
    values = torch.rand(DEPTH, len(TASKS), len(TASKS), generator=torch.Generator().manual_seed(seed)).double()
    return Affinity(TASKS, LOCATIONS, ((values + values.mT) / 2).numpy())


def test_a_separate_tree_gives_the_donors_outputs_bit_for_bit() -> None:
    branched = branchnet.build(Tree.separate(TASKS, DEPTH), STAGED)
    x = images(3)
    with torch.no_grad():
        outputs = branched(x)
        assert list(outputs) == list(TASKS)
        assert all(torch.equal(outputs[task], DONORS[task](x)) for task in TASKS)


def test_a_shared_tree_has_one_backbone_and_the_heads() -> None:
    branched = branchnet.build(Tree.shared(TASKS, DEPTH), STAGED, init="donor")
    backbone = sum(p.numel() for name, p in DONORS["depth"].named_parameters() if not name.startswith("head."))
    heads = sum(p.numel() for net in DONORS.values() for name, p in net.named_parameters() if name.startswith("head."))
    assert sum(p.numel() for p in branched.parameters()) == backbone + heads


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_each_task_is_the_chain_of_its_nodes_donors(seed: int) -> None:
    tree, measured = random_tree(seed), affinity(seed)
    branched = branchnet.build(tree, STAGED, affinity=measured, init="donor")
    donors, x = choose_donors(tree, measured), images()
    with torch.no_grad():
        outputs = branched(x)
        for task in TASKS:
            cut = (x,)
            for stage in range(DEPTH):
                donor = donors[stage][tree.cluster_of(task, stage)]
                cut = STAGED[donor].stages[stage](*cut)
            assert torch.equal(outputs[task], STAGED[task].head(*cut))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_parameters_are_what_the_clustering_room_predicts(seed: int) -> None:
    tree = random_tree(seed)
    branched = branchnet.build(tree, STAGED, init="donor")
    heads = {task: network.head_cost for task, network in STAGED.items()}
    predicted = tree_size(tree, STAGED["depth"].costs, head_costs=heads)
    assert sum(p.numel() for p in branched.parameters()) == predicted


def test_only_the_path_of_the_wanted_task_runs() -> None:
    tree = Tree(TASKS, [[TASKS]] * 2 + [[("depth", "edges"), ("scene", "count")]] * 3)
    branched = branchnet.build(tree, STAGED, init="donor")
    ran: list[str] = []
    for node in branched.members():
        node.module.register_forward_hook(lambda *_, name=node.id: ran.append(name))
    outputs = branched(images(), tasks=["depth"])
    assert list(outputs) == ["depth"]
    assert ran == [*(f"nodes.{d}.0" for d in range(DEPTH)), "heads.0"]
    ran.clear()
    branched(images(), tasks=["count", "depth"])
    assert sorted(ran) == sorted(
        [*(f"nodes.{d}.0" for d in range(DEPTH)), "nodes.2.1", "nodes.3.1", "nodes.4.1", "heads.0", "heads.3"]
    )


def test_a_subset_of_tasks_equals_the_full_run() -> None:
    branched = branchnet.build(random_tree(3), STAGED, init="donor")
    with torch.no_grad():
        whole, part = branched(images()), branched(images(), tasks=["scene", "edges"])
    assert list(part) == ["edges", "scene"]
    assert all(torch.equal(part[task], whole[task]) for task in part)


INITS: dict[str, dict[str, Any]] = {
    "donor": {},
    "mean": {},
    "merge": {"probe": images(16)},
    "pretrained": {"state": DONORS["edges"].state_dict()},
    "random": {"seed": 3},
}


@pytest.mark.parametrize("init", INITS)
def test_donors_are_copied_not_shared_and_not_changed(init: Any) -> None:
    made = networks()
    if init == "mean":  # its donors have a common ancestor
        made = {task: copy.deepcopy(DONORS["depth"]) for task in TASKS}
    for number, network in enumerate(made.values()):
        network.requires_grad_(number % 2 == 0).train(number < 2)
    cut = branchnet.split_all(made, images(), locations=LOCATIONS)
    looks = {task: description(network) for task, network in made.items()}
    branched = branchnet.build(Tree.shared(TASKS, DEPTH), cut, init=init, **INITS[init])
    with torch.no_grad():
        for tensor in (*branched.parameters(), *branched.buffers()):
            tensor.add_(1)
    branched.train().requires_grad_(True)
    branched(images())
    assert {task: description(network) for task, network in made.items()} == looks


def description(network: nn.Module) -> list[Any]:
    """All that could be changed about a network."""
    modules = [(name, part.training, len(part._forward_hooks)) for name, part in network.named_modules()]
    tensors = [(name, value.flatten().tolist()) for name, value in network.state_dict().items()]
    return [modules, tensors, [parameter.requires_grad for parameter in network.parameters()]]


def test_a_medoid_gives_the_weights_of_a_shared_node() -> None:
    values = torch.eye(4).double().expand(DEPTH, 4, 4).clone()
    values[:, 2, :] = values[:, :, 2] = 0.9  # scene is nearest to all
    measured = Affinity(TASKS, LOCATIONS, values.numpy())
    branched = branchnet.build(Tree.shared(TASKS, DEPTH), STAGED, affinity=measured, init="donor")
    assert branched.donors == (("scene",),) * DEPTH
    assert torch.equal(branched.nodes[0][0].state_dict()["stem.0.weight"], DONORS["scene"].stem[0].weight)  # type: ignore[index, union-attr]


@given(seed=st.integers(0, 10**6), preferred=st.sampled_from(TASKS))
@settings(max_examples=10, deadline=None)
def test_a_preferred_donor_keeps_its_outputs_in_any_tree(seed: int, preferred: str) -> None:
    tree = random_tree(seed)
    branched = branchnet.build(
        tree, STAGED, donors=choose_donors(tree, affinity(seed), preferred=preferred), init="donor"
    )
    with torch.no_grad():
        assert torch.equal(branched(images(), [preferred])[preferred], DONORS[preferred](images()))


def test_donors_that_do_not_fit_the_tree_are_refused() -> None:
    tree = Tree.shared(TASKS, DEPTH)
    with pytest.raises(BuildError, match="donor 'mood' is not a task of its node"):
        branchnet.build(tree, STAGED, donors=(("mood",),) * DEPTH, init="donor")
    with pytest.raises(BuildError, match=r"donors name \[2, 2\] nodes"):
        branchnet.build(tree, STAGED, donors=(("depth", "edges"),) * 2, init="donor")


@pytest.mark.parametrize(("split_at", "tied"), [(2, True), (1, False)])
def test_a_tie_between_stages_is_kept_where_the_same_tasks_are_served(split_at: int, tied: bool) -> None:
    made = {"a": TiedStages(), "b": TiedStages()}
    cut = branchnet.split_all(made, torch.rand(2, 4), locations=["first", "second"])
    tree = Tree(("a", "b"), [[("a", "b")]] * split_at + [[("a",), ("b",)]] * (2 - split_at))
    branched = branchnet.build(tree, cut, init="donor")
    first, second = (next(node.module for node in branched.members() if node.id == f"nodes.{d}.0") for d in range(2))
    assert (first.get_parameter("first.0.weight") is second.get_parameter("second.0.weight")) == tied


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: branchnet.build(Tree.shared(TASKS, 3), STAGED, init="donor"),
            "the network of 'depth' has 5 stages; expected 3",
        ),
        (
            lambda: branchnet.build(Tree.shared(("depth", "mood"), DEPTH), STAGED, init="donor"),
            r"\['mood'\] without a network",
        ),
        (lambda: branchnet.build(Tree.shared(TASKS, DEPTH), DONORS, init="donor"), "expected example="),
        (
            lambda: branchnet.build(Tree.shared(TASKS, DEPTH), {**STAGED, "x": nn.ReLU()}, init="donor"),
            "expected all of one kind",
        ),
        (lambda: branchnet.build(Tree.shared(TASKS, DEPTH), STAGED, init="magic"), "init='magic' is not a rule"),  # type: ignore[arg-type]
        (
            lambda: branchnet.build(
                Tree.shared(TASKS, DEPTH),
                STAGED,
                affinity=Affinity(("a",), ("b",), torch.ones(1, 1, 1).numpy()),
                init="donor",
            ),
            "the affinity has the tasks",
        ),
    ],
)
def test_what_does_not_fit_is_refused(build: object, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        build()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["mood"], "unknown task 'mood'; expected one of depth, edges, scene, count"),
        (["scene", "dept"], "unknown task 'dept'; did you mean 'depth'?"),
        (
            [],
            "tasks=[] names no task; expected one or more of ['depth', 'edges', 'scene', 'count'], e.g. tasks=",
        ),
        ("depth", "tasks='depth' names no task; expected one or more of"),
    ],
)
def test_wrong_tasks_are_refused(tasks: list[str], message: str) -> None:
    branched = branchnet.build(Tree.shared(TASKS, DEPTH), STAGED, init="donor")
    with pytest.raises(BuildError, match=f"^{re.escape(message)}"):
        branched(images(), tasks=tasks)


def test_plain_networks_are_split_on_the_way() -> None:
    branched = branchnet.build(Tree.separate(TASKS, DEPTH), DONORS, example=images(), locations=LOCATIONS)
    with torch.no_grad():
        assert torch.equal(branched(images())["edges"], DONORS["edges"](images()))


def test_networks_of_another_structure_are_refused() -> None:
    with pytest.raises(SplitError):
        branchnet.split_all({"a": DONORS["depth"], "b": nn.Conv2d(3, 8, 1)}, images())


def test_any_task_name_works_as_metadata_only() -> None:
    names = ("a.b", "keys", "ünï code")
    made = dict(zip(names, DONORS.values(), strict=False))
    branched: BranchedNetwork = branchnet.build(Tree.shared(names, DEPTH), staged(made), init="donor")
    assert set(branched(images())) == set(names)
    assert all(key.split(".")[0] in ("nodes", "heads") for key in branched.state_dict())


def layers(widths: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(*(nn.Linear(before, after) for before, after in itertools.pairwise(widths))).eval()


def test_networks_that_were_cut_elsewhere_are_refused() -> None:
    """Where all cuts have one shape the outputs would be wrong without an error."""
    x, tree = torch.rand(1, 8), Tree.shared(("a", "b"), 2)
    cut = {
        "a": branchnet.split(layers((8,) * 6), x, locations=["0", "1"]),
        "b": branchnet.split(layers((8,) * 6), x, locations=["1", "3"]),
    }
    with pytest.raises(BuildError, match="'a' and 'b' cannot share stage 0: it ends at '0' in one and at '1'"):
        branchnet.build(tree, cut, init="donor")
    cut["b"] = branchnet.split(layers((8, 8, 6, 8, 8, 8)), x, locations=["0", "1"])
    with pytest.raises(BuildError, match=r"at '1' one returns \(1, 8\) float32 and the other \(1, 6\) float32"):
        branchnet.build(tree, cut, init="donor")


def test_locations_are_for_networks_that_are_still_whole() -> None:
    with pytest.raises(BuildError, match="these are staged already"):
        branchnet.build(Tree.shared(TASKS, DEPTH), STAGED, locations=LOCATIONS, init="donor")


def test_a_state_goes_into_another_network_of_the_tree() -> None:
    tree = random_tree(5)
    one, other = branchnet.build(tree, STAGED, init="donor"), branchnet.build(tree, STAGED, init="random", seed=1)
    with torch.no_grad():
        assert not torch.equal(one(images())["depth"], other(images())["depth"])
        other.load_state_dict(one.state_dict())
        assert all(torch.equal(one(images())[task], other(images())[task]) for task in TASKS)


class Pooling(nn.Module):
    """Calls functions that pickle refuses, as torch makes them inside of others."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.adaptive_max_pool2d(nn.functional.max_pool2d(self.body(x), 2), 1)
        return self.out(x.flatten(1))  # type: ignore[no-any-return]


def of_one_task(network: nn.Module, x: torch.Tensor, locations: list[str]) -> BranchedNetwork:
    cut = branchnet.split(network.eval(), x, locations=locations)
    return branchnet.build(Tree.shared(("a",), len(locations)), {"a": cut}, init="donor").eval()


PICKLED: dict[str, Callable[[], tuple[BranchedNetwork, torch.Tensor]]] = {
    "modules": lambda: (branchnet.build(random_tree(4), STAGED, init="donor"), images()),
    "operators": lambda: (of_operators(), torch.rand(3, 6)),
    "pooling": lambda: (of_one_task(Pooling(), images(), ["body"]), images()),
}


@pytest.mark.parametrize("kind", PICKLED)
def test_a_network_can_be_pickled(kind: str) -> None:
    """What torch.save of a whole model and processes that are spawned do."""
    branched, x = PICKLED[kind]()
    found = pickle.loads(pickle.dumps(branched))
    with torch.no_grad():
        expected, outputs = branched(x), found(x)
    assert found.tree == branched.tree and list(outputs) == list(expected)
    assert all(torch.equal(outputs[task], value) for task, value in expected.items())


class Attending(nn.Module):
    """What fx cannot follow: the number of its steps depends on its input's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.more, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        for _ in range(int(x.shape[1]) // 4):
            x = x + torch.arange(x.shape[1], device=x.device)
        pairs = self.more(x).unflatten(1, (1, 2, 4))
        attended = nn.functional.scaled_dot_product_attention(pairs, pairs, pairs)
        return self.out(attended.flatten(1))  # type: ignore[no-any-return]


def of_operators() -> BranchedNetwork:
    """A network that torch.export followed."""
    cut = branchnet.split_all({t: Attending().eval() for t in "ab"}, torch.rand(2, 6), locations=["body", "more"])
    assert cut["a"].traced_by == "export"
    return branchnet.build(Tree(("a", "b"), [[("a", "b")], [("a",), ("b",)]]), cut, init="donor").eval()


def test_a_network_that_export_followed_runs_on_another_device() -> None:
    """Its graph holds the device that it was traced on wherever it makes a tensor."""
    branched = of_operators().to("meta")
    outputs = branched(torch.rand(5, 6, device="meta"))
    assert all(output.device.type == "meta" and output.shape == (5, 2) for output in outputs.values())


def test_donors_in_parallel_wrappers_and_of_half_precision() -> None:
    made = {task: network.double() for task, network in networks().items()}
    wrapped = {task: nn.DataParallel(network) for task, network in made.items()}
    cut = branchnet.split_all(wrapped, images().double(), locations=LOCATIONS)
    branched = branchnet.build(Tree.separate(TASKS, DEPTH), cut)
    with torch.no_grad():
        found = branched(images().double())
        assert all(torch.equal(found[task], network(images().double())) for task, network in made.items())
    assert {p.dtype for p in branched.bfloat16().parameters()} == {torch.bfloat16}
    assert all(output.dtype == torch.bfloat16 for output in branched(images().bfloat16()).values())


def test_a_device_that_differs_from_the_networks_is_kept_in_its_code() -> None:
    """Lengths that stay on the CPU, for one; only the device that the network was on follows its inputs."""
    source = "def forward(self, x, y):\n    return (ones(device=device(type='cpu')), ones(device=device(type='meta')))"
    code = on_device_of_inputs(source, torch.device("cpu"))
    names: dict[str, Any] = {"_device_now": device_now, "_device_traced": torch.device("cpu"), "device": torch.device}
    exec(code, names | {"ones": lambda device: device}, names)
    names["ones"] = lambda device: device
    moved, here, lone = torch.ones(1, device="meta"), torch.ones(1), nn.Linear(1, 1, device="meta")
    for values, expected in (((moved, moved), "meta"), ((moved, here), "cpu"), ((2, here), "cpu"), ((2, 3), "meta")):
        assert [place.type for place in names["forward"](lone, *values)] == [expected, "meta"]


def test_networks_split_one_by_one_fit_where_they_share() -> None:
    x = torch.rand(1, 8)
    cut = {
        "a": branchnet.split(layers((8,) * 6), x, locations=["0", "1"]),
        "b": branchnet.split(layers((8,) * 6), torch.rand(4, 8), locations=["0", "1"]),
        "c": branchnet.split(layers((8, 8, 6, 8, 8, 8)), x, locations=["0", "1"]),
    }
    tree = Tree(("a", "b", "c"), [[("a", "b", "c")], [("a", "b"), ("c",)]])
    branched = branchnet.build(tree, cut, init="donor")
    with torch.no_grad():
        (shared,) = cut["a"].stages[0](x)
        assert torch.equal(branched(x)["c"], cut["c"].head(*cut["c"].stages[1](shared)))


def test_what_a_search_found_is_built_with_its_donors() -> None:
    networks = split_networks()
    values = np.stack([0.5 * np.ones((len(KINDS), len(KINDS))) + 0.5 * np.eye(len(KINDS)) for _ in LOCATIONS])
    affinity = branchnet.Affinity(tuple(KINDS), tuple(LOCATIONS), values)
    first = networks[next(iter(KINDS))]
    found = branchnet.search(affinity, first.costs, "60% params")
    built = branchnet.build(found, networks, init="donor")
    assert built.tree == found.tree
    last = dataclasses.replace(found, donors=tuple(tuple(c[-1] for c in row) for row in found.tree.partitions))
    assert branchnet.build(last, networks, init="donor").donors == last.donors
    first_named = tuple(tuple(c[0] for c in row) for row in found.tree.partitions)
    assert branchnet.build(last, networks, init="donor", donors=first_named).donors == first_named


@pytest.mark.parametrize("given", ["tree.yaml", [["depth"]], None, 3])
def test_what_is_no_tree_is_named(given: object) -> None:
    with pytest.raises(BuildError, match=f"the tree is a {type(given).__name__}; expected a Tree, or what search"):
        branchnet.build(given, split_networks())


def test_networks_in_a_list_are_refused_everywhere() -> None:
    networks = list(split_networks().values())
    tree = Tree.shared(tuple(KINDS), len(LOCATIONS))
    branched = branchnet.build(tree, split_networks(), init="donor")
    for wrong in (
        lambda: branchnet.build(tree, networks),
        lambda: branchnet.SeparateNetworks(networks),
        lambda: branchnet.Teachers(networks, images(4)),
        lambda: branchnet.distill(branched, networks, images(4)),
        lambda: branchnet.report(branched, images(), networks=networks),
        lambda: branchnet.latency_table(networks, images()),
        lambda: branchnet.run(networks, images(), "60% params"),
        lambda: branchnet.Architecture.from_network(branched).build(networks),
    ):
        with pytest.raises(branchnet.BranchnetError, match="networks is a list; expected a mapping of task names"):
            wrong()


def test_hooks_on_gradients_that_stay_with_the_networks_are_named() -> None:
    networks = {task: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)) for task in "ab"}
    networks["a"][0].weight.register_hook(lambda gradient: gradient * 0.1)
    tree = Tree.separate("ab", 1)
    with pytest.warns(UserWarning, match=r"gradients of 1 parameters \(a: 0\.weight\) stay with the networks"):
        branchnet.build(tree, networks, example=torch.rand(2, 4), locations=["0"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        branchnet.build(tree, {"a": networks["b"], "b": networks["b"]}, example=torch.rand(2, 4), locations=["0"])
