"""Sizes of trees that a search counts, against the networks that are then built."""

import torch
from torch import nn

import branchnet


def layer():
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh())


def test_stitches_between_staged_networks_are_counted_with_stitching_losses():
    torch.manual_seed(0)
    networks = {task: nn.Sequential(layer(), layer(), layer()).eval() for task in "abc"}
    probe = torch.randn(80, 8)
    staged = branchnet.split_all(networks, probe[:2], locations=["0", "1"])
    losses = branchnet.stitch_affinity(staged, probe, bootstrap=0)
    shared = branchnet.Constraints(shared_stages=2)
    found = branchnet.search(losses, staged, "100% params", objective="medoid", constraints=shared)
    # 2 stages of 72 numbers, 3 heads of 72, and 2 stitches of 8 x 8 + 8 into the heads of other donors.
    assert found.size == 2 * 72 + 3 * 72 + 2 * 72
    branched = branchnet.build(found.tree, staged, affinity=losses, probe=probe)
    assert sum(parameter.numel() for parameter in branched.parameters()) == found.size
