"""Raw heads and their decoding give what the networks' own code gives."""

from __future__ import annotations

import copy
import importlib
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_structure

import branchnet
from branchnet.errors import SplitError
from tests.stages.heads.detectors import DETECTORS, SIZE, detector, suppress

boxes = pytest.importorskip("torchvision.ops.boxes")


@pytest.fixture(autouse=True)
def _without_compiled_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "nms", suppress)
    pooling = importlib.import_module("torchvision.ops.roi_align")
    # Its Python form is compiled at the first call, which takes half a minute.
    monkeypatch.setattr(pooling, "_roi_align", getattr(pooling._roi_align, "__wrapped__", pooling._roi_align))


def equal(one: Any, other: Any) -> bool:
    """Whether two outputs have one form and are bitwise identical."""
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return tree_structure(one) == tree_structure(other) and all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("name", DETECTORS)
def test_decoded_raw_outputs_are_the_detectors_own(name: str) -> None:
    network = detector(name)
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = network(list(images))
        raw = branchnet.raw_heads(network)
        found = branchnet.decode(network, raw(images), size=(SIZE, SIZE))
    assert sum(len(one["boxes"]) for one in expected) > 0
    assert equal(found, expected)


@pytest.mark.parametrize("name", DETECTORS)
def test_raw_outputs_have_one_form_in_both_modes_and_leave_the_network_alone(name: str) -> None:
    network = detector(name)
    raw = branchnet.raw_heads(network)
    images = torch.rand(2, 3, SIZE, SIZE)
    evaluated = raw(images)
    assert tree_structure(raw.train()(images)) == tree_structure(evaluated)
    assert not network.training
    assert "forward" not in vars(network)
    assert dict(raw.named_parameters()).keys() == dict(network.named_parameters()).keys()
    pairs = zip(raw.parameters(), network.parameters(), strict=True)
    assert all(one is other for one, other in pairs)


@pytest.mark.parametrize("name", ["ssd", "faster_rcnn"])
def test_outputs_with_gradients_are_decoded(name: str) -> None:
    network, images = detector(name), torch.rand(1, 3, SIZE, SIZE)
    found = branchnet.decode(network, branchnet.raw_heads(network)(images), size=(SIZE, SIZE))
    assert found[0]["boxes"].requires_grad


@pytest.mark.parametrize("name", ["ssd", "retinanet"])
def test_detectors_of_different_classes_are_one_network(name: str) -> None:
    models = {"people": detector(name, 0, 3), "cars": detector(name, 1, 5)}
    networks = {task: branchnet.raw_heads(model) for task, model in models.items()}
    images = torch.rand(2, 3, SIZE, SIZE)
    staged = branchnet.split_all(networks, images[:1], locations=2)
    assert all(one.traced_by == "fx" and one.trainable for one in staged.values())
    tree = branchnet.Tree.separate(tuple(models), 2)
    one = branchnet.build(tree, staged, init="donor").eval()
    with torch.no_grad():
        for task, raw in one(images).items():
            assert equal(branchnet.decode(models[task], raw, size=(SIZE, SIZE)), models[task](list(images)))


def test_sizes_are_asked_for() -> None:
    network = detector("retinanet")
    raw = branchnet.raw_heads(network)(torch.rand(1, 3, SIZE, SIZE))
    with pytest.raises(SplitError, match=r"decode\(network, raw, size=\(height, width\)\)"):
        branchnet.decode(network, raw)


def test_networks_without_such_heads_stay_as_they_are() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    assert branchnet.raw_heads(network) is network
    output = torch.rand(3)
    assert branchnet.decode(network, output) is output


class Own(nn.Module):
    """A head of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> Any:
        return {"loss": self.layer(x)} if self.training else self.layer(x).argmax(1)

    def raw_outputs(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def decode_outputs(self, raw: torch.Tensor, size: Any) -> torch.Tensor:
        return raw.argmax(1)


def test_own_heads_say_what_is_raw() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Own()).eval()
    raw = branchnet.raw_heads(network)
    staged = branchnet.split(raw, torch.rand(1, 4))
    x = torch.randn(5, 4)
    assert torch.equal(branchnet.decode(network, staged(x)), network(x))
    assert torch.equal(branchnet.decode(raw, staged(x)), network(x))
    assert staged.train()(x).shape == (5, 3)


def test_copies_are_independent() -> None:
    network = nn.Sequential(nn.Linear(4, 4), Own()).eval()
    raw = branchnet.raw_heads(network)
    for copied in (copy.deepcopy(raw), pickle.loads(pickle.dumps(raw))):
        nn.init.zeros_(copied[1].layer.weight)
        nn.init.zeros_(copied[1].layer.bias)
        assert not copied(torch.rand(2, 4)).any() and raw(torch.rand(2, 4)).any()


def test_several_heads_are_refused() -> None:
    with pytest.raises(SplitError, match=r"several heads that decode \(Own, Own\)"):
        branchnet.raw_heads(nn.ModuleList([Own(), Own()]))


def test_feature_pyramids_are_entered() -> None:
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.retinanet import RetinaNet

    from tests.stages.heads.detectors import Backbone

    pyramid = BackboneWithFPN(Backbone(), {"third": "0", "fourth": "1"}, [32, 32], 32)
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    network = RetinaNet(pyramid, 3, anchor_generator=anchors).eval()
    raw = branchnet.raw_heads(network)
    staged = branchnet.split(raw, torch.rand(1, 3, SIZE, SIZE))
    assert staged.traced_by == "fx" and staged.trainable
    places = branchnet.candidate_locations(raw, torch.rand(1, 3, SIZE, SIZE))
    assert "backbone.fpn" in {name for place in places for name in place.aliases}
    x = torch.rand(2, 3, 96, 32)
    assert equal(staged(x), raw(x))


def test_whole_detectors_are_refused_with_the_call_to_use() -> None:
    with pytest.raises(SplitError, match=r"'cars' \(RetinaNet\).*\n.*branchnet\.raw_heads\(network\)"):
        branchnet.split_all({"cars": detector("retinanet")}, torch.rand(1, 3, SIZE, SIZE))


class Loop(nn.Module):
    """A head that fx cannot enter, as it decides by sizes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, width, 3), nn.ReLU(), nn.Conv2d(width, 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) if x.shape[-1] > 3 else x


def test_heads_that_cannot_be_entered_are_kept_whole() -> None:
    convolutions = [layer for _ in range(3) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())]
    network = nn.Sequential(nn.Conv2d(3, 4, 3), *convolutions, Loop(10)).eval()
    share = sum(p.numel() for p in network[-1].parameters()) / sum(p.numel() for p in network.parameters())
    assert 0.25 < share < 0.5
    staged = branchnet.split(network, torch.rand(1, 3, 16, 16))
    assert staged.traced_by == "fx"
    x = torch.rand(2, 3, 20, 12)
    assert torch.equal(staged(x), network(x))


def test_modules_in_the_middle_that_cannot_be_entered_are_opened_by_another_tracer() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Loop(10), nn.Conv2d(2, 4, 3), nn.ReLU()).eval()
    assert branchnet.split(network, torch.rand(1, 3, 16, 16)).traced_by == "export"
