"""A study of seconds, which tests and the processes that they start have in common."""

import sys

import torch
from torch import nn
from torch.nn.functional import mse_loss

import branchnet
from branchnet import Tree
from branchnet.training import r_squared

TASKS = ("sum", "first", "square")
ARMS = {
    "found": Tree(TASKS, [[TASKS], [("sum", "first"), ("square",)]]),
    "shared": Tree.shared(TASKS, 2),
    "separate": Tree.separate(TASKS, 2),
    "random": 2,
}


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))


def rows():
    def some(seed):
        x = torch.rand(96, 4, generator=torch.Generator().manual_seed(seed))
        labels = {"sum": x.sum(1, keepdim=True), "first": x[:, :1], "square": (x**2).sum(1, keepdim=True)}
        return x, labels

    return some(0), some(1)


def settings():
    train, test = rows()
    return {
        "train": train,
        "test": test,
        "losses": dict.fromkeys(TASKS, mse_loss),
        "metrics": dict.fromkeys(TASKS, r_squared()),
        "seeds": [0, 1],
        "steps": 8,
        "example": train[0][:2],
        "locations": ["1", "3"],
        "learning_rate": 1e-2,
        "keep": "last",
        "progress": False,
    }


if __name__ == "__main__":
    branchnet.compare(ARMS, dict.fromkeys(TASKS, network), folder=sys.argv[1], **settings())
