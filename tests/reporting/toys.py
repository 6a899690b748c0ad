"""A small network whose costs can be derived by hand."""

import torch
from torch import nn

import branchnet
from branchnet.clustering import Tree

EXAMPLE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
TASKS = ("a", "b", "c")


class Toy(nn.Module):
    """Two convolutional stages on 8 x 8 images and a linear head."""

    def __init__(self, classes):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.classifier = nn.Linear(6, classes)

    def forward(self, x):
        return self.classifier(self.second(self.first(x)).mean((2, 3)))


def toy_networks():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {task: Toy(2 + i).eval() for i, task in enumerate(TASKS)}


def toy_branched():
    """Stage `first` shared by a, b and c; stage `second` shared by a and c."""
    tree = Tree(TASKS, [[TASKS], [("a", "c"), ("b",)]])
    staged = branchnet.split_all(toy_networks(), EXAMPLE, locations=["first", "second"])
    return branchnet.build(tree, staged, init="donor").eval()
