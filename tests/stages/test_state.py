"""Buffers are read and written at every call, constants are compared by what they say; the network itself is judge."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet import Tree
from branchnet.errors import SplitError
from branchnet.stages import StagedNetwork, candidate_locations, split, split_all
from tests.stages.checks import assert_evaluates_alike, assert_same_keys, assert_trains_alike

ROWS = torch.randn(5, 8, generator=torch.Generator().manual_seed(3))


class Layers(nn.Module):
    """Four layers with `between` after the second one; subclasses hold buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2, self.l3, self.l4 = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.l4(torch.relu(self.l3(self.between(torch.relu(self.l2(torch.relu(self.l1(x))))))))

    def between(self, x: Tensor) -> Tensor:
        return x


class Projects(Layers):
    """Random Fourier features: the buffer is transposed, which depends on nothing but it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("directions", torch.randn(8, 8))

    def between(self, x: Tensor) -> Tensor:
        return torch.sin(x @ self.directions.T)


class Centres(Layers):
    """Writes to its buffers in training, each in the way that `form` says."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.register_buffer("centre", torch.ones(8))
        self.register_buffer("count", torch.zeros(()))

    def between(self, x: Tensor) -> Tensor:
        mean = x.detach().mean(0)
        if self.training:
            self.count += 1
            if self.form == "copy":
                self.centre.copy_(0.5 * self.centre + 0.5 * mean)
            elif self.form == "in place":
                self.centre.mul_(0.5).add_(0.5 * mean)
            elif self.form == "operators":
                self.centre *= 0.5
                self.centre += 0.5 * mean
            elif self.form == "assigned":
                self.centre = 0.5 * self.centre + 0.5 * mean
            elif self.form == "a view":
                self.centre[2:].mul_(0.5)
            elif self.form == "reset":
                self.centre = torch.arange(8.0)
        return x - self.centre[None] * 2 + self.count


FORMS = ["copy", "in place", "operators", "assigned", "a view", "reset"]


def assert_same_after_training(network: nn.Module, staged: StagedNetwork) -> None:
    """After several training passes both have the same buffers and outputs in either mode."""
    network, staged = copy.deepcopy(network).train(), copy.deepcopy(staged).train()
    for seed in range(4):
        rows = torch.randn(6, 8, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(network(rows), staged(rows))
    own = staged.original_state_dict()
    assert all(torch.equal(buffer, own[name]) for name, buffer in network.named_buffers())
    assert torch.equal(network.eval()(ROWS), staged.eval()(ROWS))


@pytest.mark.parametrize("form", FORMS)
def test_buffers_are_written_in_training_as_the_network_writes_them(form: str) -> None:
    network = Centres(form)
    staged = split(network, ROWS, locations=["l1", "l2", "l3"])
    assert staged.trainable and staged.traced_by == "fx"
    assert_same_keys(network, staged)
    assert_evaluates_alike(network, staged, ROWS)
    assert_trains_alike(network, staged, ROWS)
    assert_same_after_training(network, staged)


@pytest.mark.parametrize("form", ["copy", "operators", "assigned"])
def test_an_exported_network_writes_to_its_buffers_too(form: str) -> None:
    class Exported(Centres):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.stack([*x]))  # torch.fx cannot iterate over a tensor

    network = Exported(form)
    staged = split(network, ROWS, locations=["l1", "l2"])
    assert staged.traced_by == "export"
    assert staged.trainable
    assert_evaluates_alike(network, staged, ROWS, 1e-6)
    network, staged = copy.deepcopy(network).train(), copy.deepcopy(staged).train()
    for _ in range(3):
        torch.testing.assert_close(staged(ROWS), network(ROWS), rtol=1e-6, atol=1e-6)
    for name, buffer in network.named_buffers():
        torch.testing.assert_close(staged.original_state_dict()[name], buffer, rtol=1e-6, atol=1e-6)


def test_what_a_buffer_gives_is_computed_again_after_loading(tmp_path: Path) -> None:
    networks = {task: Projects().eval() for task in ("a", "b")}
    staged = split_all(networks, ROWS)
    branched = branchnet.build(
        Tree(["a", "b"], [[["a"], ["b"]]] * len(staged["a"].stages)), staged, init="donor"
    ).eval()
    branchnet.save(branched, tmp_path / "saved")
    others = {task: Projects() for task in networks}
    loaded = branchnet.load(tmp_path / "saved", networks=others)
    for task, network in networks.items():
        assert torch.equal(loaded(ROWS)[task], network(ROWS))

    staged["a"].load_original_state_dict(networks["b"].state_dict())
    assert torch.equal(staged["a"](ROWS), networks["b"](ROWS))


class TwoPlaces(Layers):
    """Counts its calls after the first layer and reads the count after the third."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.l1(x)
        self.count += x.detach().mean()
        return self.l4(self.l3(self.l2(x)) + self.count)


def test_no_cut_parts_a_write_from_another_use() -> None:
    assert [place.name for place in candidate_locations(TwoPlaces(), ROWS)] == ["l1"]
    network = TwoPlaces()
    staged = split(copy.deepcopy(network), ROWS, locations=["l1"])
    for _ in range(3):
        assert torch.equal(network(ROWS), staged(ROWS))


def test_statistics_are_read_when_the_network_reads_them() -> None:
    class ReadsBefore(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(8)

        def between(self, x: Tensor) -> Tensor:
            before = self.norm.running_mean * 2
            return self.norm(x) + before

    network = ReadsBefore()
    assert_same_after_training(network, split(copy.deepcopy(network), ROWS, locations=["l1", "l2"]))


class Shifts(Layers):
    """Adds constants that it makes."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = values

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(8)
        other = torch.zeros(8)
        total += x.mean(0)
        x = self.l2(torch.relu(self.l1(x + torch.tensor(self.values)))) * torch.arange(8) + total + other
        return self.l4(torch.relu(self.l3(x)))


def test_constants_are_made_again_at_every_call() -> None:
    network = Shifts([1.0] * 8)
    staged = split(network, ROWS, locations=["l1", "l2", "l3"])
    assert staged.traced_by == "fx"
    for _ in range(3):
        assert torch.equal(network(ROWS), staged(ROWS))
    assert_trains_alike(network, staged, ROWS)
    assert_same_keys(network, staged)


@pytest.mark.parametrize("init", ["mean", "merge"])
def test_networks_with_equal_constants_have_one_structure(init: str) -> None:
    first = Shifts([1.0, 2.0, 3.0, 4.0] * 2).eval()
    networks = {"a": first, "b": copy.deepcopy(first)}
    staged = split_all(networks, ROWS, locations=["l1", "l2", "l3"])
    tree = Tree(["a", "b"], [[["a", "b"]]] * 3)
    branched = branchnet.build(tree, staged, init=init, probe=torch.randn(32, 8)).eval()  # type: ignore[arg-type]
    torch.testing.assert_close(branched(ROWS)["b"], first(ROWS), rtol=1e-5, atol=1e-5)


def test_other_constants_are_another_structure() -> None:
    networks = {"a": Shifts([1.0] * 8), "b": Shifts([2.0] * 8)}
    networks["b"].load_state_dict(networks["a"].state_dict())
    with pytest.raises(SplitError, match="too little in common"):
        split_all(networks, ROWS)


def test_other_values_of_a_buffer_are_no_other_structure() -> None:
    staged = split_all({"a": Projects(), "b": Projects()}, ROWS, locations=["l1", "l3"])
    assert staged["a"].locations == ("l1", "l3")
