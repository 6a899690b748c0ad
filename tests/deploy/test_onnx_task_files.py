"""ONNX files of tasks that are computed one at a time: run by ONNX Runtime, weights once on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import branchnet
from branchnet import BuildError, Sharing, Tree
from branchnet.builder import SharingNetwork
from branchnet.deploy import onnx_task_files

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

TASKS = ("depth", "edges", "normals")
SHARING = Sharing(
    TASKS, [[["depth", "edges"], ["normals"]], [["depth"], ["edges", "normals"]], [["depth", "normals"], ["edges"]]]
)
X = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network(outputs: int) -> nn.Module:
    stages = [nn.Conv2d(3, 32, 3, 2, 1), nn.Sequential(nn.Conv2d(32, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU())]
    return nn.Sequential(*stages, nn.Conv2d(32, 32, 3, 1, 1), nn.Conv2d(32, outputs, 1)).eval()


@pytest.fixture
def sharing() -> SharingNetwork:
    torch.manual_seed(0)
    networks = {task: network(k + 1) for k, task in enumerate(TASKS)}
    return branchnet.build(SHARING, networks, example=X[:2], locations=["0", "1", "2"]).eval()


def test_every_file_gives_its_tasks_output(sharing: SharingNetwork, tmp_path: Path) -> None:
    made = onnx_task_files(sharing, X[:2], tmp_path / "models")
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        "depth.onnx",
        "edges.onnx",
        "normals.onnx",
        "weights.bin",
    ]
    for task, file in made.items():
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        for batch in (1, 3):
            (found,) = session.run(None, {session.get_inputs()[0].name: X[:batch].numpy()})
            with torch.no_grad():
                wanted = sharing(X[:batch], task=task)
            torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)
        assert branchnet.deploy.load_onnx(file).tasks == (task,)


def test_the_disk_holds_every_stage_once(sharing: SharingNetwork, tmp_path: Path) -> None:
    onnx_task_files(sharing, X[:2], tmp_path / "models")
    weights = [p.numel() * 4 for p in sharing.parameters() if p.numel() * 4 >= 1024]
    alone = sum(p.numel() * 4 for task in TASKS for p in sharing.path(task).parameters())
    size = (tmp_path / "models" / "weights.bin").stat().st_size
    assert sum(weights) <= size < sum(weights) + 4096 * (len(weights) + 1) < alone
    places = {}
    for task in TASKS:
        file = tmp_path / "models" / f"{task}.onnx"
        assert file.stat().st_size < 12_000
        outside = [
            tuple(entry.value for entry in one.external_data)
            for one in onnx.load(file, load_external_data=False).graph.initializer
            if one.data_location == onnx.TensorProto.EXTERNAL
        ]
        assert all(place[0] == "weights.bin" for place in outside)
        places[task] = set(outside)
    shared = {pair: len(places[pair[0]] & places[pair[1]]) for pair in (("depth", "edges"), ("depth", "normals"))}
    assert shared == {("depth", "edges"): 1, ("depth", "normals"): 1}
    assert len(places["edges"] & places["normals"]) == 1


def test_other_networks_and_folders_that_exist_are_refused(sharing: SharingNetwork, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(BuildError, match="exists; expected the name of a new folder"):
        onnx_task_files(sharing, X[:2], tmp_path / "models")
    networks = {task: network(1) for task in TASKS}
    nested = branchnet.build(Tree.shared(TASKS, 1), networks, example=X[:2], locations=["0"], init="donor")
    with pytest.raises(BuildError, match="expected a SharingNetwork"):
        onnx_task_files(nested, X[:2], tmp_path / "new")  # type: ignore[arg-type]
    with pytest.raises(BuildError, match="training mode"):
        onnx_task_files(sharing.train(), X[:2], tmp_path / "new")
    assert list(tmp_path.iterdir()) == [tmp_path / "models"]
