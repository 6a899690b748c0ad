"""Files that version 0.1.0 wrote are still read, and mean the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import branchnet
from branchnet.pipeline.config.config_sources import find_function
from branchnet.pipeline.demo.scene_tasks import example_images

WRITTEN = Path(__file__).parent / "0.1.0"


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((WRITTEN / "expected.json").read_text(encoding="utf-8"))
    return read


@pytest.fixture(scope="module")
def branched() -> branchnet.BranchedNetwork:
    return branchnet.load(WRITTEN / "network")


@pytest.fixture(scope="module")
def affinity() -> branchnet.Affinity:
    return branchnet.Affinity.load(WRITTEN / "affinity.npz")


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_saved_network_gives_the_outputs_that_it_gave(branched: branchnet.BranchedNetwork) -> None:
    recorded = load_file(WRITTEN / "expected.safetensors")
    with torch.no_grad():
        outputs = branched(recorded["images"][:2])
    assert set(outputs) == {name.removeprefix("output.") for name in recorded if name.startswith("output.")}
    for task, output in outputs.items():
        torch.testing.assert_close(output, recorded[f"output.{task}"], rtol=1e-6, atol=1e-6)


def test_saved_network_keeps_its_tree_its_frozen_nodes_and_where_its_weights_came_from(
    branched: branchnet.BranchedNetwork, expected: dict[str, Any]
) -> None:
    assert str(branched.tree) == expected["tree"]
    assert branched.frozen == {"nodes.0.0", "nodes.1.0", "nodes.2.0", "nodes.3.0", "heads.0"}
    assert all(not p.requires_grad for p in branched.path("depth").parameters())
    assert branched.initialisation is not None
    assert branched.initialisation.init == "donor"
    assert {node.id for node in branched.initialisation.nodes} == {node.id for node in branched.members()}


def test_specification_is_written_back_as_the_same_bytes() -> None:
    written = WRITTEN / "network" / "architecture.yaml"
    assert branchnet.Architecture.load(written).to_yaml() == written.read_text(encoding="utf-8")


def test_affinity_has_the_values_that_it_had(affinity: branchnet.Affinity, expected: dict[str, Any]) -> None:
    assert affinity.measure == "rsa"
    assert affinity.tasks == ("depth", "edges", "counts")
    np.testing.assert_array_equal(affinity.values, expected["values"])


def test_search_on_the_affinity_finds_the_tree_that_it_found(
    affinity: branchnet.Affinity, branched: branchnet.BranchedNetwork, expected: dict[str, Any]
) -> None:
    found = branchnet.search(
        affinity, branched.costs, "70%", head_costs=branched.head_costs, objective=expected["objective"]
    )
    assert str(found.tree) == expected["tree"]
    assert found.size == expected["size"]
    assert found.cost == pytest.approx(expected["cost"], rel=1e-12)


def _tensors_under(recorded: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in recorded.items() if key.startswith(f"{name}.")}


def test_interrupted_training_resumes_and_ends_where_it_ended(tmp_path: Path, one_thread: None) -> None:
    recorded = load_file(WRITTEN / "training.safetensors")
    checkpoint = tmp_path / "checkpoint.pt"
    shutil.copy(WRITTEN / "checkpoint.pt", checkpoint)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    network.load_state_dict(_tensors_under(recorded, "initial"))
    history = branchnet.fit(
        network,
        (recorded["x"], recorded["y"]),
        nn.functional.mse_loss,
        steps=20,
        batch_size=4,
        learning_rate=1e-3,
        keep="last",
        seed=5,
        checkpoint=checkpoint,
        progress=False,
    )
    assert history.resumed_at == 8
    torch.testing.assert_close(
        torch.tensor(history.losses["loss"]), recorded["losses"], rtol=1e-6, atol=1e-6, check_dtype=False
    )
    final = _tensors_under(recorded, "final")
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, final[name], rtol=1e-6, atol=1e-6)


def test_the_config_of_a_demo_still_finds_its_images(tmp_path: Path) -> None:
    made = find_function("branchnet.cli.scene_tasks:example_images", tmp_path)
    assert made is example_images
