"""Stages measured on the GPU: what the table says, and that the networks stay where they are."""

from __future__ import annotations

import pytest
import torch

import branchnet
from branchnet import Budget, LatencyTable
from branchnet.inference import measure_latency
from tests.gpu.toys import LOCATIONS, TASKS, TREE, branched, images, networks, staged


def check(table: LatencyTable) -> None:
    assert table.tasks == TASKS and table.locations == tuple(LOCATIONS)
    assert all(cost > 0 for row in table.costs for cost in row[1:]) and all(row[0] == 0 for row in table.costs)
    assert set(table.head_costs) == set(TASKS) and all(cost > 0 for cost in table.head_costs.values())
    assert LatencyTable.from_dict(table.to_dict()) == table


def test_stages_are_measured_eagerly_on_another_device_than_the_networks(device: str) -> None:
    made = networks()
    table = branchnet.latency_table(staged(made), images(), device=device, compiled=False, repeats=3)
    check(table)
    assert (torch.cuda.get_device_name() if device == "cuda" else "cpu") in table.setting
    assert {tensor.device.type for network in made.values() for tensor in network.state_dict().values()} == {"cpu"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_stages_are_measured_compiled_fused_and_not(device: str, mode: str | None) -> None:
    table = branchnet.latency_table(staged(networks()), images(), device=device, mode=mode, fused=True, repeats=3)
    check(table)
    assert "compiled" in table.setting
    assert all(latency is not None for row in table.fused for latency in row[1:])


def test_a_budget_in_milliseconds_is_kept(device: str) -> None:
    made = staged(networks())
    table = branchnet.latency_table(made, images(), device=device, compiled=False, repeats=5)
    affinity = branchnet.rsa(made, images(12), device=device, bootstrap=0)
    budget = Budget.parse("90% latency")
    found = branchnet.search(affinity, table.costs, budget, head_costs=table.head_costs)
    separate = table.predict(branchnet.Tree.separate(TASKS, TREE.depth))
    assert found.unit == "latency" and table.predict(found.tree) <= 0.9 * separate * (1 + 1e-9)


def test_the_device_is_waited_for(cuda: str) -> None:
    """A call that only queues work must not look fast."""

    def sleep(x: torch.Tensor) -> torch.Tensor:
        torch.cuda._sleep(20_000_000)  # clock cycles: at the 2 GHz of an H100 that is 10 ms
        return x

    assert measure_latency(sleep, torch.zeros(1, device=cuda), repeats=3, warmup=1).median > 2e-3
    assert branched().to(cuda)(images().to(cuda))["scene"].is_cuda
