"""Every way to compile gives what the network gives when it is run eagerly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import branchnet
from branchnet.inference import FusedNetwork
from tests.gpu.toys import TASKS, TREE, assert_close, branched, images

OPTIONS: list[tuple[dict[str, Any], float]] = [
    ({}, 1e-3),
    ({"mode": "reduce-overhead"}, 1e-3),
    ({"regions": True, "mode": "reduce-overhead"}, 1e-3),
    ({"fuse": True, "mode": "reduce-overhead"}, 1e-3),
    ({"fuse": True}, 1e-3),
    ({"fuse": "auto"}, 1e-3),
    ({"fold_batchnorm": True, "channels_last": True}, 1e-3),
    ({"autocast": torch.bfloat16, "mode": "reduce-overhead"}, 5e-2),
    ({"autocast": torch.float16}, 1e-2),
    ({"cast": torch.bfloat16, "channels_last": True, "fold_batchnorm": True}, 5e-2),
]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "tolerance"), OPTIONS, ids=[str(options) for options, _ in OPTIONS])
def test_every_option_equals_eager_for_several_sizes(device: str, options: dict[str, Any], tolerance: float) -> None:
    network = branched().to(device)
    compiled = branchnet.compile(network, images(2).to(device), **options)
    for batch in (2, 5, 1, 2):
        x = images(batch, seed=batch).to(device)
        with torch.no_grad():
            expected = network(x)
        for _ in range(3):  # with CUDA graphs: warm-up, recording, replay
            found = compiled(x)
        assert all(value.device == x.device for value in found.values())
        assert_close(found, expected, tolerance)
    some, x = ["depth", "count"], images(2, seed=3).to(device)
    with torch.no_grad():
        assert_close(compiled(x, some), network(x, some), tolerance)


@pytest.mark.slow
def test_some_of_the_tasks(device: str) -> None:
    network = branched().to(device)
    compiled = branchnet.compile(network, images(2).to(device))
    for tasks in (["scene"], ["depth", "count"]):
        x = images(5, seed=5).to(device)
        with torch.no_grad():
            assert_close(compiled(x, tasks), network(x, tasks))


@pytest.mark.parametrize("seed", range(3))
def test_fused_equals_unfused_eagerly(device: str, seed: int) -> None:
    network = branched(branchnet.random_tree(TASKS, TREE.depth, seed=seed)).to(device)
    fused = FusedNetwork(network, range(TREE.depth))
    x = images(3).to(device)
    with torch.no_grad():
        assert_close(fused(x), network(x))
        assert_close(fused(x, ["edges", "scene"]), network(x, ["edges", "scene"]))
    assert all(parameter.device.type == device for parameter in fused.unfuse().parameters())
