"""Constants of norms go with the weights: networks that differ in them share their layers."""

import pytest
import torch
from torch import nn

import branchnet
from branchnet.errors import SplitError

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def network(eps, outputs, seed):
    torch.manual_seed(seed)
    body = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=eps), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4, eps=eps)]
    made = nn.Sequential(*body, nn.Flatten(), nn.Linear(64, outputs))
    made[1].running_var.uniform_(1e-3, 1e-2)
    return made.eval()


def test_networks_share_up_to_their_heads_whatever_the_eps_of_their_norms():
    networks = {"detect": network(1e-3, 2, 0), "classify": network(1e-5, 2, 1)}
    staged = branchnet.split_all(networks, IMAGES, locations=["1", "4"])
    for task, own in networks.items():
        assert torch.equal(staged[task](IMAGES), own(IMAGES))
    for donor in networks:
        tree = branchnet.Tree.shared(list(networks), 2)
        one = branchnet.build(tree, staged, donors=[[donor], [donor]], init="donor").eval()
        assert torch.equal(one(IMAGES)[donor], networks[donor](IMAGES))


def test_the_mean_of_equal_weights_with_another_eps_gives_what_each_network_gives():
    """Running variances that differ by exactly what the eps do make networks of one function."""
    networks = {"detect": network(1e-3, 2, 0), "classify": network(1e-5, 2, 0)}
    for own in networks.values():
        own[4].eps = 1e-5
    networks["classify"][1].running_var += 1e-3 - 1e-5
    wanted = networks["detect"](IMAGES)
    staged = branchnet.split_all(networks, IMAGES, locations=["1", "4"])
    one = branchnet.build(branchnet.Tree.shared(list(networks), 2), staged, init="mean").eval()
    for output in one(IMAGES).values():
        torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-6)


class Scaled(nn.LayerNorm):
    """A norm of the user's, which may do anything with its constant."""

    def forward(self, x):
        return super().forward(x) * self.eps


def test_constants_of_users_layers_are_structure():
    networks = {
        str(eps): nn.Sequential(nn.Linear(4, 4), Scaled(4, eps), nn.Linear(4, 2)).eval() for eps in (1e-3, 1e-5)
    }
    staged = branchnet.split_all(networks, torch.zeros(2, 4))
    assert staged["0.001"].locations == ("0",)


def test_a_place_before_which_nothing_is_computed_with_weights_is_not_shared():
    networks = {
        "a": nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval(),
        "b": nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval(),
    }
    with pytest.raises(SplitError, match="too little in common"):
        branchnet.split_all(networks, torch.zeros(2, 2, 2))
