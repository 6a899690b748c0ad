"""Three MobileNetV2: ImageNet, birds and insects, on photos.

`mobilenetv2_three/` holds their module `mobilenetv2.py`, one safetensors file for each and `photos/`, one photo for
each of the 1,000 ImageNet classes, in class order. The weights come from google-coral/test_data (uint8 TensorFlow Lite
files, dequantised); no package registry has them, so this folder is the only one that `fetch.py` does not fill.
The ImageNet network names 87.1% of the held-out photos right.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import nn

from branchnet.data import load_images
from branchnet.deploy import load_weights
from zoo_entries.entry import ZooEntry

CLASSES = {"imagenet": 1001, "birds": 965, "insects": 1022}
FITTED = 300
"""So many of the photos are the probe."""
MIDDLE = 128 / 255  # the networks take (x - 128) / 128 of bytes


def load(data: Path) -> ZooEntry:
    """Read the networks and the photos below `data`."""
    folder = data / "mobilenetv2_three"
    photos = load_images(folder / "photos", size=224, mean=[MIDDLE] * 3, std=[MIDDLE] * 3)
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(0))
    probe, held_out = order[:FITTED], order[FITTED:]
    return ZooEntry(
        name="mobilenetv2_three",
        networks=load_networks(folder),
        probe=photos[probe],
        held_out=photos[held_out],
        kinds=dict.fromkeys(CLASSES, "classification"),
        labels={"imagenet": held_out + 1},  # class 0 is the background
        source="google-coral/test_data; photos of EliSchwartz/imagenet-sample-images",
        license="Apache-2.0 (photos: research use only)",
    )


def load_networks(folder: Path) -> dict[str, nn.Module]:
    """The three networks with their weights."""
    spec = importlib.util.spec_from_file_location("mobilenetv2", folder / "mobilenetv2.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    networks: dict[str, nn.Module] = {}
    for task, classes in CLASSES.items():
        networks[task] = module.MobileNetV2(classes).eval()
        load_weights(networks[task], folder / f"{task}.safetensors")
    return networks
