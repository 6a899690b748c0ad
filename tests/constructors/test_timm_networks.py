"""`from_timm` makes timm's own networks and reads off them what timm itself says of their images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import branchnet
from branchnet.errors import SpecError

timm = pytest.importorskip("timm")

SMALL = "mobilenetv3_small_050"


def test_the_network_is_timms_and_has_no_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("something was downloaded"))
    torch.manual_seed(0)
    network, _ = branchnet.from_timm(f"timm:{SMALL}", num_classes=7)
    torch.manual_seed(0)
    expected = timm.create_model(SMALL, pretrained=False, num_classes=7)
    assert network.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)


@pytest.mark.parametrize("name", [SMALL, "vit_tiny_patch16_224", "tf_efficientnet_b1"])
def test_images_are_made_ready_as_timm_says(name: str) -> None:
    network, settings = branchnet.from_timm(name)
    config: dict[str, Any] = timm.create_model(name).pretrained_cfg
    assert (settings["size"], settings["mean"], settings["std"]) == (
        config["input_size"][-1],
        config["mean"],
        config["std"],
    )
    assert branchnet.from_timm(network) == (network, settings)


def test_published_weights_are_asked_for_by_name_and_the_constructor_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made = timm.create_model(SMALL, num_classes=3)
    asked: list[tuple[str, dict[str, Any]]] = []

    def create_model(name: str, **arguments: Any) -> nn.Module:
        asked.append((name, arguments))
        return made if arguments["pretrained"] else nn.Linear(1, 1)

    monkeypatch.setattr(timm, "create_model", create_model)
    network, _ = branchnet.from_timm(SMALL, pretrained=True, num_classes=3)
    assert network is made
    assert asked[-1] == (SMALL, {"pretrained": True, "num_classes": 3})
    constructor = branchnet.models.constructor_of(network)
    assert constructor is not None
    assert (constructor.name, dict(constructor.arguments)) == (f"timm:{SMALL}", {"num_classes": 3})


def test_weights_that_timm_lacks_are_named() -> None:
    with pytest.raises(SpecError, match=r"timm:efficientnet_b8 cannot be made with its published weights: "):
        branchnet.from_timm("efficientnet_b8", pretrained=True)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("mobilenetv3_smal_050", {}, "did you mean 'mobilenetv3_small_050'"),
        ("hf-hub:timm/resnet18", {}, "not a named constructor"),
        (SMALL, {"checkpoint_path": "x.pth"}, "refused"),
        (nn.Linear(2, 2), {}, "Linear without timm's pretrained_cfg"),
        (nn.Linear(2, 2), {"num_classes": 3}, r"a network and \['num_classes'\]; expected a name, or the network"),
        (3, {}, "model is a int; expected a name of timm"),
    ],
)
def test_what_is_not_timms_is_refused(model: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        branchnet.from_timm(model, **arguments)
