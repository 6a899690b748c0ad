"""Face expressions and 68 landmarks: two networks of face-api.js, on crops of faces.

`face-api/` holds npm's `@vladmandic/face-api` and `scikit-image/` PyPI's package of that name. No package at hand has
a good set of faces: each of the few that there are is cropped several times, so crops are not independent samples.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from zoo_entries.entry import ZooEntry
from zoo_entries.formats.tfjs_weights import read_weights
from zoo_entries.inputs.face_images import grey_faces, photo_faces
from zoo_entries.networks.face_network import normalised, with_weights

MODELS = {"expression": "face_expression_model", "landmarks": "face_landmark_68_model"}
LANDMARK_PIXELS = 112
"""The landmarks are shares of a face's width and height: times this, pixels."""


def load(data: Path) -> ZooEntry:
    """Read the networks and the faces below `data`."""
    networks: dict[str, nn.Module] = {
        task: with_weights(read_weights(data / "face-api" / "model" / f"{model}-weights_manifest.json"))
        for task, model in MODELS.items()
    }
    return ZooEntry(
        name="faces",
        networks=networks,
        probe=_faces(data, held_out=False),
        held_out=_faces(data, held_out=True),
        kinds={"expression": "classification", "landmarks": "regression"},
        labels=None,
        source="npm @vladmandic/face-api; its 6 photos and 100 grey faces of scikit-image, each cropped several times",
        license="MIT",
        scores={"landmarks": (f"px of {LANDMARK_PIXELS}", distance)},
        locations=[f"dense{k}" for k in range(4)],
    )


def distance(landmarks: Tensor, wanted: Tensor) -> float:
    """Mean distance in pixels between landmarks (K, 136), x and y in turn."""
    difference = (landmarks - wanted).unflatten(1, (-1, 2))
    return LANDMARK_PIXELS * float(difference.norm(dim=2).mean())


def _faces(data: Path, *, held_out: bool) -> Tensor:
    """Crops in a fixed random order; other photos and other grey faces are held out."""
    faces = torch.cat(
        [
            photo_faces(data / "face-api" / "demo", held_out=held_out),
            grey_faces(data / "scikit-image" / "skimage" / "data" / "lfw_subset.npy", held_out=held_out),
        ]
    )
    return normalised(faces[torch.randperm(len(faces), generator=torch.Generator().manual_seed(0))])
