"""Parameters and multiply-adds of branched networks of five backbones against the clustering room's prediction."""

from __future__ import annotations

import random

import pytest
import torch

import branchnet
from branchnet import StagedNetwork
from branchnet.clustering import tree_size
from branchnet.stages.flops import OperatorCounter, without_attention_fast_path

TASKS = ("a", "b", "c", "d")
BACKBONES = {
    "torchvision:resnet18": ("num_classes", 64),
    "torchvision:mobilenet_v3_small": ("num_classes", 64),
    "timm:convnext_atto": ("num_classes", 64),
    "timm:vit_tiny_patch16_224": ("num_classes", 64),
    "timm:regnetx_002": ("num_classes", 64),
}


def staged(name: str) -> tuple[dict[str, StagedNetwork], torch.Tensor]:
    """Networks with 3 to 6 classes, on the meta device: nothing is computed, shapes are all that counts."""
    argument, size = BACKBONES[name]
    extra = {"img_size": size} if "vit" in name else {}
    with torch.device("meta"):
        made = {t: branchnet.create(name, **{argument: 3 + i}, **extra).eval() for i, t in enumerate(TASKS)}
        example = torch.empty(2, 3, size, size)
    return branchnet.split_all(made, example, locations=4), example


@pytest.mark.parametrize("name", BACKBONES)
def test_parameters_and_multiply_adds_are_those_predicted(name: str) -> None:
    cut, example = staged(name)
    costs, heads = cut["a"].costs, {task: network.head_cost for task, network in cut.items()}
    for seed in range(4):
        tree = branchnet.random_tree(TASKS, 4, seed=random.Random(seed))
        branched = branchnet.build(tree, cut, init="donor")
        held = {id(parameter): parameter.numel() for parameter in branched.parameters()}
        assert sum(held.values()) == tree_size(tree, costs, head_costs=heads, unit="params")
        counter = OperatorCounter()
        with torch.no_grad(), without_attention_fast_path(), counter:
            branched(example)
        assert counter.flops == tree_size(tree, costs, head_costs=heads, unit="flops")
