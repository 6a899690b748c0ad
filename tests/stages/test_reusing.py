"""Sums written in place stay in place where that is sound, and only there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet import Tree
from branchnet.inference import FusedNetwork
from branchnet.stages import StagedNetwork, candidate_locations, split
from tests.stages.checks import assert_evaluates_alike, assert_trains_alike
from tests.stages.toys import Block

IMAGE = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))


def in_place(staged: StagedNetwork) -> int:
    """How many operators of the stages and the head overwrite their operand."""
    return sum(each.source.count(f" {sign}= ") for each in (*staged.stages, staged.head) for sign in "+-*")


def assert_faithful(network: nn.Module) -> None:
    names = [place.name for place in candidate_locations(network, IMAGE)]
    for locations in (names, names[:1]):
        staged = split(network, IMAGE, locations=locations)
        assert_evaluates_alike(network, staged, IMAGE)
        assert_trains_alike(network, staged, IMAGE)


def test_every_residual_sum_of_a_resnet_is_written_in_place() -> None:
    from torchvision.models import resnet18

    network = resnet18(num_classes=3).eval()
    image = torch.randn(1, 3, 64, 64)
    staged = split(network, image, locations=["layer1", "layer2", "layer3", "layer4"])
    assert in_place(staged) == 8  # two blocks in each of four layers (He et al., 2016, Table 1)
    assert_evaluates_alike(network, staged, image)


class Sum(nn.Module):
    """x and y from the image, then what is asked for."""

    def __init__(self, then: str) -> None:
        super().__init__()
        self.conv, self.last, self.end = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1), nn.Linear(2, 3)
        self.then = then

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv(image)
        y = x * 2
        if self.then == "operand read later":
            kept = x.flatten(1)
            x += y
            return self.end(self.last(x * kept.mean()).mean((2, 3)))
        if self.then == "the input":
            image = image.flatten(2).view(image.shape)
            image += x
            return self.end(self.last(image).mean((2, 3)))
        if self.then == "a view":
            half = x[:, :2]
            half = half.contiguous()
            half -= y[:, :2]
            half *= 3.0
            return self.end(self.last(torch.cat([half, x[:, 2:]], 1)).mean((2, 3)))
        x += y.mean((2, 3), keepdim=True)
        return self.end(self.last(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("then", "count"), [("broadcast", 1), ("operand read later", 0), ("the input", 0), ("a view", 2)]
)
def test_only_memory_that_nobody_reads_is_overwritten(then: str, count: int) -> None:
    network = Sum(then)
    before = IMAGE.clone()
    if then in {"operand read later", "the input"}:  # the network itself overwrites what it reads, or its input
        staged = split(network.eval(), IMAGE, locations=["last"])
    else:
        assert_faithful(network)
        staged = split(network.eval(), IMAGE, locations=["last"])
    assert torch.equal(IMAGE, before)
    assert in_place(staged) == count


def test_a_cut_that_two_branches_read_is_not_overwritten() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            x += self.second(x)
            return x.mean((2, 3))

    networks = {"one": Late().eval(), "two": Late().eval()}
    staged = branchnet.split_all(networks, IMAGE, locations=["first"])
    branched = branchnet.build(Tree(("one", "two"), [[("one", "two")]]), staged, donors=[["one"]], init="donor").eval()
    together = branched(IMAGE)
    assert torch.equal(together["one"], networks["one"](IMAGE))
    assert torch.equal(together["two"], branched(IMAGE, tasks=["two"])["two"])


def test_a_sum_into_what_fused_nodes_share_still_fuses() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.last = nn.Conv2d(4, 4, 1), Block(), nn.Conv2d(4, 2, 1)
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = nn.functional.avg_pool2d(x, 3, 1, 1)
            y += self.conv(x)
            return self.last(self.block(y))

    networks = {task: Pooled().eval() for task in ("one", "two", "three")}
    staged = branchnet.split_all(networks, IMAGE, locations=["stem", "block"])
    tasks = tuple(networks)
    tree = Tree(tasks, [[tasks], [(task,) for task in tasks]])
    branched = branchnet.build(tree, staged, init="donor").eval()
    fused = FusedNetwork(branched, [1])
    with torch.no_grad():
        expected, found = branched(IMAGE), fused(IMAGE)
    for task in tasks:
        torch.testing.assert_close(found[task], expected[task], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["size", "zeros", "dtype", "type_as", "view_as"])
def test_a_value_that_takes_only_its_form_from_parameters_still_fuses(form: str) -> None:
    class Fitted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
            self.last, self.end = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            z = self.conv(x)
            if form == "size":
                y = nn.functional.interpolate(x[..., ::2, ::2], size=z.shape[-2:])
            elif form == "zeros":
                y = torch.zeros(z.shape)
            elif form == "dtype":
                y = (x * 2).double().to(self.conv.weight.dtype)
            else:
                y = (x * 2).type_as(self.conv.weight) if form == "type_as" else (x * 2).view_as(z)
            y += z
            return self.end(self.last(y))

    tasks = ("one", "two")
    staged = branchnet.split_all({task: Fitted().eval() for task in tasks}, IMAGE, locations=["stem", "last"])
    branched = branchnet.build(Tree(tasks, [[tasks], [(task,) for task in tasks]]), staged, init="donor").eval()
    with torch.no_grad():
        expected, found = branched(IMAGE), FusedNetwork(branched, [1])(IMAGE)
    for task in tasks:
        torch.testing.assert_close(found[task], expected[task], rtol=1e-5, atol=1e-5)
