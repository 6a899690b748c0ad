"""Weights on the Hugging Face Hub in a config: from the cache, and from the network only when the config says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import branchnet
from branchnet.deploy import save_weights
from branchnet.deploy.hub.hub_weights import hub_file
from branchnet.errors import CheckpointError
from branchnet.pipeline.config.config_sources import make_networks
from branchnet.pipeline.config.run_config import RunConfig

hub = pytest.importorskip("huggingface_hub")
NETWORK = {"constructor": "branchnet:scene_network", "arguments": {"outputs": 1, "width": 2}}


def config(weights: str, **further: Any) -> RunConfig:
    networks = {"depth": NETWORK | {"weights": weights}, "edges": NETWORK}
    return RunConfig.model_validate({"networks": networks, "images": {"folder": "images"}, **further})


def test_weights_come_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    donor = branchnet.create("branchnet:scene_network", outputs=1, width=2)
    save_weights(donor, tmp_path / "model.safetensors")
    asked = []

    def found(repo: str, file: str, *, local_files_only: bool) -> str:
        asked.append((repo, file, local_files_only))
        return str(tmp_path / "model.safetensors")

    monkeypatch.setattr(hub, "hf_hub_download", found)
    for weights, further in (("hf-hub:owner/net", {}), ("hf-hub:owner/net/sub/best.safetensors", {"download": True})):
        loaded = make_networks(config(weights, **further), tmp_path)["depth"].state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in donor.state_dict().items())
    assert asked == [("owner/net", "model.safetensors", True), ("owner/net", "sub/best.safetensors", False)]


def test_nothing_is_downloaded_that_was_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"'hf-hub:owner/net'.*not in the local cache.*`download: true`"):
        make_networks(config("hf-hub:owner/net"), tmp_path)


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:net", "hf-hub:owner/net/../../x", "hf-hub:/etc/passwd"])
def test_names_of_another_form(name: str) -> None:
    with pytest.raises(CheckpointError, match="names no file on the Hub; expected hf-hub:OWNER/NAME"):
        hub_file(name, download=False)
