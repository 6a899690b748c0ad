"""bfloat16: outputs, affinities and tables of networks in it are close to those in float32."""

from __future__ import annotations

import numpy as np
import torch

import branchnet
from branchnet.inference import FusedNetwork
from tests.gpu.toys import TREE, assert_close, branched, images, networks, staged

HALF = torch.bfloat16


def test_a_network_in_bfloat16(device: str) -> None:
    network = branched().to(device)
    x = images(3).to(device)
    with torch.no_grad():
        expected = network(x)
        found = network.to(HALF)(x.to(HALF))
    assert {value.dtype for value in found.values()} == {HALF}
    assert_close(found, expected, 5e-2)


def test_fused_nodes_in_bfloat16(device: str) -> None:
    network = branched().to(device, HALF)
    x = images(3).to(device, HALF)
    with torch.no_grad():
        assert_close(FusedNetwork(network, range(TREE.depth))(x), network(x), 5e-2)


def test_autocast_without_compiling(device: str) -> None:
    network = branched().to(device)
    x = images(3).to(device)
    with torch.no_grad():
        expected = network(x)
        with torch.autocast(device, dtype=HALF):
            assert_close(network(x), expected, 5e-2)


def test_affinities_of_networks_in_bfloat16(device: str) -> None:
    probe = images(40)
    expected = branchnet.rsa(staged(networks()), probe, bootstrap=0)
    made = {task: network.to(device, HALF) for task, network in staged(networks()).items()}
    found = branchnet.rsa(made, probe.to(HALF), bootstrap=0)
    np.testing.assert_allclose(found.values, expected.values, rtol=0, atol=3e-2)


def test_the_latency_table_of_networks_in_bfloat16(device: str) -> None:
    made = {task: network.to(device, HALF) for task, network in staged(networks()).items()}
    table = branchnet.latency_table(made, images().to(device, HALF), compiled=False, repeats=3)
    assert table.predict(TREE) > 0


def test_a_step_of_distillation_under_autocast(device: str) -> None:
    donors = {task: network.to(device) for task, network in networks().items()}
    network = branched().to(device)
    with torch.autocast(device, dtype=HALF):
        history = branchnet.distill(network, donors, images(32), steps=3, batch_size=16, progress=False)
    assert all(np.isfinite(losses).all() for losses in history.losses.values())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
