"""Initial weights: means, merges of trained networks, given and random ones; what the report says of them."""

from __future__ import annotations

import copy
import functools
import random
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import branchnet
from branchnet import Tree
from branchnet.builder import estimate_batchnorm, weight_distance
from branchnet.builder.weights.averaging import average_nodes
from branchnet.errors import BuildError
from tests.builder.toys import KINDS, LOCATIONS, images, networks, staged

TASKS = tuple(KINDS)
DONORS = networks()
STAGED = staged(DONORS)
DEPTH = len(LOCATIONS)
SHARED = Tree.shared(TASKS, DEPTH)


def relatives(noise: float) -> dict[str, nn.Module]:
    """Networks whose backbones are one network's plus noise, as after fine-tuning; heads of their own."""
    made = copy.deepcopy(DONORS)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for net in made.values():
            for name, tensor in net.named_parameters():
                if not name.startswith("head."):
                    tensor.copy_(DONORS["depth"].get_parameter(name))
                    if tensor.dim() > 1:
                        tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=noise * float(tensor.std()))
    return made


@functools.cache
def split_relatives() -> dict[str, branchnet.StagedNetwork]:
    return staged(relatives(0.2))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_a_node_of_the_mean_is_the_mean_of_its_tasks_networks(seed: int) -> None:
    cut = split_relatives()
    tree = branchnet.random_tree(TASKS, DEPTH, seed=random.Random(seed))
    branched = branchnet.build(tree, cut, init="mean")
    for node in branched.members():
        if not node.is_head:
            stage = node.stage
            for name, tensor in node.module.state_dict().items():
                if tensor.is_floating_point():
                    expected = sum(cut[task].stages[stage].state_dict()[name] for task in node.tasks) / len(node.tasks)
                    torch.testing.assert_close(tensor, expected)


def test_unrelated_donors_have_no_mean() -> None:
    with pytest.raises(
        BuildError, match=r"common ancestor.*'depth' and 'edges': (1\.0|0\.9)\d.*expected at most 0\.7.*init='merge'"
    ):
        branchnet.build(SHARED, STAGED, init="mean")
    separate = branchnet.build(Tree.separate(TASKS, DEPTH), STAGED, init="mean")
    with torch.no_grad():
        assert torch.equal(separate(images())["scene"], DONORS["scene"](images()))


def test_distances_in_closed_form() -> None:
    made = {task: nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)) for task in "abc"}
    with torch.no_grad():
        for task, rows in {"a": [[3.0, 0], [0, 0]], "b": [[0, 4.0], [0, 0]], "c": [[3.0, 0], [0, 1]]}.items():
            made[task].get_parameter("0.weight").copy_(torch.tensor(rows))
    cut = branchnet.split_all(made, torch.rand(2, 2), locations=["1"])
    assert weight_distance(cut["a"], cut["a"]) == 0
    assert weight_distance(cut["a"], cut["b"]) == pytest.approx(1)
    assert weight_distance(cut["a"], cut["c"]) == pytest.approx((1 / 19) ** 0.5)


class Small(nn.Module):
    """A residual network with BatchNorm for 8 x 8 digits."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.back = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))
        self.last = nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.out = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.back(self.inner(x)))
        return self.out(self.last(x).mean((2, 3)))  # type: ignore[no-any-return]


def test_merging_trained_networks_keeps_far_more_than_averaging_them() -> None:
    """Two networks trained on handwritten digits from different random weights, shared completely.

    The plain mean gets its BatchNorm estimated again as well, on the same images.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    made: dict[str, nn.Module] = {}
    for seed, task in enumerate("ab"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made[task] = Small()
        branchnet.fit(made[task], (x[:1400], y[:1400]), F.cross_entropy, steps=150, learning_rate=3e-3, progress=False)
    cut = branchnet.split_all(made, x[:2], locations=["stem", "back", "last"])
    tree = Tree.shared(("a", "b"), 3)
    merged = branchnet.build(tree, cut, init="merge", probe=x[:256])
    plain = branchnet.build(tree, cut, init="donor")
    average_nodes(plain, cut)
    estimate_batchnorm(plain, [plain], x[:256].split(64))

    def accuracy(network: nn.Module) -> float:
        with torch.no_grad():
            return min(float((out.argmax(1) == y[1400:]).float().mean()) for out in network(x[1400:]).values())

    kept, lost = accuracy(merged), accuracy(plain)
    assert kept > 0.7 and kept > 2 * lost, f"merged {kept:.3f}, plain mean {lost:.3f}"
    assert merged.initialisation is not None
    assert "mean of a, b" in merged.initialisation.table()


def test_averaged_layers_without_batchnorm_get_the_donors_moments_back() -> None:
    """Sums over units, which their order does not change, of mean and deviation on a probe of one batch."""
    made: dict[str, nn.Module] = {}
    for seed, task in enumerate("ab"):
        torch.manual_seed(seed)
        made[task] = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3),
            nn.Flatten(),
            nn.Linear(96, 5),
            nn.Tanh(),
            nn.Linear(5, 2),
        )
    x = torch.rand(64, 3, 8, 8)
    cut = branchnet.split_all(made, x[:2], locations=["1", "3", "5"])
    merged = branchnet.build(Tree.shared(("a", "b"), 3), cut, init="merge", probe=x).path("a")

    def moments(network: nn.Module, stage: int, name: str) -> Tensor:
        outputs: list[Tensor] = []
        layer = network.get_submodule(f"stages.{stage}.{name}")
        hook = layer.register_forward_hook(lambda *arguments: outputs.append(arguments[-1]))
        with torch.no_grad():
            network(x)
        hook.remove()
        rows = outputs[0].movedim(1, -1).flatten(0, -2)
        return torch.stack([rows.mean(0).sum(), rows.std(0, correction=0).sum()])

    for stage, name in ((0, "0"), (1, "2"), (2, "4")):
        wanted = (moments(cut["a"], stage, name) + moments(cut["b"], stage, name)) / 2
        torch.testing.assert_close(moments(merged, stage, name), wanted, rtol=1e-3, atol=1e-4)


def test_pretrained_weights_of_one_network_go_to_every_node() -> None:
    tree = Tree(TASKS, [[TASKS], [TASKS]] + [[("depth", "edges"), ("scene", "count")]] * 3)
    state = networks(("count",))["count"].state_dict()
    branched = branchnet.build(tree, STAGED, init="pretrained", state={f"module.{k}": v for k, v in state.items()})
    for node in branched.members():
        for name, tensor in node.module.state_dict().items():
            source = state if not node.is_head else DONORS[node.tasks[0]].state_dict()
            assert torch.equal(tensor, source[name])


def test_a_branched_state_is_taken_as_it_is_and_misfits_are_named() -> None:
    branched = branchnet.build(SHARED, STAGED, init="donor")
    other = branchnet.build(SHARED, STAGED, init="random", seed=3)
    again = branchnet.build(SHARED, STAGED, init="pretrained", state=other.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), other.state_dict().values(), strict=True))
    state = dict(DONORS["depth"].state_dict())
    weight = state.pop("stem.0.weight")
    with pytest.raises(BuildError, match=r"stem\.0\.weight: not in the state"):
        branchnet.build(SHARED, STAGED, init="pretrained", state=state)
    with pytest.raises(BuildError, match=r"stem\.0\.weight: expected \(\d+, 3, 3, 3\), found \(1, 3, 3, 3\)"):
        branchnet.build(SHARED, STAGED, init="pretrained", state=state | {"stem.0.weight": weight[:1]})
    assert torch.equal(branched.state_dict()["nodes.0.0.stem.0.weight"], weight)


def test_random_weights_are_those_of_the_constructor_and_depend_on_the_seed_alone() -> None:
    tree = Tree(TASKS, [[TASKS]] + [[("depth", "edges"), ("scene", "count")]] * 4)
    before = torch.get_rng_state()
    first = branchnet.build(tree, STAGED, init="random", seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    second, other = (branchnet.build(tree, STAGED, init="random", seed=seed) for seed in (5, 6))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    weight = "nodes.1.0.layer1.0.conv1.weight"
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], first.state_dict()[weight.replace("1.0", "1.1", 1)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        fresh = branchnet.create("branchnet:scene_network", outputs=KINDS["depth"][1], kind="dense", width=4)
    assert torch.equal(first.state_dict()["nodes.0.0.stem.0.weight"], fresh.state_dict()["stem.0.weight"])


def test_layers_without_a_constructor_reset_themselves() -> None:
    made = {t: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)) for t in "ab"}
    for network in made.values():
        network.train()(torch.rand(5, 3))
        [parameter.zero_() for parameter in network.requires_grad_(False).parameters()]
    cut = branchnet.split_all(made, torch.rand(2, 3), locations=["2"])
    branched = branchnet.build(Tree.shared(("a", "b"), 1), cut, init="random", seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        expected = nn.Linear(3, 4)
    assert torch.equal(branched.state_dict()["nodes.0.0.0.weight"], expected.weight)
    assert torch.equal(branched.state_dict()["nodes.0.0.1.running_mean"], torch.zeros(4))


class Token(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token, self.mix, self.out = nn.Parameter(torch.ones(3)), nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mix(x + self.token))  # type: ignore[no-any-return]


def test_parameters_that_nothing_can_reset_are_named() -> None:
    cut = branchnet.split_all({"a": Token(), "b": Token()}, torch.rand(2, 3), locations=["mix"])
    with pytest.raises(BuildError, match=r"nodes\.0\.0: no layer can reset \['token'\]"):
        branchnet.build(Tree.shared(("a", "b"), 1), cut, init="random")


def test_the_report_says_where_weights_come_from_and_how_features_match() -> None:
    tree = Tree(TASKS, [[TASKS]] * 2 + [[("depth", "edges"), ("scene",), ("count",)]] * 3)
    cheap = branchnet.build(tree, STAGED, init="donor").initialisation
    assert cheap is not None and cheap.init == "donor"
    assert [(node.id, node.source) for node in cheap.nodes[:5]] == [
        ("nodes.0.0", "depth's network"), ("nodes.1.0", "depth's network"), ("nodes.2.0", "depth's network"),
        ("nodes.2.1", "scene's network"), ("nodes.2.2", "count's network"),
    ]  # fmt: skip
    assert all(not node.rsa and not node.cka for node in cheap.nodes)
    full = branchnet.build(tree, STAGED, probe=images(12, 16), init="donor").initialisation
    assert full is not None
    by_id = {node.id: node for node in full.nodes}
    assert by_id["nodes.4.0"].rsa["depth"] == pytest.approx(1) and by_id["nodes.4.0"].cka["depth"] == pytest.approx(1)
    for measure, kind in ((branchnet.rsa, "rsa"), (branchnet.cka, "cka")):
        between = measure({t: STAGED[t] for t in ("depth", "edges")}, images(12, 16), bootstrap=0).values
        for stage in range(DEPTH):
            node = by_id[f"nodes.{stage}.0"]
            assert getattr(node, kind)["edges"] == pytest.approx(between[stage, 0, 1])
    assert by_id["nodes.4.0"].location == "layer4" and by_id["heads.1"].tasks == ("edges",)
    assert "edges 0." in full.table() and full.table().count("\n") == len(full.nodes)


def test_features_that_cannot_be_compared_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    made = {task: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)) for task in "ab"}
    with torch.no_grad():
        made["b"].get_parameter("0.weight").zero_()
        made["b"].get_parameter("0.bias").fill_(-1)
    cut = branchnet.split_all(made, torch.rand(2, 3), locations=["1"])
    report = branchnet.build(Tree.separate(("a", "b"), 1), cut, probe=torch.rand(8, 3), init="donor").initialisation
    assert report is not None and not report.nodes[1].rsa and "'b' cannot be compared" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "magic"}, "init='magic' is not a rule"),
        ({"init": "pretrained"}, "expected both or neither"),
        ({"state": {}}, "expected both or neither"),
        ({"init": "merge"}, "expected probe="),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        branchnet.build(SHARED, STAGED, **options)  # type: ignore[arg-type]


def test_networks_without_names_are_refused() -> None:
    with pytest.raises(BuildError, match="networks is a list; expected a mapping"):
        branchnet.build(SHARED, list(STAGED.values()), init="donor")  # type: ignore[arg-type]
    with pytest.raises(BuildError, match="expected a mapping"):
        branchnet.SeparateNetworks([nn.Linear(2, 2)])  # type: ignore[arg-type]


def test_networks_that_name_their_modules_differently_are_averaged_by_structure() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(torch.tanh(self.one(x)))  # type: ignore[no-any-return]

    class Same(nn.Module):
        def __init__(self, other: Other) -> None:
            super().__init__()
            self.zebra, self.apple = copy.deepcopy(other.one), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.apple(torch.tanh(self.zebra(x)))  # type: ignore[no-any-return]

    other = Other()
    made: dict[str, nn.Module] = {"a": other, "b": Same(other)}
    with torch.no_grad():
        made["b"].get_parameter("zebra.bias").add_(1)
    cut = branchnet.split_all(made, torch.rand(2, 3), locations=["one"])
    branched = branchnet.build(Tree.shared(("a", "b"), 1), cut, init="mean")
    assert torch.equal(branched.state_dict()["nodes.0.0.one.weight"], other.one.weight)
    torch.testing.assert_close(branched.state_dict()["nodes.0.0.one.bias"], other.one.bias + 0.5)


def test_the_state_of_another_tree_is_refused() -> None:
    state = branchnet.build(Tree.separate(TASKS, DEPTH), STAGED).state_dict()
    with pytest.raises(BuildError, match=r"nodes\.0\.1\.stem\.0\.weight: unknown tensor; expected those of this tree"):
        branchnet.build(Tree.shared(TASKS, DEPTH), STAGED, init="pretrained", state=state)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda layer: parametrizations.weight_norm(layer), "1.parametrizations.weight.original0"),
        (lambda layer: parametrizations.spectral_norm(layer), "1.parametrizations.weight.original"),
        (lambda layer: parametrizations.orthogonal(layer), "1.parametrizations.weight.original"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.5), "1.weight_orig"),
    ],
)
def test_parametrised_layers_are_not_left_as_the_donors_under_random(
    change: Callable[[nn.Module], nn.Module], kept: str
) -> None:
    """Their own reset writes to a tensor that is computed for each use."""
    made = {task: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)) for task in "ab"}
    for network in made.values():
        change(network[1])
    cut = branchnet.split_all(made, torch.rand(2, 4), locations=["0", "1"])
    with pytest.raises(BuildError, match=rf"nodes\.1\.0: no layer can reset \['{re.escape(kept)}'"):
        branchnet.build(Tree.shared(("a", "b"), 2), cut, init="random")
