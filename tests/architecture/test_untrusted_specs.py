"""A specification may come from anyone: no way to make it run code, read a file or reach the network works."""

from __future__ import annotations

import builtins
import io
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy.testing  # noqa: F401  # NumPy 1.26 runs a program to import it: before anything is watched
import pytest
import torch

from branchnet.errors import SpecError
from branchnet.specification.architecture import Architecture

SPEC = """\
schema_version: 1
tasks: [a, b]
input: {shape: [1, 3, 32, 32], dtype: float32}
networks:
  a: {constructor: "CONSTRUCTOR", arguments: ARGUMENTS}
  b: {constructor: "branchnet:scene_network", arguments: {outputs: 1}}
locations: [layer1]
tree:
  - until: layer1
    branches: [a, b]
"""
SECRET = "secret.txt"

NETWORKS = [
    ("os:system", '{command: "touch owned"}'),
    ("builtins:exec", '{source: "1"}'),
    ("subprocess:run", "{args: [ls]}"),
    ("torchvision.datasets.utils:os.system", '{command: "touch owned"}'),
    ("torchvision:datasets.utils.download_url", "{root: x}"),
    ("torchvision:os.system", "{}"),
    ("torch:hub.load", "{repo_or_dir: x}"),
    ("timm:hf-hub:someone/network", "{}"),
    ("timm:hf_hub:someone/network", "{}"),
    ("timm:local-dir:secret.txt", "{}"),
    ("transformers:someone/network", "{}"),
    ("transformers:../../secret.txt", "{}"),
    ("transformers:timm_wrapper", '{architecture: "resnet18"}'),
    ("branchnet:__builtins__.eval", "{}"),
    ("branchnet:F.interpolate", "{}"),
    ("torchvision:resnet18", "{weights: DEFAULT}"),
    ("torchvision:resnet18", "{pretrained: true}"),
    ("torchvision:fcn_resnet50", "{weights_backbone: DEFAULT}"),
    ("timm:resnet18", "{pretrained: true}"),
    ("timm:resnet18", "{checkpoint_path: secret.txt}"),
    ("timm:resnet18", "{pretrained_cfg: {file: secret.txt}}"),
    ("timm:resnet18", '{pretrained_cfg_overlay: {url: "https://example.org/x.pth"}}'),
    ("timm:resnet18", '{act_layer: "torch.hub:load"}'),
    ("transformers:bert", "{trust_remote_code: true}"),
    ("transformers:bert", "{_name_or_path: secret.txt}"),
    ("transformers:bert", '{auto_map: {AutoModel: "someone--modeling.Evil"}}'),
    ("transformers:bert", '{attn_implementation: "someone/kernel"}'),
    ("transformers:bert", "{auto_class: AutoModelForEverything}"),
    ("transformers:detr", "{backbone: resnet50, use_pretrained_backbone: true}"),
    ("transformers:detr", "{backbone_config: {model_type: timm_backbone, backbone: resnet50}}"),
    ("transformers:maskformer", "{backbone: someone_network}"),
]

DOCUMENTS = [
    ("schema_version: 1", "schema_version: !!python/object/apply:os.system ['touch owned']"),
    ("schema_version: 1", "schema_version: !!python/name:os.system"),
    ("schema_version: 1", "schema_version: !!python/module:antigravity"),
    ("schema_version: 1", "schema_version: 1\n? !!python/object/new:os.system ['touch owned']\n: 1"),
    ("tasks: [a, b]", "tasks: !include secret.txt"),
    ("tasks: [a, b]", "tasks: !ENV ${HOME}"),
    ("tasks: [a, b]", "tasks: &t [a, b]\nlocations: *t"),
    ("schema_version: 1", "%TAG ! tag:yaml.org,2002:python/\n--- !object/apply:os.system ['touch owned']"),
    ("schema_version: 1", "schema_version: 1\n_target_: os.system"),
    ("schema_version: 1", "schema_version: 1\nimport: secret.txt"),
    ("schema_version: 1", "schema_version: 1\n<<: {description: x}"),
    ("schema_version: 1", "schema_version: 1\n__class__: x\n__init__: y"),
    ("until: layer1", "until: __class__.__init__.__globals__"),
    ("dtype: float32", "dtype: load"),
    ("shape: [1, 3, 32, 32]", "shape: [\"__import__('os')\"]"),
]


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a secret; running a program, opening the secret or connecting anywhere fails the test."""
    (tmp_path / SECRET).write_text("secret")
    monkeypatch.chdir(tmp_path)
    real_open = builtins.open

    def guarded_open(file: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(file, str | os.PathLike) and Path(file).name == SECRET:
            pytest.fail(f"opened {file}")
        return real_open(file, *arguments, **named)

    def forbidden(*arguments: Any, **named: Any) -> Any:
        pytest.fail(f"called with {arguments} {named}")

    monkeypatch.setattr(builtins, "open", guarded_open)
    monkeypatch.setattr(io, "open", guarded_open)
    for owner, name in [(os, "system"), (subprocess.Popen, "__init__"), (socket.socket, "connect"), (torch, "load")]:
        monkeypatch.setattr(owner, name, forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", forbidden)
    yield tmp_path
    assert not (tmp_path / "owned").exists()


def attempt(text: str, folder: Path) -> None:
    (folder / "spec.yaml").write_text(text)
    with pytest.raises(SpecError):
        Architecture.load(folder / "spec.yaml").build()


@pytest.mark.parametrize(("constructor", "arguments"), NETWORKS)
def test_no_network_entry_runs_reads_or_fetches(constructor: str, arguments: str, watched: Path) -> None:
    attempt(SPEC.replace("CONSTRUCTOR", constructor).replace("ARGUMENTS", arguments), watched)


@pytest.mark.parametrize(("old", "new"), DOCUMENTS)
def test_no_document_runs_reads_or_fetches(old: str, new: str, watched: Path) -> None:
    good = SPEC.replace("CONSTRUCTOR", "branchnet:scene_network").replace("ARGUMENTS", "{outputs: 1}")
    assert old in good
    attempt(good.replace(old, new), watched)


def test_the_template_itself_is_a_good_specification(watched: Path) -> None:
    good = SPEC.replace("CONSTRUCTOR", "branchnet:scene_network").replace("ARGUMENTS", "{outputs: 1}")
    (watched / "spec.yaml").write_text(good)
    assert Architecture.load(watched / "spec.yaml").build().tasks == ("a", "b")


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(SpecError, match="larger than"):
        Architecture.load("/dev/zero")


@pytest.mark.parametrize(
    "text",
    [
        "tasks: [" + "a, " * 49_000 + "a]\nlocations: [x]\ntree: [{until: x, branches: [a]}]",
        "tasks: [a]\nlocations: [x]\ntree: [{until: x, branches: [" + "b, " * 20_000 + "b]}]",
        "tasks: [a]\nlocations: [x]\ntree: [{until: x, branches: [a]}]\n"
        + "\n".join(f"k{i}: 1" for i in range(10_000)),
    ],
    ids=["tasks", "leaves", "keys"],
)
def test_a_large_wrong_file_is_refused_in_time_and_in_few_words(text: str, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(SpecError) as raised:
        Architecture.load(tmp_path / "spec.yaml")
    assert len(raised.value.problems) <= 101


def test_a_loaded_specification_has_built_nothing(watched: Path) -> None:
    text = SPEC.replace("CONSTRUCTOR", "torchvision:no_such_network").replace("ARGUMENTS", "{}")
    (watched / "spec.yaml").write_text(text)
    architecture = Architecture.load(watched / "spec.yaml")
    with pytest.raises(SpecError, match="no network 'no_such_network'"):
        architecture.build()
