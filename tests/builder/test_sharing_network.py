"""Networks whose sharing is not nested: against the stages composed by hand, sizes counted, saved and loaded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import branchnet
from branchnet import Sharing
from branchnet.builder import SharingNetwork
from branchnet.errors import BranchnetError, BuildError, CheckpointError, SpecError
from branchnet.specification import SharingArchitecture

TASKS = ("depth", "edges", "normals")
SHARING = Sharing(
    TASKS, [[["depth", "edges"], ["normals"]], [["depth"], ["edges", "normals"]], [["depth", "normals"], ["edges"]]]
)
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def staged() -> dict[str, branchnet.stages.StagedNetwork]:
    torch.manual_seed(0)
    networks = {
        task: branchnet.create("branchnet:scene_network", outputs=outputs, width=2).eval()
        for task, outputs in zip(TASKS, (1, 1, 3), strict=True)
    }
    return branchnet.split_all(networks, IMAGES, locations=["layer1", "layer2", "layer3"])


def by_hand(staged: dict[str, branchnet.stages.StagedNetwork], donors: list[str], task: str) -> torch.Tensor:
    cut = staged[donors[0]].stages[0](IMAGES)
    for d, donor in enumerate(donors[1:], start=1):
        cut = staged[donor].stages[d](*cut)
    return staged[task].head(*cut)


def test_each_task_runs_the_donors_of_its_own_clusters(staged: dict[str, branchnet.stages.StagedNetwork]) -> None:
    network = branchnet.build(SHARING, staged)
    assert isinstance(network, SharingNetwork)
    assert network.donors == (("depth", "normals"), ("depth", "edges"), ("depth", "edges"))
    paths = {"depth": ["depth"] * 3, "edges": ["depth", "edges", "edges"], "normals": ["normals", "edges", "depth"]}
    with torch.no_grad():
        for task, donors in paths.items():
            assert torch.equal(network(IMAGES, task=task), by_hand(staged, donors, task))
    assert network.nodes[0][0] is network.path("edges").stages[0]
    assert network.nodes[0][0] is not staged["depth"].stages[0]


def test_parameters_are_what_the_search_counted(staged: dict[str, branchnet.stages.StagedNetwork]) -> None:
    values = np.random.default_rng(0).uniform(0.1, 0.9, (3, 3, 3))
    values = (values + values.transpose(0, 2, 1)) / 2
    values[:, np.arange(3), np.arange(3)] = 1
    affinity = branchnet.Affinity(TASKS, ["layer1", "layer2", "layer3"], values)
    found = branchnet.search(affinity, staged, "95% params", nested=False)
    network = branchnet.build(found, staged, affinity=affinity)
    assert sum(p.numel() for p in network.parameters()) == found.size <= found.limit
    assert network.sharing == found.sharing
    assert str(found).startswith("3 tasks, 3 stages")
    for d, clusters in enumerate(network.sharing.partitions):
        for donor, cluster in zip(network.donors[d], clusters, strict=True):
            index = [TASKS.index(task) for task in cluster]
            assert donor == cluster[int(values[d][np.ix_(index, index)].sum(axis=1).argmax())]


def test_saved_and_loaded_networks_are_equal(staged: dict[str, branchnet.stages.StagedNetwork], tmp_path: Path) -> None:
    network = branchnet.build(SHARING, staged).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.rand(parameter.shape))
    branchnet.save(network, tmp_path)
    loaded = branchnet.load(tmp_path)
    assert isinstance(loaded, SharingNetwork)
    assert loaded.sharing == SHARING
    assert loaded.donors == network.donors
    with torch.no_grad():
        for task in TASKS:
            assert torch.equal(loaded(IMAGES, task=task), network(IMAGES, task=task))
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in network.parameters())
    text = (tmp_path / "architecture.yaml").read_text()
    described = SharingArchitecture.load(tmp_path / "architecture.yaml")
    assert described == SharingArchitecture.from_network(network)
    assert described.to_yaml() == text
    weights = (tmp_path / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(weights[:-4] + b"\0\0\0\1")
    with pytest.raises(CheckpointError, match="damaged"):
        branchnet.load(tmp_path)


def test_a_file_whose_donor_is_elsewhere_is_refused(
    staged: dict[str, branchnet.stages.StagedNetwork], tmp_path: Path
) -> None:
    file = tmp_path / "sharing.yaml"
    described = SharingArchitecture.from_network(branchnet.build(SHARING, staged))
    described.save(file)
    file.write_text(file.read_text().replace("donor: edges", "donor: depth", 1))
    with pytest.raises(SpecError, match="expected one of edges, normals"):
        SharingArchitecture.load(file)


def test_gradients_of_a_task_reach_the_shared_copy(staged: dict[str, branchnet.stages.StagedNetwork]) -> None:
    network = branchnet.build(SHARING, staged).train()
    network(IMAGES, task="edges").sum().backward()
    touched = {name.rsplit(".", 1)[0][:9] for name, p in network.named_parameters() if p.grad is not None}
    assert {name[:9] for name in touched if name.startswith("nodes")} == {"nodes.0.0", "nodes.1.1", "nodes.2.1"}


def test_wrong_calls_are_refused(staged: dict[str, branchnet.stages.StagedNetwork]) -> None:
    network = branchnet.build(SHARING, staged)
    with pytest.raises(BuildError, match="did you mean 'edges'"):
        network(IMAGES, task="edge")
    with pytest.raises(BuildError, match="init='mean'"):
        branchnet.build(SHARING, staged, init="mean")
    with pytest.raises(BuildError, match="donors"):
        branchnet.build(SHARING, staged, donors=[["edges", "normals"], ["edges", "normals"], ["depth", "edges"]])
    with pytest.raises(BranchnetError):
        branchnet.build(Sharing("ab", [[["a", "b"]]]), staged)
    with pytest.raises(BuildError):
        network(nn.Identity(), task="edges")
