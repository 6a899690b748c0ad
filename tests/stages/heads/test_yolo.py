"""Networks of ultralytics: one network of several, bit-exact. Skipped without that package, which is AGPL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_structure

import branchnet
from tests.stages.heads.test_raw_heads import equal
from tests.stages.heads.yolo import FAMILIES, predictions, yolo

pytest.importorskip("ultralytics")
SIZES = ((64, 64), (96, 64), (64, 160))
TASKS = ("detect", "segment", "pose", "obb")


@pytest.mark.parametrize(("family", "task"), [(family, task) for family, tasks in FAMILIES.items() for task in tasks])
def test_decoded_raw_outputs_are_the_networks_own(family: str, task: str) -> None:
    network = yolo(family, task)
    raw = branchnet.raw_heads(network)
    for size in SIZES:
        images = torch.rand(2, 3, *size)
        with torch.no_grad():
            outputs = raw(images)
            assert equal(branchnet.decode(network, outputs), predictions(network(images)))
    assert tree_structure(raw.train()(images)) == tree_structure(outputs)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["yolov8n", "yolo11n", "yolo26n"])
def test_four_tasks_are_one_network_of_free_sizes(family: str) -> None:
    models = {task: yolo(family, task, seed) for seed, task in enumerate(TASKS)}
    networks = {task: branchnet.raw_heads(model) for task, model in models.items()}
    staged = branchnet.split_all(networks, torch.rand(1, 3, 64, 64))
    assert all(one.traced_by == "fx" and one.trainable for one in staged.values())
    one = branchnet.build(branchnet.Tree.separate(TASKS, len(staged["pose"].locations)), staged, init="donor").eval()
    for size in SIZES:
        images = torch.rand(2, 3, *size)
        with torch.no_grad():
            for task, raw in one(images).items():
                assert equal(branchnet.decode(models[task], raw), predictions(models[task](images)))


@pytest.mark.slow
def test_frozen_backbones_are_shared_without_loss() -> None:
    models = {task: yolo("yolov8n", task, seed) for seed, task in enumerate(TASKS)}
    for model in models.values():
        for mine, first in zip(model.model[:10], models["detect"].model, strict=False):
            mine.load_state_dict(first.state_dict())
    networks = {task: branchnet.raw_heads(model) for task, model in models.items()}
    staged = branchnet.split_all(networks, torch.rand(1, 3, 64, 64), locations=["model.9"])
    one = branchnet.build(branchnet.Tree.shared(TASKS, 1), staged, init="donor").eval()
    images = torch.rand(2, 3, 96, 64)
    with torch.no_grad():
        for task, raw in one(images).items():
            assert equal(branchnet.decode(models[task], raw), predictions(models[task](images)))


@pytest.mark.slow
def test_files_decode_inside(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    models = {task: yolo("yolov8n", task, seed) for seed, task in enumerate(("detect", "segment"))}
    networks = {task: branchnet.raw_heads(model) for task, model in models.items()}
    images = torch.rand(2, 3, 64, 64)
    staged = branchnet.split_all(networks, images[:1], locations=["model.9"])
    one = branchnet.build(branchnet.Tree.separate(tuple(models), 1), staged, init="donor").eval()
    exported = branchnet.export(one, images, tmp_path / "two.onnx", decode=models, dynamic="sizes")
    session = runtime.InferenceSession(str(exported.model))
    other = torch.rand(1, 3, 96, 160)
    found = dict(zip(exported.outputs, session.run(None, {"input": other.numpy()}), strict=True))
    with torch.no_grad():
        boxes = predictions(models["detect"](other))
        masks, prototypes = predictions(models["segment"](other))
    for key, value in (("detect", boxes), ("segment.0", masks), ("segment.1", prototypes)):
        np.testing.assert_allclose(found[key], value, atol=1e-4 * float(value.abs().max()))


@pytest.mark.slow
def test_detection_transformers_are_traced_with_fixed_sizes() -> None:
    from ultralytics.nn.tasks import RTDETRDetectionModel

    torch.manual_seed(0)
    model = RTDETRDetectionModel("yolov8n-rtdetr.yaml", verbose=False).eval()
    raw = branchnet.raw_heads(model)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        outputs = raw(images)
        assert torch.equal(branchnet.decode(model, outputs), model(images)[0])
    assert {key: value.shape for key, value in raw.train()(images).items()} == {k: v.shape for k, v in outputs.items()}
    staged = branchnet.split(raw.eval(), images, locations=["model.9"])
    assert staged.trainable
    with torch.no_grad():  # the statistics of BatchNorm are others by now
        torch.testing.assert_close(staged(images), raw(images))


@pytest.mark.slow
def test_end_to_end_heads_are_decoded_inside(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    models = {task: yolo("yolo26n", task, seed) for seed, task in enumerate(("detect", "pose"))}
    networks = {task: branchnet.raw_heads(model) for task, model in models.items()}
    images = torch.rand(2, 3, 64, 64)
    staged = branchnet.split_all(networks, images[:1], locations=["model.9"])
    one = branchnet.build(branchnet.Tree.separate(tuple(models), 1), staged, init="donor").eval()
    exported = branchnet.export(one, images, tmp_path / "two.onnx", decode=models, dynamic="sizes")
    assert exported.outputs == ("detect", "pose")  # compared with the network by `export` itself


@pytest.mark.slow
def test_whole_networks_are_traced_with_free_sizes_and_distilled_by_raw_heads_alone() -> None:
    models = {task: yolo("yolov8n", task, seed) for seed, task in enumerate(("detect", "segment"))}
    staged = branchnet.split_all(models, torch.rand(1, 3, 64, 64))
    assert all(one.traced_by == "fx" for one in staged.values())
    images = torch.rand(2, 3, 96, 64)
    with torch.no_grad():
        assert equal(staged["segment"](images), models["segment"](images))
    tree = branchnet.Tree.shared(("detect", "segment"), len(staged["detect"].locations))
    one = branchnet.build(tree, staged, init="donor")
    with pytest.raises(branchnet.TrainingError, match=r"in training mode .*'boxes'.* branchnet\.raw_heads"):
        branchnet.distill(one, models, torch.rand(8, 3, 64, 64), steps=1, batch_size=4, progress=False)
