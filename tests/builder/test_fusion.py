"""Fused nodes give what they give one by one, in every tree, and can be taken apart again."""

from __future__ import annotations

import copy
import functools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import branchnet
from branchnet import BranchedNetwork, Tree
from branchnet.builder.network.module_structure import structure
from branchnet.errors import BuildError
from branchnet.inference import FusedNetwork, FusedNodes, Latency, fusion_choice
from branchnet.stages.flops import without_attention_fast_path
from tests.builder.toys import KINDS, images, split_networks

TASKS = tuple(KINDS)
DEPTH = 5
TWO_BY_TWO = [("depth", "edges"), ("scene", "count")]
TREE = Tree(TASKS, [[TASKS], [TASKS], TWO_BY_TWO, TWO_BY_TWO, [(task,) for task in TASKS]])


@pytest.fixture(scope="module")
def cut() -> dict[str, branchnet.StagedNetwork]:
    return split_networks()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert list(found) == list(expected)
    for task, value in expected.items():
        assert (found[task] - value).abs().max() <= tolerance * value.abs().max()


@pytest.mark.parametrize("seed", range(6))
def test_every_tree_gives_the_same_fused(cut: dict[str, branchnet.StagedNetwork], seed: int) -> None:
    tree = branchnet.random_tree(TASKS, DEPTH, seed=seed)
    branched = branchnet.build(tree, cut, init="donor").eval()
    chosen = random.Random(seed).sample(range(DEPTH), 3) if seed % 2 else range(DEPTH)
    fused = FusedNetwork(branched, chosen)
    x = images(3, seed=seed)
    with torch.no_grad():
        assert_same(fused(x), branched(x))
        for tasks in (["edges"], ["depth", "count"], ["scene", "count"], ["edges", "depth", "scene"]):
            assert_same(fused(x, tasks), branched(x, tasks))


def test_siblings_and_cousins_share_one_computation(cut: dict[str, branchnet.StagedNetwork]) -> None:
    fused = FusedNetwork(branchnet.build(TREE, cut, init="donor").eval(), range(DEPTH))
    assert fused.groups == (((0,),), ((0,),), ((0, 1),), ((0, 1),), ((0, 1, 2, 3),))
    assert not any(isinstance(node, FusedNodes) for node in fused.unfuse().modules())
    runs = Counter[str]()

    class Convolutions(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.convolution.default:
                runs["grouped" if args[-1] > 1 else "single"] += 1
            return func(*args, **(kwargs or {}))

    def counted(network: nn.Module) -> dict[str, int]:
        runs.clear()
        with torch.no_grad(), Convolutions():
            network(images(3))
        return dict(runs)

    apart, together = counted(fused.unfuse()), counted(fused)
    # Of the nodes of a fused stage, siblings or cousins, one convolution is left for each layer.
    layers = [len([m for m in row[0].modules() if isinstance(m, nn.Conv2d)]) for row in fused.unfuse().nodes]  # type: ignore[index, union-attr]
    heads = apart["single"] - sum(n * width for n, width in zip(layers, TREE.widths, strict=True))
    assert "grouped" not in apart and together["grouped"] > 0
    assert sum(together.values()) == sum(layers) + heads


def test_weights_are_unstacked_to_the_bit(cut: dict[str, branchnet.StagedNetwork]) -> None:
    branched = branchnet.build(TREE, cut, init="donor").eval()
    before = {name: value.clone() for name, value in branched.state_dict().items()}
    fused = FusedNetwork(branched, range(DEPTH))
    apart = fused.unfuse()
    assert list(apart.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in apart.state_dict().items())
    assert sum(p.numel() for p in fused.parameters()) == sum(p.numel() for p in branched.parameters())
    x = images(2)
    with torch.no_grad():
        assert_same(apart(x), branched(x), 0.0)
        next(iter(fused.nodes[4][0].parameters())).zero_()  # type: ignore[index, union-attr]
    assert all(torch.equal(value, before[name]) for name, value in branched.state_dict().items())
    assert apart.tree == TREE and apart.donors == branched.donors


def test_attention_and_layer_norm_fuse() -> None:
    timm = pytest.importorskip("timm")

    def vit(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return timm.create_model(  # type: ignore[no-any-return]
            "vit_tiny_patch16_224", img_size=32, num_classes=3, depth=3, embed_dim=24, num_heads=3
        ).eval()

    x = torch.randn(2, 3, 32, 32)
    cut = branchnet.split_all(
        {t: vit(i) for i, t in enumerate("abc")}, x, locations=["blocks.0", "blocks.1", "blocks.2"]
    )
    tree = Tree(("a", "b", "c"), [[("a", "b", "c")], [("a", "b"), ("c",)], [("a",), ("b",), ("c",)]])
    branched = branchnet.build(tree, cut, init="donor").eval()
    with torch.no_grad():
        assert_same(FusedNetwork(branched, range(3))(x), branched(x))


def operators(nodes: FusedNodes, x: Tensor) -> Counter[str]:
    """How often every operator runs."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        graph = make_fx(lambda value: nodes(value))(x).graph
    return Counter(str(node.target) for node in graph.nodes if node.op == "call_function")


@pytest.mark.parametrize("kind", ["convolution", "attention"])
def test_as_many_operators_run_for_six_members_as_for_three(kind: str) -> None:
    """Convolutions become grouped ones, linear layers and attention batched products: none is repeated by member.

    On CPUs the fused attention kernel has no batched form; its composite stands in here for the kernels of GPUs.
    """

    def node() -> nn.Module:
        if kind == "convolution":
            return nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), nn.Hardswish(), nn.AvgPool2d(2))
        return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    class Returning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = node()

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (self.body(x),)

    x = torch.rand(2, 4, 8, 8) if kind == "convolution" else torch.rand(2, 5, 8)
    modules = [Returning().eval() for _ in range(6)]
    with without_attention_fast_path():
        counts = [operators(FusedNodes(modules[:members]), x) for members in (3, 6)]
    assert counts[0] == counts[1]
    wanted = "aten.convolution.default" if kind == "convolution" else "aten.bmm.default"
    assert counts[0][wanted] == 1 or (kind == "attention" and counts[0][wanted] >= 2)


@pytest.mark.parametrize("kernel", ["flash", "efficient", "cudnn"])
def test_the_attention_kernels_of_gpus_have_a_batched_form(kernel: str) -> None:
    operator = f"aten::_scaled_dot_product_{kernel}_attention"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(operator, "FuncTorchBatched")


def test_inputs_by_name_fuse_in_the_first_stage() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(6, 4)
            self.next = nn.Linear(4, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, left: Tensor, right: Tensor) -> Any:
            return self.head(self.next(self.body(torch.cat((left, right), 1)).relu()))

    x = {"left": torch.rand(3, 2), "right": torch.rand(3, 4)}
    made = {task: Both().eval() for task in "ab"}
    branched = branchnet.build(Tree.separate(("a", "b"), 2), branchnet.split_all(made, x, locations=["body", "next"]))
    fused = FusedNetwork(branched, range(2))
    assert fused.groups == (((0, 1),), ((0, 1),))
    assert_same(fused(x), branched(x))
    assert_same(fused(x, ["b"]), branched(x, ["b"]))


@pytest.mark.parametrize(
    "other",
    [
        lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        lambda: nn.Conv2d(4, 4, 3, padding=1).double(),
        lambda: nn.Conv2d(4, 4, 3, padding=1, bias=False),
    ],
)
def test_nodes_that_differ_in_more_than_values_are_not_fused(other: Callable[[], nn.Module]) -> None:
    same = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)) for _ in range(2)]
    FusedNodes(same)
    with pytest.raises(BuildError, match="one structure"):
        FusedNodes([same[0], nn.Sequential(other())])


def test_training_mode_is_refused(cut: dict[str, branchnet.StagedNetwork]) -> None:
    with pytest.raises(BuildError, match="eval"):
        FusedNetwork(branchnet.build(TREE, cut, init="donor").train(), range(DEPTH))


def test_auto_fuses_the_stages_that_were_measured_faster(
    cut: dict[str, branchnet.StagedNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    branched: BranchedNetwork = branchnet.build(TREE, cut, init="donor").eval()
    speeds = iter([1.5, 1.01, 0.4])  # of the stages with two, two and four nodes

    def measured(ways: dict[str, Any], *args: object, **options: object) -> dict[str, Latency]:
        for way in ways.values():
            way()
        return {"apart": Latency((1.0,)), "fused": Latency((1.0 / next(speeds),))}

    monkeypatch.setattr(fusion_choice, "compiled_apart", lambda function, **options: function)
    monkeypatch.setattr(fusion_choice, "compare_latency", measured)
    assert fusion_choice.faster_fused(branched, images(2)) == (2,)


def test_nodes_that_cannot_be_batched_stay_apart_and_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            return _decided(x * self.weight)

    made = {task: nn.Sequential(nn.Linear(4, 4), Deciding(), nn.Linear(4, 2)).eval() for task in "ab"}
    x = torch.rand(2, 4)
    branched = branchnet.build(Tree.separate(("a", "b"), 2), branchnet.split_all(made, x, locations=["0", "1"]))
    monkeypatch.setattr(fusion_choice, "compiled_apart", lambda function, **options: function)
    with pytest.warns(UserWarning, match="cannot be fused and stay apart"):
        chosen = fusion_choice.faster_fused(branched, x, repeats=2)
    assert 1 not in chosen


@torch.fx.wrap
def _decided(x: Tensor) -> Tensor:
    return x if x.sum().item() > 0 else -x


def test_nodes_of_one_structure_have_one_layout_and_one_activation() -> None:
    """What code made for one of them would get wrong for another."""

    def block(activation: Callable[[Tensor], Tensor]) -> nn.Module:
        return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, activation=activation))

    gelu, again = block(nn.functional.gelu), block(nn.functional.gelu)
    assert structure(gelu) == structure(again) == structure(copy.deepcopy(gelu))
    assert structure(gelu) != structure(block(nn.functional.silu))
    assert structure(gelu) != structure(block(torch.tanh))
    convolution = nn.Conv2d(3, 4, 3)
    assert structure(convolution) != structure(copy.deepcopy(convolution).to(memory_format=torch.channels_last))
    pointwise = nn.Conv2d(3, 4, 1)  # steps along dimensions of one element say nothing
    moved = copy.deepcopy(pointwise)
    moved.weight.data = moved.weight.data.as_strided((4, 3, 1, 1), (3, 1, 7, 5))
    assert structure(pointwise) == structure(moved)


class Normalising(nn.Module):
    """A transform with its settings in lists, as those of torchvision."""

    def __init__(self, mean: list[float]) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        return x - torch.tensor(self.mean, dtype=x.dtype, device=x.device).view(1, -1, 1, 1)


def test_nodes_with_settings_of_their_own_are_not_fused() -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)).eval()

    x = torch.rand(2, 3, 8, 8)
    transforms = {"a": Normalising([0.0, 0.0, 0.0]), "b": Normalising([5.0, 5.0, 5.0])}
    made = {task: network() for task in "ab"}
    cut = branchnet.split_all(made, x, locations=["0"], transforms=transforms)
    branched = branchnet.build(Tree.separate(("a", "b"), 1), cut).eval()
    fused = FusedNetwork(branched, [0])
    assert fused.groups == (((0,), (1,)),)
    with torch.no_grad():
        assert_same(fused(x), {task: made[task](transforms[task](x)) for task in "ab"})


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ([1, 2.0, "x"], [1, 2.0, "x"], True),
        ([1, 2.0], [1, 2], False),
        ({"a": (1, 2)}, {"a": (1, 3)}, False),
        ({1, 2}, {2, 1}, True),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]), True),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]), False),
        (torch.float16, torch.bfloat16, False),
        (nn.functional.gelu, nn.functional.gelu, True),
        (SimpleNamespace(heads=[2, 4]), SimpleNamespace(heads=[2, 4]), True),
        (SimpleNamespace(heads=[2, 4]), SimpleNamespace(heads=[2, 5]), False),
        (np.arange(3), np.arange(3), True),
        (np.arange(3), np.arange(3) + 1, False),
        (np.ma.array([1.0, 2.0]), np.ma.array([3.0, 4.0]), False),
        (range(3), range(3), True),
        (Path("a"), Path("b"), False),
        (torch.ones(2, device="meta"), torch.ones(2, device="meta"), True),
        (torch.ones(2, device="meta"), torch.ones(3, device="meta"), False),
        (functools.partial(torch.add, alpha=2), functools.partial(torch.add, alpha=2), True),
        (functools.partial(torch.add, alpha=2), functools.partial(torch.add, alpha=3), False),
        (torch.Generator().manual_seed(0), torch.Generator().manual_seed(0), False),
    ],
)
def test_attributes_of_any_kind_count_in_a_structure(one: object, other: object, equal: bool) -> None:
    layers = [nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))]
    for layer, value in zip(layers, (one, other), strict=True):
        layer[0].setting = value
    assert (structure(layers[0]) == structure(layers[1])) is equal


def test_hooks_ties_and_cycles_count_in_a_structure() -> None:
    plain, hooked = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert structure(plain) == structure(hooked)
    handle = hooked[1].register_forward_hook(lambda *_: None)
    assert structure(plain) != structure(hooked)
    handle.remove()
    assert structure(plain) == structure(hooked)
    hooked[1].weight = hooked[0].weight
    assert structure(plain) != structure(hooked) == structure(copy.deepcopy(hooked))
    for layer in (plain, copied := copy.deepcopy(plain)):
        layer[0].whole = [layer]  # a module that is held by what it holds
    assert structure(plain) == structure(copied)
    chains = []
    for layer in (plain, copied):
        chain: list[Any] = []
        for _ in range(3000):
            chain = [chain]
        layer.chain = chain
        chains.append(structure(layer))
    assert chains[0] != chains[1]  # too deep to be compared
    recurrent = nn.LSTM(3, 4)
    assert structure(recurrent) == structure(nn.LSTM(3, 4)) != structure(nn.LSTM(3, 5))


def test_nodes_with_computed_weights_and_with_a_parameter_as_buffer_are_fused() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.utils.weight_norm(nn.Linear(4, 4))
            self.outer = nn.Linear(4, 4)
            self.register_buffer("seen", self.outer.bias)

        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (self.outer(self.inner(x)) + self.seen,)

    with pytest.warns(FutureWarning, match="weight_norm"):
        layers = [Layer().eval() for _ in range(3)]
    x = torch.rand(2, 4)
    with torch.no_grad():
        for layer in layers:
            layer(x)  # weight_norm computes the attribute
        fused = FusedNodes(layers)
        for row, layer in zip(fused(x)[0], layers, strict=True):
            assert (row - layer(x)[0]).abs().max() < 1e-6


def test_heads_of_different_classes_of_output_differ() -> None:
    @dataclass
    class Depths:
        values: Tensor

    @dataclass
    class Scores:
        values: Tensor

    def head(kind: Any) -> nn.Module:
        class Network(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.out = nn.Linear(3, 4), nn.Linear(4, 2)

            def forward(self, x: Tensor) -> object:
                return kind(self.out(self.body(x)))

        return branchnet.split(Network().eval(), torch.rand(2, 3), locations=["body"]).head

    assert structure(head(Depths)) == structure(head(Depths)) != structure(head(Scores))


class Tied(nn.Module):
    """Two layers of one node, and one of the next, with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.second = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.first[2].weight = self.second[0].weight = self.first[0].weight
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.second(self.first(x)))  # type: ignore[no-any-return]


def test_tied_weights_are_fused_and_tied_again() -> None:
    made = {task: Tied().eval() for task in "abc"}
    cut = branchnet.split_all(made, torch.rand(2, 4), locations=["first", "second"])
    branched = branchnet.build(Tree.separate(("a", "b", "c"), 2), cut).eval()
    fused, x = FusedNetwork(branched, range(2)), torch.rand(3, 4)
    apart = fused.unfuse()
    with torch.no_grad():
        expected = {task: network(x) for task, network in made.items()}
        for network in (fused, apart):
            assert_same(network(x), expected)
            assert_same(network(x, ["b"]), {"b": expected["b"]})
    before = branched.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in apart.state_dict().items())
    assert sum(p.numel() for p in apart.parameters()) == sum(p.numel() for p in branched.parameters())
    for node in fused.nodes[0][0].unstack():  # type: ignore[index, operator, union-attr]
        assert node.get_parameter("first.0.weight") is node.get_submodule("first.2").weight
