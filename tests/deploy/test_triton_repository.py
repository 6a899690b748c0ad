"""A repository for Triton: read as the server reads it, run by ONNX Runtime, weights once on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import branchnet
from branchnet import BranchedNetwork, BuildError, Tree
from branchnet.deploy import triton_repository

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

TASKS = ("depth", "edges", "scene")
X = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Score(nn.Module):
    """One number for each sample, without a dimension of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((1, 2, 3))


def network(head: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), head).eval()


@pytest.fixture(scope="module")
def branched() -> BranchedNetwork:
    torch.manual_seed(0)
    heads = (nn.Conv2d(32, 1, 1), nn.Conv2d(32, 2, 1), nn.Sequential(nn.Conv2d(32, 1, 1), Score()))
    networks = {task: network(head) for task, head in zip(TASKS, heads, strict=True)}
    tree = Tree(TASKS, [[TASKS], [("depth", "edges"), ("scene",)]])
    return branchnet.build(tree, networks, example=X[:2], locations=["1", "2"], init="donor").eval()


@pytest.fixture(scope="module")
def repository(branched: BranchedNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "models"
    models = {"depth": ["depth"], "depth+edges": ["edges", "depth"], "all": list(TASKS)}
    made = triton_repository(branched, X[:2], folder, models=models, max_batch_size=4)
    assert [path.relative_to(folder).as_posix() for path in made] == ["depth", "depth+edges", "all"]
    return folder


def message_type() -> Any:
    """The part of Triton's model_config.proto that is used here; its text format refuses other fields."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="model_config_part.proto", package="part", syntax="proto3")
    names = (
        "INVALID",
        "BOOL",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "FP16",
        "FP32",
    )
    enum = file.enum_type.add(name="DataType")
    for number, name in enumerate((*names, "FP64", "STRING", "BF16")):
        enum.value.add(name=f"TYPE_{name}", number=number)

    def message(title: str, /, **fields: tuple[int, int, str]) -> None:
        made = file.message_type.add(name=title)
        for number, (field, (label, kind, other)) in enumerate(fields.items(), 1):
            made.field.add(name=field, number=number, label=label, type=kind, type_name=other or None)

    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    message("Shape", shape=(many, kinds.TYPE_INT64, ""))
    values = {
        "name": (one, kinds.TYPE_STRING, ""),
        "data_type": (one, kinds.TYPE_ENUM, ".part.DataType"),
        "dims": (many, kinds.TYPE_INT64, ""),
        "reshape": (one, kinds.TYPE_MESSAGE, ".part.Shape"),
    }
    message("Value", **values)
    message("Batching", max_queue_delay_microseconds=(one, kinds.TYPE_UINT64, ""))
    message(
        "ModelConfig",
        name=(one, kinds.TYPE_STRING, ""),
        platform=(one, kinds.TYPE_STRING, ""),
        max_batch_size=(one, kinds.TYPE_INT32, ""),
        input=(many, kinds.TYPE_MESSAGE, ".part.Value"),
        output=(many, kinds.TYPE_MESSAGE, ".part.Value"),
        dynamic_batching=(one, kinds.TYPE_MESSAGE, ".part.Batching"),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("part.ModelConfig"))


def config_of(folder: Path) -> Any:
    """What a server reads in config.pbtxt: by Triton's own message where its client is installed."""
    from google.protobuf import text_format

    try:
        from tritonclient.grpc.model_config_pb2 import ModelConfig
    except ImportError:
        ModelConfig = message_type()
    return text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())


def session_of(folder: Path) -> Any:
    return onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", ["depth", "depth+edges", "all"])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_model_gives_the_networks_outputs(
    branched: BranchedNetwork, repository: Path, name: str, batch: int
) -> None:
    session = session_of(repository / name)
    names = [output.name for output in session.get_outputs()]
    with torch.no_grad():
        own = branched(X[:batch], tasks=names)
    assert list(own) == names == list(TASKS if name == "all" else [t for t in TASKS if t in name])
    for task, found in zip(names, session.run(None, {"input": X[:batch].numpy()}), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), own[task], rtol=1e-4, atol=1e-5)


def test_configs_describe_the_models(repository: Path) -> None:
    config = config_of(repository / "all")
    assert (config.name, config.platform, config.max_batch_size) == ("all", "onnxruntime_onnx", 4)
    assert config.HasField("dynamic_batching")
    known = {value.name: list(value.dims) for value in (*config.input, *config.output)}
    assert known == {"input": [3, 16, 16], "depth": [1, 8, 8], "edges": [2, 8, 8], "scene": [1]}
    scene = next(value for value in config.output if value.name == "scene")
    assert scene.HasField("reshape") and not scene.reshape.shape
    session = session_of(repository / "all")
    kinds = {value.name: value.type for value in (*session.get_inputs(), *session.get_outputs())}
    floats = [value.data_type for value in (*config.input, *config.output)]
    assert set(kinds.values()) == {"tensor(float)"} and len(set(floats)) == 1
    kind = config.input[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[floats[0]].name
    assert kind == "TYPE_FP32"


def test_weights_are_one_file_on_disk(branched: BranchedNetwork, repository: Path) -> None:
    files = sorted(repository.rglob("weights.bin"))
    assert len(files) == 3 and len({(file.stat().st_dev, file.stat().st_ino) for file in files}) == 1
    assert not list(repository.glob("*.bin")) and not list(repository.glob("*.onnx"))
    large = [t.numel() * 4 for t in branched.state_dict().values() if t.numel() * 4 >= 1024]
    assert sum(large) <= files[0].stat().st_size < sum(large) + 4096 * (len(large) + 1)
    for file in repository.rglob("model.onnx"):
        assert file.stat().st_size < 12_000
        model = onnx.load(file, load_external_data=False)
        outside = [one for one in model.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL]
        assert outside and all(not one.raw_data and not one.float_data for one in outside)


def test_a_model_of_one_task_holds_no_other_tasks_nodes(repository: Path) -> None:
    names = {
        name: {
            one.name
            for one in onnx.load(repository / name / "1" / "model.onnx", load_external_data=False).graph.initializer
        }
        for name in ("depth", "depth+edges", "all")
    }
    assert names["depth"] < names["depth+edges"] < names["all"]
    assert not any("heads.1" in name or "nodes.1.1" in name for name in names["depth"])


def test_a_copy_of_one_model_alone_runs(branched: BranchedNetwork, repository: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(repository / "depth", tmp_path / "depth")
    found = session_of(tmp_path / "depth").run(None, {"input": X.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, branched(X, ["depth"])["depth"].numpy(), rtol=1e-4, atol=1e-5)


def test_one_batch_size_means_no_batching(branched: BranchedNetwork, tmp_path: Path) -> None:
    triton_repository(branched, X[:2], tmp_path / "fixed", models={"one": ["depth"]}, dynamic=False)
    config = config_of(tmp_path / "fixed" / "one")
    assert config.max_batch_size == 0 and list(config.input[0].dims) == [2, 3, 16, 16]
    assert not config.HasField("dynamic_batching")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": {}}, "models is empty"),
        ({"models": {"a/b": ["depth"]}}, "the model name 'a/b' cannot name a folder"),
        ({"models": {"a": ["depht"]}}, "'depht'"),
        ({"max_batch_size": -1}, "max_batch_size=-1"),
    ],
)
def test_wrong_arguments_are_refused(
    branched: BranchedNetwork, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BuildError, match=message):
        triton_repository(branched, X[:2], tmp_path / "models", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_is_left_alone(branched: BranchedNetwork, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(BuildError, match="exists; expected the name of a new folder"):
        triton_repository(branched, X[:2], tmp_path / "models")
    assert list(tmp_path.rglob("*")) == [tmp_path / "models"]
