"""Exported files that decode, and files that take images of other sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import branchnet
from branchnet.errors import BuildError
from tests.stages.heads.detectors import SIZE, detector


class Grid(nn.Module):
    """A head that gives each position's offset from its own coordinates in evaluation mode."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 2 + classes, 1)
        self.stride = 2

    def forward(self, x: Tensor) -> Any:
        return {"loss": self.layer(x).mean()} if self.training else self.decode_outputs(self.raw_outputs(x), None)

    def raw_outputs(self, x: Tensor) -> Tensor:
        return self.layer(x)

    def decode_outputs(self, raw: Tensor, size: Any) -> dict[str, Tensor]:
        rows = torch.arange(raw.shape[2], device=raw.device)[:, None].expand(raw.shape[2:])
        columns = torch.arange(raw.shape[3], device=raw.device)[None].expand(raw.shape[2:])
        places = torch.stack([columns, rows]) + 0.5
        return {"centres": (raw[:, :2] + places) * self.stride, "scores": raw[:, 2:].sigmoid()}


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    backbone = (nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    return {task: nn.Sequential(*backbone, Grid(classes)).eval() for task, classes in (("people", 1), ("cars", 3))}


def branched(models: dict[str, nn.Module], x: Tensor) -> branchnet.BranchedNetwork:
    staged = branchnet.split_all({t: branchnet.raw_heads(m) for t, m in models.items()}, x, locations=["1", "3"])
    return branchnet.build(branchnet.Tree.separate(tuple(models), 2), staged, init="donor").eval()


@pytest.mark.parametrize("name", ["model.pt2", "model.onnx"])
def test_files_decode_and_take_other_sizes(tmp_path: Path, name: str) -> None:
    pytest.importorskip("onnxscript")
    models, x = networks(), torch.rand(2, 3, 16, 16)
    one = branched(models, x)
    exported = branchnet.export(one, x, tmp_path / name, dynamic="sizes", decode=models)
    assert exported.outputs == ("people.centres", "people.scores", "cars.centres", "cars.scores")
    assert "batch x 3 x height x width" in exported.card.read_text()
    other = torch.rand(3, 3, 24, 10)
    if name.endswith("pt2"):
        found = {
            key: value.numpy(force=True) for key, value in torch.export.load(exported.model).module()(other).items()
        }
    else:
        session = pytest.importorskip("onnxruntime").InferenceSession(str(exported.model))
        found = dict(zip(exported.outputs, session.run(None, {"input": other.numpy()}), strict=True))
    for task, model in models.items():
        for key, value in model(other).items():
            np.testing.assert_allclose(found[f"{task}.{key}"], value.detach(), atol=1e-4)


def test_tasks_are_decoded_where_asked_for(tmp_path: Path) -> None:
    models, x = networks(), torch.rand(2, 3, 16, 16)
    one = branched(models, x)
    exported = branchnet.export(one, x, tmp_path / "model.pt2", decode={"cars": models["cars"]})
    assert exported.outputs == ("people", "cars.centres", "cars.scores")
    with pytest.raises(BuildError, match=r"decode names \['dogs'\]; expected some of .*people"):
        branchnet.export(one, x, tmp_path / "other.pt2", decode={"dogs": models["cars"]})
    with pytest.raises(BuildError, match="safetensors decode nothing"):
        branchnet.export(one, x, tmp_path / "other.safetensors", decode=models)
    assert not list(tmp_path.glob("other*"))


def test_suppression_is_in_no_file(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    models = {"cars": detector("retinanet")}
    staged = branchnet.split_all(
        {task: branchnet.raw_heads(model) for task, model in models.items()}, torch.rand(1, 3, SIZE, SIZE), locations=1
    )
    one = branchnet.build(branchnet.Tree.separate(["cars"], 1), staged, init="donor").eval()
    with pytest.raises(BuildError, match=r"'cars' \(RetinaNet\).*expected decode= without it"):
        branchnet.export(one, torch.rand(1, 3, SIZE, SIZE), tmp_path / "model.pt2", decode=models)
