"""Distances of outputs from the own networks' ones, against one minus R squared of all inputs at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.benchmarks.zoo_entries.modules import zoo


@pytest.mark.parametrize("several", [False, True])
def test_distances_are_the_unexplained_variance_and_own_networks_run_once(several: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 4)
    inputs = (x, torch.randn(50, 4)) if several else x
    networks = {"a": nn.Bilinear(4, 4, 3) if several else nn.Linear(4, 3), "b": nn.Bilinear(4, 4, 2)}
    if not several:
        networks["b"] = nn.Linear(4, 2)
    runs: list[str] = []
    for task, network in networks.items():
        network.register_forward_hook(lambda *_, task=task: runs.append(task))
    judged = zoo("judging").HeldOut(inputs, networks, {}, batch_size=16)
    assert len(runs) == 2 * 4

    def answer(task: str, given: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
        network = networks[task]
        return network(*given) if isinstance(given, tuple) else network(given)

    found = judged.distances(lambda given: {task: 0.5 * answer(task, given) for task in networks})
    for task in networks:
        own = answer(task, inputs)
        expected = (0.5 * own).square().sum() / (own - own.mean(0)).square().sum()
        assert found[task] == pytest.approx(float(expected), rel=1e-4)
    assert judged.distances(lambda given: {task: answer(task, given) for task in networks}) == {"a": 0.0, "b": 0.0}
