"""Face networks: the weight format of TensorFlow.js, and the network, against plain numpy."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import branchnet

from .modules import zoo

Floats = NDArray[np.float64]


def write(folder: Path, tensors: list[dict[str, object]], shards: list[bytes]) -> Path:
    manifest = folder / "model.json"
    paths = [f"shard{number}.bin" for number in range(len(shards))]
    for path, content in zip(paths, shards, strict=True):
        (folder / path).write_bytes(content)
    manifest.write_text(json.dumps([{"weights": tensors, "paths": paths}]))
    return manifest


def test_tensors_are_floats_or_scaled_bytes_across_shards(tmp_path: Path) -> None:
    tensors = [
        {"name": "a", "shape": [2], "dtype": "float32"},
        {"name": "b/c", "shape": [2, 2], "dtype": "float32"}
        | {"quantization": {"dtype": "uint8", "scale": 0.5, "min": -3.0}},
    ]
    stored = struct.pack("<2f4B", 1.5, -2.25, 0, 1, 6, 255)
    weights = zoo("formats.tfjs_weights").read_weights(write(tmp_path, tensors, [stored[:5], stored[5:]]))
    assert {name: values.tolist() for name, values in weights.items()} == {
        "a": [1.5, -2.25],
        "b/c": [[-3.0, -2.5], [0.0, 124.5]],
    }
    assert {values.dtype for values in weights.values()} == {np.dtype("float32")}


def test_files_that_do_not_hold_what_the_manifest_says_are_refused(tmp_path: Path) -> None:
    tensor = {"name": "a", "shape": [2], "dtype": "float32"}
    with pytest.raises(ValueError, match="fill 8 bytes, expected all 9"):
        zoo("formats.tfjs_weights").read_weights(write(tmp_path, [tensor], [bytes(9)]))
    with pytest.raises(ValueError, match="buffer is smaller"):
        zoo("formats.tfjs_weights").read_weights(write(tmp_path, [tensor], [bytes(7)]))
    with pytest.raises(ValueError, match="stored as int32, expected float32 or uint8"):
        zoo("formats.tfjs_weights").read_weights(write(tmp_path, [tensor | {"dtype": "int32"}], [bytes(8)]))


def made_weights(outputs: int, seed: int) -> dict[str, NDArray[np.float32]]:
    """With the names and shapes of the published files."""
    generator = np.random.default_rng(seed)
    channels = zoo("networks.face_network").CHANNELS
    shapes: dict[str, tuple[int, ...]] = {"fc/weights": (256, outputs), "fc/bias": (outputs,)}
    for block in range(4):
        inputs, width = channels[block : block + 2]
        for number in range(4):
            name = f"dense{block}/conv{number}"
            shapes[f"{name}/bias"] = (width,)
            if block == number == 0:
                shapes[f"{name}/filters"] = (3, 3, inputs, width)
            else:
                read = inputs if number == 0 else width
                shapes[f"{name}/depthwise_filter"] = (3, 3, read, 1)
                shapes[f"{name}/pointwise_filter"] = (1, 1, read, width)
    spread = {name: np.prod(shape[:-1]) ** -0.5 if len(shape) > 1 else 0.1 for name, shape in shapes.items()}
    return {name: (generator.normal(size=s) * spread[name]).astype(np.float32) for name, s in shapes.items()}


def patches(x: Floats, stride: int) -> Floats:
    """3x3 neighbourhoods as TensorFlow's "same" places them, (H, W, 3, 3, C)."""
    size = -(-x.shape[0] // stride)
    total = max((size - 1) * stride + 3 - x.shape[0], 0)
    x = np.pad(x, [(total // 2, total - total // 2)] * 2 + [(0, 0)])
    rows = [[x[i * stride : i * stride + 3, j * stride : j * stride + 3] for j in range(size)] for i in range(size)]
    return np.array(rows)


def convolved(x: Floats, weights: dict[str, NDArray[np.float32]], name: str, stride: int) -> Floats:
    if f"{name}/filters" in weights:
        return np.einsum("hwijc,ijco->hwo", patches(x, stride), weights[f"{name}/filters"]) + weights[f"{name}/bias"]
    each = np.einsum("hwijc,ijcx->hwc", patches(x, stride), weights[f"{name}/depthwise_filter"])
    return each @ weights[f"{name}/pointwise_filter"][0, 0] + weights[f"{name}/bias"]


def outputs_of(x: Floats, weights: dict[str, NDArray[np.float32]]) -> Floats:
    """face-api.js's `denseBlock4`, four times, then the mean and the linear layer."""
    for block in range(4):
        out1 = np.maximum(convolved(x, weights, f"dense{block}/conv0", 2), 0)
        out2 = convolved(out1, weights, f"dense{block}/conv1", 1)
        out3 = convolved(np.maximum(out1 + out2, 0), weights, f"dense{block}/conv2", 1)
        out4 = convolved(np.maximum(out1 + (out2 + out3), 0), weights, f"dense{block}/conv3", 1)
        x = np.maximum(out1 + (out2 + (out3 + out4)), 0)
    return x.mean((0, 1)) @ weights["fc/weights"] + weights["fc/bias"]


def test_the_network_computes_what_numpy_does_with_the_same_weights() -> None:
    weights = made_weights(7, seed=0)
    network = zoo("networks.face_network").with_weights(weights)
    face = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0)) - 0.5
    expected = outputs_of(face[0].movedim(0, 2).double().numpy(), weights)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(network(face)[0].detach(), expected, atol=1e-5)


def test_all_but_the_last_layer_can_be_shared() -> None:
    networks = {
        str(size): zoo("networks.face_network").with_weights(made_weights(size, seed=size)) for size in (7, 136)
    }
    staged = branchnet.split_all(networks, torch.zeros(1, 3, 112, 112))
    assert staged["7"].locations == ("dense0", "dense1", "dense2", "dense3")
    assert {name for name, _ in staged["7"].head.named_parameters()} == {"fc.weight", "fc.bias"}


def test_other_grey_faces_are_held_out(tmp_path: Path) -> None:
    images = zoo("inputs.face_images")
    people = np.arange(200)[:, None, None] / 255 * np.ones((200, 25, 25))
    np.save(tmp_path / "faces.npy", people)
    probe, held_out = (images.grey_faces(tmp_path / "faces.npy", held_out=held_out) for held_out in (False, True))
    assert probe[:, :, 56, 56].unique().tolist() == list(range(60))
    assert held_out[:, :, 56, 56].unique().tolist() == list(range(60, 100))
    assert probe.shape == (180, 3, 112, 112) and held_out.shape == (120, 3, 112, 112)


def test_crops_lie_near_the_box_and_every_other_one_is_mirrored() -> None:
    ramp = np.repeat(np.linspace(0, 250, 501)[None], 400, 0).astype(np.uint8)  # half the column: read to +-1 column
    image = Image.fromarray(ramp).convert("RGB")
    crops = list(zoo("inputs.face_images").crops_of(image, (200, 100, 80, 100), 20, torch.Generator()))
    for number, crop in enumerate(crops):
        left, right = (2.0 * crop[50, column, 0] for column in (0, -1))
        assert (left > right) == bool(number % 2)
        assert 84 - 2 <= abs(right - left) <= 110 + 2
        assert abs((left + right) / 2 - 240) <= 0.075 * 110 + 2
