"""Branched networks with stitches: exact where the networks are reparametrisations of each other, sane elsewhere."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import branchnet


def affine_twin(network, linear, following):
    """A network of equal function whose features after layer `linear` are an affine map of the other's."""
    twin = copy.deepcopy(network).double()
    before, after = twin[linear], twin[following]
    channels = before.weight.shape[0]
    mixing = torch.eye(channels).double() + 0.3 * torch.randn(channels, channels).double() / channels**0.5
    shift = torch.randn(channels).double()
    inverse = torch.linalg.inv(mixing)
    with torch.no_grad():
        flat = before.weight.flatten(1)
        before.weight.copy_((mixing @ flat).reshape(before.weight.shape))
        before.bias.copy_(mixing @ before.bias + shift)
        kernel = after.weight.movedim(1, -1) @ inverse
        after.weight.copy_(kernel.movedim(-1, 1))
        after.bias.sub_(
            torch.einsum("oi...,i->o", after.weight, shift)
            if after.weight.dim() == 2
            else after.weight.sum((2, 3)) @ shift
        )
    return twin


def convolutional(width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.ReLU(),
        nn.Conv2d(width, width, 1),
        nn.Conv2d(width, 5, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(5 * 4 * 4, 2),
    )


def vectors(width):
    return nn.Sequential(
        nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Linear(width, 7), nn.Tanh(), nn.Linear(7, 2)
    )


KINDS = {
    "images": (convolutional, lambda: torch.randn(120, 3, 8, 8).double()),
    "vectors": (vectors, lambda: torch.randn(600, 6).double()),
    "tokens": (vectors, lambda: torch.randn(60, 9, 6).double()),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_affine_reparametrisations_are_undone(kind, seed):
    torch.manual_seed(seed)
    make, inputs = KINDS[kind]
    first = make(4).double().eval()
    networks = {"a": first, "b": affine_twin(first, 2, 3).eval()}
    probe = inputs()
    torch.testing.assert_close(networks["a"](probe), networks["b"](probe))
    staged = branchnet.split_all(networks, probe[:2], locations=["2", "4"])
    tree = branchnet.Tree(["a", "b"], [[["a", "b"]], [["a"], ["b"]]])
    branched = branchnet.build(tree, staged, init="stitch", probe=probe).eval()
    found = branched(probe)
    assert torch.equal(found["a"], staged["a"](probe))  # the donor's own path has no stitch
    # The ridge of 1e-3 keeps the map from being exact; without it the outputs agree to rounding.
    spread = networks["b"](probe).std()
    assert (found["b"] - networks["b"](probe)).abs().max() < 0.05 * spread
    ((edge, stitch),) = branched.stitches.items()
    assert edge == ("nodes.0.0", "nodes.1.1")
    assert (stitch.source, stitch.target, stitch.rank, stitch.folded) == ("a", "b", 4, False)
    assert stitch.size == 4 * 4 + 4
    assert stitch.r2 > 0.99
