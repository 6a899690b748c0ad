"""The verbs with networks of which one leaves the trunk early: two have a decoder in common, the third has none."""

from __future__ import annotations

import json

import torch

import branchnet
from branchnet import Affinity, Architecture
from branchnet.data import scenes
from tests.cli.toys import SIZE, TASKS, Walker, make_folder


def test_verbs_let_a_task_leave(tmp_path, monkeypatch, capsys) -> None:
    walker = Walker(make_folder(tmp_path), monkeypatch, capsys)
    assert walker("split run.yaml --depth auto --json") == 0
    tree = Architecture.load("split.yaml").tree
    (task,) = tree.depths
    assert TASKS[task] == "image" and 0 < tree.depths[task] < tree.depth
    for line in (
        "affinity run.yaml split.yaml --bootstrap 5",
        "search affinity.npz split.yaml --budget 80%params",
        "build architecture.yaml --config run.yaml",
        "distill branched run.yaml --steps 2",
        "show branched",
        "report branched --no-latency",
        "bench branched --config run.yaml --no-compiled --repeats 2 --stages --out stages.json",
    ):
        done = walker(line)
        assert done == 0, (line, walker.err)
    assert Affinity.load("affinity.npz").depths == tree.depths
    found = Architecture.load("architecture.yaml").tree
    assert found.depths == tree.depths
    one = branchnet.load("branched")
    assert one.tree == found and set(one(scenes(2, size=SIZE, seed=3).images)) == set(TASKS)
    assert walker("show branched --json") == 0
    told = json.loads(walker.out)
    assert told["params"]["branched"] == sum(p.numel() for p in one.parameters() if isinstance(p, torch.nn.Parameter))
