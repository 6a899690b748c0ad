"""Networks, their examples and the probe on different devices; networks that move after they were split or compiled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet import Tree
from branchnet.inference import CompiledNetwork
from tests.gpu.toys import TASKS, TREE, assert_close, branched, images, networks, staged


class Positions(nn.Module):
    """Makes tensors in its forward pass, where its inputs are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        output: Tensor = self.head(torch.tanh(self.body(x + places)) + torch.ones(6, device=x.device))
        return output


class Checking(Positions):
    """The same with code that torch.fx cannot trace."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > 64:
            raise ValueError("too long")
        return super().forward(x)


def devices_of(module: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in module.state_dict().values()}


def test_split_and_built_on_the_cpu_run_on_the_device(device: str) -> None:
    on_cpu = branched()
    with torch.no_grad():
        expected = on_cpu(images(3))
        assert_close(on_cpu.to(device)(images(3).to(device)), expected)


def test_split_and_built_on_the_device(device: str) -> None:
    made = {task: network.to(device) for task, network in networks().items()}
    cut = branchnet.split_all(made, images().to(device), locations=["stem", "middle", "deep"])
    network = branchnet.build(TREE, cut, init="donor").eval()
    assert devices_of(network) == {device}
    with torch.no_grad():
        assert_close(network(images(3).to(device)), branched()(images(3)))


@pytest.mark.parametrize("exported", [False, True])
def test_tensors_that_a_network_makes_are_made_where_it_runs(device: str, exported: bool) -> None:
    made = {task: Checking().eval() if exported else Positions().eval() for task in "ab"}
    cut = branchnet.split_all(made, torch.rand(2, 6), locations=["body"])
    assert cut["a"].traced_by == ("export" if exported else "fx")
    network = branchnet.build(Tree.shared(("a", "b"), 1), cut, init="donor").eval()
    x = torch.rand(3, 6)
    with torch.no_grad():
        expected = network(x)
        found = network.to(device)(x.to(device))
    assert all(value.device.type == device for value in found.values())
    assert_close(found, expected)


def test_affinities_of_networks_on_the_cpu_measured_on_the_device(device: str) -> None:
    made, probe = networks(), images(20)
    cut = staged(made)
    before = {
        task: {name: value.clone() for name, value in network.state_dict().items()} for task, network in cut.items()
    }
    elsewhere = branchnet.rsa(cut, probe, comparison="pearson", bootstrap=0, device=device)
    for task, network in cut.items():
        assert devices_of(network) == {"cpu"}
        assert all(torch.equal(before[task][name], value) for name, value in network.state_dict().items())
    moved = {task: network.to(device) for task, network in cut.items()}
    there = branchnet.rsa(moved, probe, comparison="pearson", bootstrap=0)
    np.testing.assert_allclose(elsewhere.values, there.values, rtol=0, atol=1e-5)


def test_networks_on_different_devices_are_compared(device: str) -> None:
    probe = images(20)
    cut = staged(networks())
    expected = branchnet.rsa(cut, probe, comparison="pearson", bootstrap=0)
    cut["depth"].to(device)
    found = branchnet.rsa(cut, probe, comparison="pearson", bootstrap=0)
    np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=1e-4)
    assert devices_of(cut["depth"]) == {device} and devices_of(cut["scene"]) == {"cpu"}


@pytest.mark.slow
def test_a_network_that_moves_after_it_was_compiled_is_compiled_there(device: str) -> None:
    network = branched()
    compiled = CompiledNetwork(network, mode="reduce-overhead")
    with torch.no_grad():
        expected = network(images())
        assert_close(compiled(images()), expected)
        network.to(device)
        for _ in range(3):
            kept = compiled(images().to(device))
        compiled(images(seed=5).to(device))
    assert all(value.device.type == device for value in kept.values())
    assert_close(kept, expected)
    assert list(kept) == list(TASKS)
