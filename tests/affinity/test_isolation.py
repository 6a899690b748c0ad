"""Networks whose layers merge weights in evaluation come back with the weights that they had."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import branchnet
from branchnet.affinity.features.isolation import untouched


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
