"""One network written in two ways is shared whole: judged by the networks' own outputs, with one's weights in both."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import branchnet
from branchnet import Tree
from branchnet.stages import StagedNetwork, split_all
from tests.stages.checks import assert_evaluates_alike, assert_trains_alike

CHANNELS = 4
IMAGE = torch.randn(2, CHANNELS, 6, 6, generator=torch.Generator().manual_seed(0))
Layer = nn.Module | Callable[[Tensor], Tensor]


def drop_path(rate: float) -> nn.Module:
    from timm.layers import DropPath

    return DropPath(rate)


def fused_norm(activation: type[nn.Module] | None) -> nn.Module:
    from timm.layers import BatchNormAct2d

    return BatchNormAct2d(CHANNELS, act_layer=activation or nn.Identity, apply_act=activation is not None)


def separate_norm(activation: type[nn.Module] | None) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(CHANNELS), *([activation()] if activation else []))


WRITINGS: dict[str, list[Callable[[], Layer]]] = {
    "conv": [lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, 1, (1, 1))],
    "relu": [nn.ReLU, lambda: nn.ReLU(inplace=True), lambda: F.relu, lambda: torch.relu, lambda: Tensor.relu],
    "relu6": [nn.ReLU6, lambda: F.relu6, lambda: nn.Hardtanh(0, 6), lambda: lambda x: F.hardtanh(x, 0.0, 6.0)],
    "gelu": [nn.GELU, lambda: F.gelu, lambda: lambda x: F.gelu(x, approximate="none")],
    "gelu by tanh": [lambda: nn.GELU("tanh"), lambda: lambda x: F.gelu(x, approximate="tanh")],
    "silu": [nn.SiLU, lambda: nn.SiLU(inplace=True), lambda: F.silu, lambda: lambda x: F.silu(x, True)],
    "sigmoid": [nn.Sigmoid, lambda: torch.sigmoid, lambda: F.sigmoid, lambda: lambda x: x.sigmoid()],
    "tanh": [nn.Tanh, lambda: torch.tanh, lambda: lambda x: x.tanh()],
    "leaky": [lambda: nn.LeakyReLU(0.1), lambda: lambda x: F.leaky_relu(x, 0.1, inplace=True)],
    "softmax": [lambda: nn.Softmax(1), lambda: lambda x: F.softmax(x, dim=1), lambda: lambda x: x.softmax(1)],
    "hardswish": [nn.Hardswish, lambda: F.hardswish],
    "norm, relu": [lambda: fused_norm(nn.ReLU), lambda: separate_norm(nn.ReLU)],
    "norm, silu": [lambda: fused_norm(nn.SiLU), lambda: separate_norm(nn.SiLU)],
    "norm": [lambda: fused_norm(None), lambda: separate_norm(None)],
    "pool": [
        *(lambda: nn.AdaptiveAvgPool2d(1), lambda: nn.AdaptiveAvgPool2d((1, 1))),
        lambda: lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda: lambda x: F.adaptive_avg_pool2d(x, output_size=[1, 1]),
        lambda: lambda x: x.mean((2, 3), keepdim=True),
        lambda: lambda x: x.mean(dim=[-1, -2], keepdim=True),
        lambda: lambda x: torch.mean(x, (2, 3), True),
    ],
    "pool to two": [
        *(lambda: nn.AdaptiveAvgPool2d(2), lambda: nn.AdaptiveAvgPool2d((2, 2))),
        lambda: lambda x: F.adaptive_avg_pool2d(x, (2, 2)),
    ],
    "nothing": [
        *(nn.Identity, lambda: nn.Dropout(0.0), lambda: nn.Dropout2d(0.3), lambda: drop_path(0.2)),
        lambda: nn.Sequential(nn.Identity(), nn.Dropout(0.1)),
        lambda: lambda x: x,
    ],
}
SUMS: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda x, y: x + y,
    lambda x, y: y + x,
    torch.add,
    lambda x, y: y.add(x),
]
STEP = st.sampled_from(sorted(set(WRITINGS) - {"pool", "pool to two"})).flatmap(
    lambda kind: st.tuples(st.just(kind), *2 * [st.integers(0, len(WRITINGS[kind]) - 1)])
)
SUM = st.tuples(st.just("sum"), *2 * [st.integers(0, len(SUMS) - 1)])


class Written(nn.Module):
    """Runs its steps one after another, each in one of the ways in which it can be written; sums go two steps back."""

    def __init__(self, steps: list[tuple[Any, ...]], column: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers: list[Layer] = []
        for number, step in enumerate(steps):
            layer = None if step[0] == "sum" else WRITINGS[step[0]][step[column]]()
            if isinstance(layer, nn.Module):
                self.add_module(f"layer{number}", layer)
            self.layers.append(f"layer{number}" if isinstance(layer, nn.Module) else layer or SUMS[step[column]])
        self.last = nn.Linear(CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        before = x = x * 1
        for layer in self.layers:
            if layer in SUMS:
                before, x = x, layer(x, before)
            else:
                # What is written in place would change what a later sum reads, in one of the networks alone.
                before, x = x, (getattr(self, layer) if isinstance(layer, str) else layer)(x + 0)
        return self.last(x.mean((2, 3)))


def with_weights_of(network: nn.Module, donor: nn.Module) -> nn.Module:
    """The network with the donor's tensors, whose names differ and whose order does not."""
    with torch.no_grad():
        for mine, its in zip(network.state_dict().values(), donor.state_dict().values(), strict=True):
            mine.copy_(its)
    return network


def shared_whole(staged: dict[str, StagedNetwork]) -> nn.Module:
    tasks = list(staged)
    tree = Tree.shared(tasks, len(staged[tasks[0]].stages))
    return branchnet.build(tree, staged).eval()


def assert_shared_whole(steps: list[tuple[Any, ...]]) -> None:
    one = Written(steps, 1)
    for module in one.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    other = with_weights_of(Written(steps, 2), one)
    networks = {"one": one.eval(), "other": other.eval()}
    assert torch.allclose(one(IMAGE), other(IMAGE))
    staged = split_all(networks, IMAGE)
    assert staged["one"].first_difference is None
    branched = shared_whole(staged)(IMAGE)
    for task, network in networks.items():
        assert torch.equal(staged[task](IMAGE), network(IMAGE))
        torch.testing.assert_close(branched[task], network(IMAGE))
        if staged[task].trainable:
            assert_trains_alike(network, staged[task], IMAGE)
    assert staged["one"].trainable and staged["other"].trainable


@pytest.mark.parametrize("kind", WRITINGS)
def test_every_way_of_writing_a_layer_is_shared(kind: str) -> None:
    for number in range(1, len(WRITINGS[kind])):
        assert_shared_whole([("conv", 0, 1), (kind, 0, number), ("conv", 0, 0)])


class Pooled(nn.Module):
    """A classifier of the mean over positions."""

    def __init__(self, pool: Callable[[], Layer]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(CHANNELS, 5, 3), nn.ReLU())
        self.pool = pool()
        self.last = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pool(self.stem(x)))


POOLINGS: list[Callable[[], Layer]] = [
    lambda: lambda x: x.mean((2, 3)),
    lambda: lambda x: torch.mean(x, dim=[-2, -1]),
    lambda: lambda x: x.mean([3, 2], keepdim=True).flatten(1),
    lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    lambda: lambda x: torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1),
]


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (0, 3), (3, 0), (1, 4), (3, 4), (2, 3)])
def test_means_over_positions_are_shared_whichever_way_they_drop_them(pair: tuple[int, int]) -> None:
    networks = {str(number): Pooled(POOLINGS[number]).eval() for number in pair}
    first, second = networks.values()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(IMAGE), second(IMAGE))
    staged = split_all(networks, IMAGE)
    assert all(one.first_difference is None for one in staged.values())
    branched = shared_whole(staged)(IMAGE)
    for task, network in networks.items():
        assert torch.equal(staged[task](IMAGE), network(IMAGE))
        assert torch.equal(branched[task], network(IMAGE))
        assert_trains_alike(network, staged[task], IMAGE)


@pytest.mark.parametrize(
    "other",
    [lambda x: x.mean((1, 2)), lambda x: x.amax((2, 3)), lambda x: x.mean(2).amax(2), lambda x: x.mean((2, 3)) + 0],
)
def test_other_reductions_are_no_means_over_positions(other: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, CHANNELS, 7, 7)  # 5 x 5 positions behind the stem, as many as it has channels
    networks = {"one": Pooled(POOLINGS[3]).eval(), "other": Pooled(lambda: other).eval()}
    staged = split_all(networks, image)
    assert staged["one"].first_difference is not None
    for task, network in networks.items():
        assert torch.equal(staged[task](image), network(image))


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@pytest.mark.slow
@given(st.lists(STEP | SUM, min_size=1, max_size=8))
def test_random_networks_written_in_two_ways_are_shared_whole(steps: list[tuple[Any, ...]]) -> None:
    assert_shared_whole([("conv", 0, 1), *steps])


@settings(max_examples=5, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(st.lists(STEP | SUM, min_size=3, max_size=8))
def test_some_random_networks_written_in_two_ways_are_shared_whole(steps: list[tuple[Any, ...]]) -> None:
    assert_shared_whole([("conv", 0, 1), *steps])


def last_common(*layers: nn.Module) -> StagedNetwork:
    """Two networks that differ in one layer: the first of them, whose sharing must end there."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), layers[0], nn.Conv2d(CHANNELS, 2, 1)).eval()
    networks = {str(k): nn.Sequential(first[0], layer, first[2]).eval() for k, layer in enumerate(layers)}
    results = [network(IMAGE) for network in networks.values()]
    assert not torch.allclose(*results)
    staged = split_all(networks, IMAGE)
    branched = shared_whole(staged)(IMAGE)
    assert all(torch.equal(branched[task], result) for task, result in zip(networks, results, strict=True))
    return staged["0"]


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def relu(x: Tensor) -> Tensor:
    """Of torch's name, but another function."""
    return torch.relu(x) + 1


class Shifted(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Doubling(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, args, output: output * 3)
    return layer


torch.fx.wrap("relu")
OTHER_FUNCTIONS: dict[str, tuple[nn.Module, nn.Module]] = {
    "another slope": (nn.LeakyReLU(0.1), Calls(F.leaky_relu)),
    "another approximation": (nn.GELU(), Calls(lambda x: F.gelu(x, approximate="tanh"))),
    "another dimension": (nn.Softmax(1), Calls(lambda x: torch.softmax(x, 2))),
    "another range": (nn.ReLU6(), Calls(lambda x: F.hardtanh(x, 0.0, 0.5))),
    "a function of one's own": (nn.ReLU(), Calls(relu)),
    "a class of one's own": (nn.ReLU(), Shifted()),
    "a dropout of one's own": (nn.Identity(), Doubling(0.5)),
    "a hook on an identity": (nn.Identity(), hooked(nn.Identity())),
    "a hook on an activation": (Calls(F.relu), hooked(nn.ReLU())),
    "a hook on a fused norm": (separate_norm(nn.ReLU), hooked(fused_norm(nn.ReLU))),
    "another activation in a fused norm": (fused_norm(nn.ReLU), separate_norm(nn.SiLU)),
    "a difference in the other order": (Calls(lambda x: x - x.mean()), Calls(lambda x: x.mean() - x)),
}


@pytest.mark.parametrize("kind", OTHER_FUNCTIONS)
def test_another_function_is_not_taken_for_another_writing(kind: str) -> None:
    assert last_common(*OTHER_FUNCTIONS[kind]).first_difference is not None


def test_softmax_of_another_type_is_another_function() -> None:
    networks = {
        "a": nn.Sequential(nn.Linear(4, 4), Calls(lambda x: torch.softmax(x, 1, torch.float64)), nn.Linear(4, 2)),
        "b": nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 2)),
    }
    networks["a"][2].double()
    staged = split_all({task: network.eval() for task, network in networks.items()}, torch.rand(2, 4))
    assert staged["a"].locations == ("0",)


class Sizes(nn.Module):
    def __init__(self, swapped: bool) -> None:
        super().__init__()
        self.first, self.last, self.swapped = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Conv2d(CHANNELS, 2, 1), swapped

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        head, tail = x.shape[:2], x.shape[2:]
        x = x.reshape(tail + head if self.swapped else head + tail)
        return self.last(x.reshape(x.shape[0], CHANNELS, -1, 1))


def test_sizes_are_not_put_together_in_either_order() -> None:
    image = torch.randn(6, CHANNELS, 6, CHANNELS)
    networks = {"a": Sizes(False).eval(), "b": Sizes(True).eval()}
    networks["b"].load_state_dict(networks["a"].state_dict())
    branched = shared_whole(split_all(networks, image))(image)
    for task, network in networks.items():
        torch.testing.assert_close(branched[task], network(image))


class Skipping(nn.Module):
    """A residual block whose branch, skip or both begin with a layer that returns its argument."""

    def __init__(self, branch: nn.Module, skip: nn.Module, read_early: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.branch, self.skip, self.last = branch, skip, nn.Linear(CHANNELS, 2)
        self.read_early = read_early

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        early = self.stem(x)
        x = self.conv(self.branch(early)) + self.skip(early)
        return self.last(x.mean((2, 3))), (early.square() if self.read_early else x).mean()


@pytest.mark.parametrize(
    ("branch", "skip", "read_early"),
    [
        (nn.Identity(), nn.Sequential(), True),
        (nn.Dropout(0.2), nn.Identity(), False),
        (nn.Sequential(nn.Identity(), nn.Dropout(0.1)), nn.Dropout(0.2), True),
    ],
)
def test_values_that_are_read_before_and_behind_such_layers(
    branch: nn.Module, skip: nn.Module, read_early: bool
) -> None:
    plain, identity = nn.Sequential(), nn.Identity()
    networks: dict[str, nn.Module] = {
        "a": Skipping(copy.deepcopy(branch), copy.deepcopy(skip), read_early),
        "b": Skipping(plain, plain, False),
        "c": Skipping(identity, nn.Identity(), True),
    }
    for order in (("a", "b", "c"), ("c", "b", "a")):
        staged = split_all({task: networks[task] for task in order}, IMAGE)
        branched = shared_whole(staged)(IMAGE)
        for task in order:
            assert_evaluates_alike(networks[task], staged[task], IMAGE)
            torch.testing.assert_close(branched[task], networks[task].eval()(IMAGE))
            networks[task].train()


def test_networks_that_agree_are_not_changed() -> None:
    networks = {task: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.ReLU(), nn.Linear(4, 2)) for task in "ab"}
    staged = split_all(networks, torch.rand(2, 4), locations=["0", "1", "2"])
    assert "positive" not in "".join(stage.source for stage in (*staged["a"].stages, staged["a"].head))
    assert branchnet.split_all(networks, torch.rand(2, 4), locations=["1"])["b"].own_locations == ("1",)


def test_blocks_of_torchvision_and_timm_are_shared() -> None:
    from timm.models.resnet import BasicBlock
    from torchvision.models import resnet

    def network(block: type[nn.Module]) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, CHANNELS, 1), block(CHANNELS, CHANNELS), nn.Conv2d(CHANNELS, 2, 1)).eval()

    networks = {"torchvision": network(resnet.BasicBlock), "timm": network(BasicBlock)}
    networks["timm"].load_state_dict(networks["torchvision"].state_dict())
    image = torch.rand(2, 3, 8, 8)
    staged = split_all(networks, image, locations=["1"])
    branched = shared_whole(staged)(image)
    assert staged["timm"].first_difference is None
    for task, single in networks.items():
        assert torch.equal(staged[task](image), single(image))
        torch.testing.assert_close(branched[task], single(image))


@pytest.mark.slow
def test_resnet18_of_torchvision_and_timm_share_all_but_their_heads() -> None:
    import timm
    from torchvision.models import resnet18

    networks = {"torchvision": resnet18(num_classes=3), "timm": timm.create_model("resnet18", num_classes=3)}
    with_weights_of(networks["timm"], networks["torchvision"])
    image = torch.rand(2, 3, 32, 32)
    layers = ["layer1", "layer2", "layer3", "layer4"]
    for network in networks.values():
        network.eval()
    staged = split_all(networks, image[:1], locations=layers)
    head = sum(p.numel() for p in networks["timm"].fc.parameters())
    whole = sum(p.numel() for p in networks["timm"].parameters())
    branched = shared_whole(staged)(image)
    for task, network in networks.items():
        assert staged[task].own_locations == tuple(layers) and staged[task].trainable
        assert sum(staged[task].costs.params) == whole - head
        assert torch.equal(staged[task](image), network(image))
        torch.testing.assert_close(branched[task], network(image))
    assert staged["timm"].first_difference.shareable == pytest.approx((whole - head) / whole)


@pytest.mark.parametrize("merging", ["mean", "merge"])
def test_weights_of_two_writings_are_averaged(merging: str) -> None:
    steps = [("conv", 0, 1), ("norm, relu", 0, 1), ("nothing", 0, 5), ("conv", 0, 0), ("silu", 0, 2)]
    one = Written(steps, 1).eval()
    other = with_weights_of(Written(steps, 2), one).eval()
    staged = split_all({"one": one, "other": other}, IMAGE)
    tree = Tree.shared(["one", "other"], len(staged["one"].stages))
    branched = branchnet.build(tree, staged, init=merging, probe=torch.randn(16, CHANNELS, 6, 6)).eval()
    torch.testing.assert_close(branched(IMAGE)["other"], one(IMAGE))


def test_a_fused_norm_keeps_its_names_and_is_not_touched() -> None:
    network = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), fused_norm(nn.ReLU), nn.Conv2d(CHANNELS, 2, 1))
    kind = type(network[1])
    staged = branchnet.split(network, IMAGE, locations=["1"])
    assert set(staged.original_state_dict()) == set(network.state_dict())
    assert type(network[1]) is kind
    assert staged.cuts[0][0].shape == (2, CHANNELS, 6, 6)
    assert float(staged.eval().stages[0](IMAGE)[0].detach().min()) == 0.0  # the place is behind the activation
    assert_evaluates_alike(network, staged, IMAGE)
    assert_trains_alike(network, staged, IMAGE)
