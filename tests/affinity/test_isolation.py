"""Networks whose layers merge weights in evaluation come back with the weights that they had."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet.affinity.features.isolation import untouched
from tests.stages.checks import assert_untouched, everything


class LowRank(nn.Module):
    """A linear layer with an update that is added to its weights in evaluation, as LoRA layers do it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(4, 4)
        self.update = nn.Parameter(torch.randn(4, 4))
        self.merged = False

    def train(self, mode: bool = True) -> LowRank:
        if mode == self.merged:
            self.base.weight.data = self.base.weight.data + (-self.update.data if mode else self.update.data)
            self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (0 if self.merged else x @ self.update.T)


def test_merged_weights_are_unmerged_again() -> None:
    network = LowRank()
    before = copy.deepcopy(network.state_dict())
    with untouched(network):
        torch.testing.assert_close(network.base.weight, before["base.weight"] + before["update"])
    assert network.training and not network.merged
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, before[name])


def test_weights_that_were_merged_before_stay_so() -> None:
    network = LowRank().eval()
    before = copy.deepcopy(network.state_dict())
    with untouched(network):
        pass
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_comparing_networks_leaves_merging_layers_as_they_were() -> None:
    torch.manual_seed(0)
    networks = {task: nn.Sequential(LowRank(), nn.Tanh(), nn.Linear(4, 1)) for task in ("a", "b")}
    before = {task: copy.deepcopy(network.state_dict()) for task, network in networks.items()}
    branchnet.rsa(networks, torch.randn(12, 4), locations=["1"])
    for task, network in networks.items():
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(tensor, before[task][name])


class WritesToItself(nn.Module):
    """Counts its calls in evaluation, too, and normalises its weights before it uses them."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2, self.l3 = (nn.Linear(4, 4) for _ in range(3))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        x = torch.tanh(self.l1(x) + self.count)
        with torch.no_grad():
            self.l2.weight.div_(self.l2.weight.norm(dim=1, keepdim=True))
        return self.l3(torch.tanh(self.l2(x)))


@pytest.mark.parametrize("measure", [branchnet.rsa, branchnet.cka, branchnet.stitch_affinity], ids=lambda f: f.__name__)
def test_networks_that_write_to_themselves_are_bit_exact_as_before(measure: Callable[..., object]) -> None:
    networks, x = {task: WritesToItself() for task in ("a", "b")}, torch.randn(40, 4)
    before = {task: everything(network) for task, network in networks.items()}
    measure(networks, x, locations=["l2"])
    for task, network in networks.items():
        assert_untouched(before[task], everything(network))


@pytest.mark.parametrize("moved", [False, True])
def test_what_is_written_to_parameters_is_undone(moved: bool) -> None:
    network = nn.Linear(4, 4)
    before = everything(network)
    with untouched(network, torch.device("cpu") if moved else None):
        network.weight.mul_(2)
        network.bias.data = torch.zeros(4)
    assert_untouched(before, everything(network))
