"""Memory mode through the command: from the search to trained networks and ONNX files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import branchnet
from branchnet.builder import SharingNetwork
from branchnet.data import scenes
from branchnet.specification import SharingArchitecture
from tests.cli.toys import SIZE, TASKS, Walker, make_folder, walk

LINES = (
    "split run.yaml --locations 3",
    "affinity run.yaml split.yaml",
    "search affinity.npz split.yaml --budget 70%params --one-task-per-input --out sharing.yaml",
    "build sharing.yaml --config run.yaml --out built",
)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_folder(tmp_path_factory.mktemp("walk"))
    walk(folder, LINES)
    return folder


@pytest.fixture
def walker(walked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Walker:
    return Walker(walked, monkeypatch, capsys)


def test_search_writes_what_python_finds(walker: Walker) -> None:
    line = "search affinity.npz split.yaml --budget 70%params --one-task-per-input --out again.yaml"
    assert walker(f"{line} --json") == 0
    told = json.loads(walker.out)
    spec = branchnet.specification.Architecture.load("split.yaml")
    affinity = branchnet.Affinity.load("affinity.npz")
    found = branchnet.search(affinity, spec.stage_costs, "70% params", head_costs=spec.head_costs, nested=False)
    assert told["cost"] == found.cost and told["size"] == found.size and "tree" not in told
    described = SharingArchitecture.load("again.yaml")
    assert described.task_sharing == found.sharing
    assert told["sharing"] == [[list(cluster) for cluster in stage] for stage in found.sharing.partitions]
    assert walker(line) == 0 and "not nested" in walker.out and "of separate networks" in walker.out
    assert walker(f"{line} --front") == 2 and "--front with --one-task-per-input" in walker.err
    assert walker("validate again.yaml") == 0 and "computed one at a time" in walker.out


def test_build_copies_the_donors_stages(walker: Walker) -> None:
    network = branchnet.load("built")
    assert isinstance(network, SharingNetwork)
    assert network.sharing == SharingArchitecture.load("sharing.yaml").task_sharing
    spec = branchnet.specification.Architecture.load("split.yaml")
    found = branchnet.search(
        branchnet.Affinity.load("affinity.npz"), spec.stage_costs, "70% params", head_costs=spec.head_costs,
        nested=False,
    )  # fmt: skip
    assert sum(parameter.numel() for parameter in network.parameters()) == found.size
    for task, kind in TASKS.items():
        one = branchnet.create("branchnet:scene_network", outputs=1, kind=kind, width=4).eval()
        branchnet.deploy.load_weights(one, walker.folder / f"{task}.safetensors")
        own = [donors[network.sharing.cluster_of(task, stage)] == task for stage, donors in enumerate(network.donors)]
        if all(own):
            x = scenes(2, size=SIZE, seed=9).images
            torch.testing.assert_close(network(x, task=task), one(x))


def test_distill_trains_the_paths_and_keeps_them_shared(walker: Walker) -> None:
    assert walker("distill built run.yaml --steps 3 --learning-rate 1e-3 --out trained --json") == 0, walker.err
    json.loads(walker.out)
    before, after = branchnet.load("built"), branchnet.load("trained")
    assert isinstance(before, SharingNetwork) and isinstance(after, SharingNetwork)
    assert after.sharing == before.sharing and after.donors == before.donors
    count = [sum(parameter.numel() for parameter in network.parameters()) for network in (before, after)]
    assert count[0] == count[1]
    assert walker("distill built run.yaml --steps 3 --only depth --out other") == 2 and "--only" in walker.err


def test_export_writes_a_file_for_each_task(walker: Walker) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    assert walker("export built --format onnx --out models --json") == 0, walker.err
    files = json.loads(walker.out)["models"]
    network = branchnet.load("built")
    x = scenes(3, size=SIZE, seed=9).images
    for task in TASKS:
        found = branchnet.deploy.load_onnx(files[task])(x)[task]
        with torch.no_grad():
            torch.testing.assert_close(found, network(x, task=task), rtol=1e-4, atol=1e-5)
    assert walker("export built --out net.pt2") == 2 and "computed one at a time" in walker.err


@pytest.mark.skipif(importlib.util.find_spec("executorch") is not None, reason="executorch is installed")
def test_executorch_programs_name_what_they_need(walker: Walker) -> None:
    assert walker("export built --out net.pte") == 2 and "pip install 'branchnet[executorch]'" in walker.err


@pytest.mark.parametrize("verb", ["show", "report", "bench"])
def test_other_verbs_say_that_they_need_nested_sharing(walker: Walker, verb: str) -> None:
    assert walker(f"{verb} built") == 2 and "computed one at a time" in walker.err
