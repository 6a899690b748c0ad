"""From files on disk to a trained branched network: labels that are missing, usual losses and metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import branchnet
from branchnet.data import LabelledTable, scenes
from branchnet.training import constant_scores, standard_losses, standard_metrics
from tests.data.labelled.made_layouts import pixels, text

DESCRIPTION = """
images: photos
splits: {train: train.txt, val: val.txt}
tasks:
  depth: {kind: depth, folder: depth, scale: 0.001, partial: true, unit: m}
  parts: {kind: segmentation, folder: parts, classes: 7, partial: true}
"""


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen scenes; every third lacks its depth, every fourth its parts."""
    folder = tmp_path_factory.mktemp("scenes")
    made = scenes(16, seed=0, size=32)
    for number in range(16):
        name = f"{number:02}.png"
        pixels(folder / "photos" / name, (255 * made.images[number]).byte().movedim(0, -1).numpy())
        if number % 3:
            pixels(folder / "depth" / name, (1000 * made.labels["depth"][number, 0]).numpy().astype(np.uint16))
        if number % 4:
            pixels(folder / "parts" / name, made.labels["segmentation"][number].numpy().astype(np.uint8))
    names = [f"{number:02}.png\n" for number in range(16)]
    text(folder / "train.txt", "".join(names[:12]))
    text(folder / "val.txt", "".join(names[12:]))
    text(folder / "data.yaml", DESCRIPTION)
    return folder / "data.yaml"


def test_a_branched_network_learns_from_partial_labels_on_disk(described: Path) -> None:
    torch.manual_seed(0)
    train, val = LabelledTable(described, "train"), LabelledTable(described, "val")
    networks = {
        task: branchnet.create("branchnet:scene_network", outputs=form.channels, kind="dense", width=4)
        for task, form in train.label_forms.items()
    }
    staged = branchnet.split_all(networks, torch.rand(1, 3, 32, 32))
    network = branchnet.build(branchnet.Tree.shared(["depth", "parts"], 4), staged, init="donor")
    losses, metrics = standard_losses(train), standard_metrics(train)
    before = branchnet.evaluate(network, val, None, metrics)
    options = {"steps": 30, "batch_size": 4, "learning_rate": 1e-2, "every": 15, "progress": False}
    branchnet.fit(network, train, losses, validation=val, metrics=metrics, **options)
    after = branchnet.evaluate(network, val, None, metrics)
    assert after["depth"] < before["depth"]
    assert after["parts"] > before["parts"]
    assert set(constant_scores(train, val, metrics)) == {"depth", "parts"}
