"""ONNX files: free lengths, versions of operators, metadata, and nothing of the machine they were made on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import branchnet
from branchnet import BranchedNetwork, BuildError, Tree
from branchnet.deploy import load_onnx
from branchnet.deploy.onnx_files.onnx_network import task_of

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network(outputs: int) -> nn.Module:
    features = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.GELU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(features, nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, outputs)).eval()


@pytest.fixture(scope="module")
def branched() -> BranchedNetwork:
    torch.manual_seed(0)
    networks = {"scene": network(3), "count": network(1)}
    return branchnet.build(Tree.shared(list(networks), 1), networks, example=X, locations=["0"], init="donor").eval()


@pytest.mark.parametrize("opset", [17, 18, 20, 21])
def test_every_version_of_operators_gives_the_networks_outputs(
    branched: BranchedNetwork, tmp_path: Path, opset: int
) -> None:
    exported = branchnet.export(branched, X, tmp_path / "net.onnx", opset=opset)
    model = onnx.load(exported.model)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [opset]
    assert model.ir_version == {17: 8, 18: 8, 20: 9, 21: 10}[opset]  # of onnx's table of versions
    session = onnxruntime.InferenceSession(str(exported.model), providers=["CPUExecutionProvider"])
    found = dict(zip(exported.outputs, session.run(None, {"input": X.numpy()}), strict=True))
    with torch.no_grad():
        for task, output in branched(X).items():
            torch.testing.assert_close(torch.from_numpy(found[task]), output, rtol=1e-4, atol=1e-5)


def test_metadata_say_tasks_labels_and_preprocessing(branched: BranchedNetwork, tmp_path: Path) -> None:
    labels, preprocessing = {"scene": ["Küche", "bath", "hall"]}, {"size": 16, "mean": [0.5], "std": [0.25]}
    branchnet.export(branched, X, tmp_path / "net.onnx", labels=labels, preprocessing=preprocessing)
    stored = {note.key: json.loads(note.value) for note in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert stored == {
        "branchnet.tasks": ["scene", "count"],
        "branchnet.labels": labels,
        "branchnet.preprocessing": preprocessing,
    }
    loaded = load_onnx(tmp_path / "net.onnx")
    assert (loaded.tasks, loaded.labels, loaded.preprocessing) == (("scene", "count"), labels, preprocessing)
    with torch.no_grad():
        torch.testing.assert_close(loaded(X, tasks=["count"]), branched(X, ["count"]), rtol=1e-4, atol=1e-5)
    content = (tmp_path / "net.onnx").read_bytes()
    assert str(Path(branchnet.__file__).parent).encode() not in content and b"site-packages" not in content


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("net.onnx", {"labels": {"scenes": ["a"]}}, "'scenes'"),
        ("net.onnx", {"preprocessing": {"mean": torch.zeros(3)}}, "preprocessing cannot be written as JSON"),
        ("net.onnx", {"labels": {"scene": ["a", "b"]}}, "labels of 'scene' are 2 names"),
        ("net.pt2", {"labels": {"scene": ["a"]}}, "labels, preprocessing and opset are of ONNX files"),
        ("net.pt2", {"opset": 18}, "labels, preprocessing and opset are of ONNX files"),
    ],
)
def test_what_no_file_can_hold_is_refused(
    branched: BranchedNetwork, tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BuildError, match=message):
        branchnet.export(branched, X, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_a_file_without_tasks_is_refused(branched: BranchedNetwork, tmp_path: Path) -> None:
    branchnet.export(branched, X, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(BuildError, match=r"other\.onnx' does not list its tasks"):
        load_onnx(tmp_path / "other.onnx")


@pytest.mark.parametrize(("name", "task"), [("a", "a"), ("a.0", "a"), ("a.b", "a.b"), ("a.b.c", "a.b"), ("ab", "")])
def test_a_tensor_is_of_the_task_with_the_longest_name(name: str, task: str) -> None:
    assert task_of(name, ["a", "a.b"]) == task


class Reader(nn.Module):
    """A classifier of token sequences with a mask, whose lengths are free."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, outputs)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.first(self.tokens(input_ids))) * attention_mask[..., None]
        return self.second(features.sum(1) / attention_mask.sum(1, keepdim=True))


def texts(length: int, seed: int = 0, batch: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[-1, length // 2 + 1 :] = 0
    return {"input_ids": torch.randint(1, 20, (batch, length), generator=generator), "attention_mask": mask}


def assert_free_lengths(network: BranchedNetwork, folder: Path) -> None:
    exported = branchnet.export(network, texts(12), folder / "net.onnx", dynamic="sizes")
    assert "batch x length" in exported.card.read_text()
    loaded = load_onnx(exported.model)
    for length, batch in ((3, 2), (12, 1), (31, 5)):
        x = texts(length, seed=length, batch=batch)
        with torch.no_grad():
            for task, output in network(x).items():
                wanted = output if isinstance(output, torch.Tensor) else output["logits"]
                found = loaded(x)[task]
                torch.testing.assert_close(
                    found["logits"] if isinstance(found, dict) else found, wanted, rtol=1e-4, atol=1e-5
                )
    swapped = dict(reversed(texts(7).items()))
    torch.testing.assert_close(loaded(**swapped), loaded(tuple(texts(7).values())))
    with pytest.raises(BuildError, match=r"the inputs are \['input_ids'\]; expected input_ids, attention_mask"):
        loaded(input_ids=swapped["input_ids"])
    branchnet.export(network, texts(12), folder / "fixed.onnx")
    with pytest.raises(Exception, match=r"Got: 3 Expected: 12"):
        load_onnx(folder / "fixed.onnx")(texts(3))


def test_sequences_may_have_any_length(tmp_path: Path) -> None:
    networks = {"topic": Reader(3).eval(), "mood": Reader(2).eval()}
    made = branchnet.build(
        Tree.shared(list(networks), 1), networks, example=texts(12), locations=["first"], init="donor"
    ).eval()
    assert_free_lengths(made, tmp_path)


def test_a_bert_takes_texts_of_any_length(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    networks = {}
    for task, count in (("topic", 3), ("mood", 2)):
        config = transformers.BertConfig(vocab_size=20, max_position_embeddings=40, num_labels=count, **settings)
        networks[task] = transformers.BertForSequenceClassification(config).eval()
    staged = branchnet.split_all(networks, texts(12), locations=2)
    tree = Tree(list(networks), [[["topic", "mood"]], [["topic"], ["mood"]]])
    assert_free_lengths(branchnet.build(tree, staged, init="donor").eval(), tmp_path)
