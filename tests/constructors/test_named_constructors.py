"""Named constructors make what the libraries make, remember how, and refuse everything that could fetch or run code."""

from __future__ import annotations

import copy
import pickle
import socket
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from branchnet.errors import SpecError
from branchnet.models.constructors import Constructor, check_arguments, constructor_of, create

SMALL_BERT = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_torchvision_makes_the_published_resnet18() -> None:
    pytest.importorskip("torchvision")
    assert parameters(create("torchvision:resnet18")) == 11_689_512  # torchvision's model table


def test_timm_makes_the_published_convnext_tiny() -> None:
    pytest.importorskip("timm")
    assert parameters(create("timm:convnext_tiny")) == 28_589_128  # Liu et al. 2022, table 1: 28.6M


def test_transformers_makes_the_same_network_as_its_class() -> None:
    transformers = pytest.importorskip("transformers")
    network = create("transformers:bert", auto_class="AutoModelForSequenceClassification", num_labels=3, **SMALL_BERT)
    expected = transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=3, **SMALL_BERT))
    assert {k: v.shape for k, v in network.state_dict().items()} == {
        k: v.shape for k, v in expected.state_dict().items()
    }


def test_the_constructor_is_remembered_and_survives_copies() -> None:
    network = create("branchnet:scene_network", outputs=3, blocks=(1, 1, 1, 1))
    expected = Constructor("branchnet:scene_network", {"outputs": 3, "blocks": [1, 1, 1, 1]})
    assert constructor_of(network) == expected
    assert constructor_of(copy.deepcopy(network).eval()) == expected
    assert constructor_of(pickle.loads(pickle.dumps(network))) == expected
    assert {k: v.shape for k, v in expected.create().state_dict().items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }


def test_a_network_changed_afterwards_has_no_constructor() -> None:
    network = create("branchnet:scene_network", outputs=3, kind="image")
    network.head = nn.Linear(4, 4)
    assert constructor_of(network) is None
    assert constructor_of(nn.Linear(2, 2)) is None


def test_arguments_are_copied() -> None:
    blocks = [1, 1, 1, 1]
    constructor = Constructor("branchnet:scene_network", {"outputs": 3, "blocks": blocks})
    blocks.append(5)
    assert constructor.arguments["blocks"] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("torchvision:resnet81", "'resnet18'"),
        ("timm:convnext_tny", "'convnext_tiny'"),
        ("transformers:brt", "'bert'"),
        ("branchnet:scene_netwrk", "'scene_network'"),
        ("torchvsion:resnet18", "'torchvision'"),
    ],
)
def test_unknown_names_say_what_is_near(name: str, hint: str) -> None:
    pytest.importorskip(name.partition(":")[0].replace("torchvsion", "torchvision"))
    with pytest.raises(SpecError, match=f"did you mean.*{hint}"):
        create(name)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "builtins:eval",
        "torchvision.datasets.utils:os.system",
        "torchvision:datasets.utils.download_url",
        "torchvision:../resnet18",
        "timm:hf-hub:someone/net",
        "timm:local-dir:/tmp",
        "timm:hf_hub:someone/net",
        "transformers:someone/net",
        "transformers:timm_wrapper",
        "transformers:timm_backbone",
        "branchnet:__import__",
        "branchnet:nn.Module",
        "resnet18",
        ":",
        "",
    ],
)
def test_no_name_reaches_beyond_the_registries(name: str) -> None:
    with pytest.raises(SpecError):
        create(name)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("torchvision:resnet18", {"weights": "DEFAULT"}),
        ("torchvision:deeplabv3_resnet50", {"weights_backbone": "DEFAULT"}),
        ("torchvision:resnet18", {"pretrained": True}),
        ("timm:resnet18", {"pretrained": True}),
        ("timm:resnet18", {"checkpoint_path": "x.pth"}),
        ("timm:resnet18", {"pretrained_cfg": {"url": "x"}}),
        ("timm:resnet18", {"pretrained_cfg_overlay": {"file": "x"}}),
        ("timm:resnet18", {"cache_dir": "x"}),
        ("timm:resnet18", {"act_layer": "/etc/passwd"}),
        ("timm:resnet18", {"act_layer": "https://example.org"}),
        ("transformers:bert", {"trust_remote_code": True}),
        ("transformers:bert", {"auto_map": {"AutoModel": "x--y.z"}}),
        ("transformers:bert", {"attn_implementation": "kernels-community/flash-attn"}),
        ("transformers:bert", {"attn_implementation": "flash_attention_2"}),
        ("transformers:bert", {"_attn_implementation": "eager"}),
        ("transformers:bert", {"auto_class": "AutoTokenizer"}),
        ("transformers:detr", {"backbone": "resnet50"}),
        ("transformers:detr", {"backbone_config": {"model_type": "timm_wrapper"}}),
        ("transformers:detr", {}),
        ("transformers:bert", {"quantization_config": {"load_in_8bit": True}}),
    ],
)
def test_no_argument_fetches_anything(name: str, arguments: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name.partition(":")[0])
    monkeypatch.setattr(socket.socket, "connect", _refuse_to_connect)
    with pytest.raises(SpecError):
        create(name, **arguments)


@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "fasterrcnn_resnet50_fpn"])
def test_networks_whose_default_fetches_a_backbone_do_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", _refuse_to_connect)
    monkeypatch.setattr(socket.socket, "connect", _refuse_to_connect)
    assert parameters(create(f"torchvision:{name}")) > 0


def test_arguments_that_a_constructor_cannot_use() -> None:
    with pytest.raises(SpecError, match=r"scene_network cannot be made with \{'outputz': 3\}.*outputz"):
        create("branchnet:scene_network", outputz=3)


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SpecError, match=r"pip install 'branchnet\[vision\]'"):
        create("timm:resnet18")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.just("gelu"),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["depth", "layers", "norm"]), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(PLAIN, st.sampled_from(["weights", "checkpoint_path", "repo_id", "file", "pretrained_backbone"]))
def test_a_refused_name_is_found_at_any_depth(value: object, name: str) -> None:
    assert list(check_arguments({"outer": [value, {"inner": value}]})) == []
    problems = list(check_arguments({"outer": [value, {"inner": {name: value}}]}))
    assert [path for path, _ in problems] == [("outer", 1, "inner", name)]


def test_importing_the_module_imports_no_torch() -> None:
    code = "import sys, branchnet.models.constructors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _refuse_to_connect(*arguments: object, **named: object) -> None:
    raise AssertionError(f"reached for the network: {arguments} {named}")
