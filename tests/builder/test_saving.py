"""A saved network comes back the same; what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import branchnet
from branchnet import Tree
from branchnet.builder import save_weights
from branchnet.errors import CheckpointError, SpecError

from .toys import KINDS, LOCATIONS, images, networks, staged

TASKS = tuple(KINDS)
TREE = Tree(TASKS, [[TASKS], [TASKS], [("depth", "edges"), ("scene", "count")]] + [[(t,) for t in TASKS]] * 2)


def test_round_trip_gives_the_same_outputs(tmp_path: Path) -> None:
    branched = branchnet.build(TREE, staged(networks()))
    branchnet.save(branched, tmp_path)
    loaded = branchnet.load(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["architecture.yaml", "weights.safetensors"]
    assert loaded.tree == TREE and loaded.donors == branched.donors and not loaded.training
    with torch.no_grad():
        expected, found = branched(images()), loaded(images())
    assert all(torch.equal(found[task], expected[task]) for task in TASKS)


def test_networks_without_a_constructor_must_be_passed(tmp_path: Path) -> None:
    made: dict[str, nn.Module] = {}
    for name in "ab":
        made[name] = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.LazyLinear(2))
        made[name].eval()(images())
    cut = branchnet.split_all(made, images(), locations=["1", "2"])
    branched = branchnet.build(Tree.shared(("a", "b"), 2), cut)
    branchnet.save(branched, tmp_path)
    with pytest.raises(SpecError, match="'a', 'b': pass the networks"):
        branchnet.load(tmp_path)
    loaded = branchnet.load(tmp_path, networks=made)
    assert torch.equal(loaded(images())["b"], branched(images())["b"])


def test_weights_of_another_tree_are_refused_by_name(tmp_path: Path) -> None:
    cut = staged(networks())
    branchnet.save(branchnet.build(TREE, cut), tmp_path)
    save_weights(branchnet.build(Tree.shared(TASKS, len(LOCATIONS)), cut), tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"nodes\.2\.1\.layer2\.0\.conv1\.weight: not in the file"):
        branchnet.load(tmp_path)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no architecture\.yaml"):
        branchnet.load(tmp_path)


def test_a_specification_of_another_tree_is_not_written(tmp_path: Path) -> None:
    cut = staged(networks())
    other = branchnet.Architecture.from_network(branchnet.build(Tree.shared(TASKS, len(LOCATIONS)), cut))
    with pytest.raises(CheckpointError, match="describes another tree"):
        branchnet.save(branchnet.build(TREE, cut), tmp_path, architecture=other)
    assert list(tmp_path.iterdir()) == []
