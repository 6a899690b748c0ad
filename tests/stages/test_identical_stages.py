"""Frozen backbones and adapters: networks that are identical up to some stage share it without loss."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import branchnet
from branchnet.stages import identical_prefixes

IMAGES = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def layer(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]


class Adapted(nn.Module):
    """A layer with an unmerged low-rank adapter, as LoRA has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base, self.down, self.up = nn.Conv2d(width, width, 1), nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


@pytest.fixture
def networks() -> dict[str, nn.Module]:
    """One backbone; c was trained from stage 0 on, the adapters of a and b differ from the third location on."""
    torch.manual_seed(0)
    backbone = nn.Sequential(*layer(3, 8), *layer(8, 8), Adapted(8))
    made = {}
    for k, task in enumerate("abc"):
        own = copy.deepcopy(backbone)
        torch.manual_seed(k)
        nn.init.normal_(own[6].up.weight)
        made[task] = nn.Sequential(*own, nn.Flatten(), nn.Linear(8 * 256, 3)).eval()
    with torch.no_grad():
        made["c"][0].weight += 1e-7
    return made


@pytest.fixture
def staged(networks):
    return branchnet.split_all(networks, IMAGES[:1], locations=["2", "5", "6"])


def test_identical_weights_are_recognised_up_to_the_first_difference(staged):
    assert identical_prefixes(staged) == ((("a", "b"), ("c",)), (("a", "b"), ("c",)), (("a",), ("b",), ("c",)))
    assert staged["a"].costs.identical == identical_prefixes(staged)


@pytest.mark.parametrize("change", ["weight", "buffer", "eps", "counter"])
def test_all_that_evaluation_reads_must_be_equal(networks, change):
    norm = networks["b"][4]
    with torch.no_grad():
        if change == "weight":
            norm.bias[3] = torch.nextafter(norm.bias[3], torch.tensor(1.0))
        elif change == "buffer":
            norm.running_mean[0] += 1
        elif change == "eps":
            norm.eps = 1e-3
        else:
            norm.num_batches_tracked += 1
    staged = branchnet.split_all(networks, IMAGES[:1], locations=["2", "5", "6"])
    groups = [("a", "b") in stage for stage in identical_prefixes(staged)]
    assert groups == [True, change == "counter", False]


def test_their_affinity_is_one_whatever_is_rounded(staged):
    for measure in (branchnet.rsa, branchnet.cka):
        values = measure(staged, IMAGES).values
        assert values[0, 0, 1] == values[1, 0, 1] == 1 and values[2, 0, 1] < 1 > values[0, 0, 2]


def test_sharing_them_costs_nothing_and_loses_nothing(networks, staged):
    rounded = np.full((3, 3, 3), 0.5) + 0.5 * np.eye(3)
    rounded[:, 0, 1] = rounded[:, 1, 0] = [1 - 1e-7, 1 - 1e-7, 0.3]
    affinity = branchnet.Affinity(["a", "b", "c"], ["2", "5", "6"], rounded)
    found = branchnet.search(affinity, staged, "100% params")
    assert found.cost == 0 and found.tree.widths == (2, 2, 3)
    assert found.lossless == ((("a", "b"),), (("a", "b"),), ())
    assert "lossless, as the weights are identical: stages 0-1 of a, b" in str(found)
    one = branchnet.build(found, staged).eval()
    with torch.no_grad():
        for task, output in one(IMAGES).items():
            assert torch.equal(output, networks[task](IMAGES))
    with torch.no_grad():
        staged["b"].stages[0].get_submodule("0").weight += 1
    assert branchnet.search(affinity, staged, "100% params").lossless == ((), (), ())


def test_what_training_steps_do_is_not_touched(staged):
    values = np.full((3, 3, 3), 0.5) + 0.5 * np.eye(3)
    affinity = branchnet.Affinity(["a", "b", "c"], ["2", "5", "6"], values, measure="gradient cosine")
    found = branchnet.search(affinity, staged, "95% params", objective="sum-pair")
    assert found.cost == branchnet.clustering_cost(found.tree, affinity, objective="sum-pair")
