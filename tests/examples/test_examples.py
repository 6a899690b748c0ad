"""The examples run as they stand, offline, and what they print agrees with what is computed again here."""

from __future__ import annotations

import json
import runpy
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import branchnet
from branchnet.data import scenes

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {
    "latency_and_onnx": ("onnx", "onnxscript", "onnxruntime"),
    "text_heads": ("transformers",),
    "three_mobilenets": ("torchvision",),
    "timm_networks": ("timm",),
    "with_lightning": ("lightning",),
}
"""What an example needs besides branchnet."""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No example opens a connection to another machine, or leaves a file where it was started."""

    def connect(self: socket.socket, address: Any) -> None:
        raise AssertionError(f"an example connects to {address}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", connect)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    assert not [path for path in tmp_path.iterdir() if path.name != "lightning_logs"]


def parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def smaller_than_separate(found: dict[str, Any]) -> None:
    assert parameters(found["branched"]) < sum(map(parameters, found["networks"].values()))


def mobilenets(found: dict[str, Any]) -> None:
    smaller_than_separate(found)
    assert all(-100 <= kept <= 100 for kept in found["kept"].values())
    assert sorted(found["kept"]) == ["crowded", "layout", "spheres"]


def kinds(found: dict[str, Any]) -> None:
    smaller_than_separate(found)
    labels = found["test"].labels
    right = (found["networks"]["scene"](found["test"].images).argmax(1) == labels["scene"]).float().mean()
    assert found["scores"]["separate"]["scene"] == pytest.approx(100 * float(right), abs=0.1)


def timm_networks(found: dict[str, Any]) -> None:
    smaller_than_separate(found)
    assert found["settings"]["mean"] == (0.485, 0.456, 0.406)


def text(found: dict[str, Any]) -> None:
    """Layers with equal weights are shared at no cost; all layers are not."""
    assert max(found["errors"]["the frozen layers shared"].values()) < 1e-5
    assert max(found["errors"]["everything shared"].values()) > 1e-3


def labelled(found: dict[str, Any]) -> None:
    smaller_than_separate(found)
    assert len(found["train"]) == 192
    layouts = scenes(256, size=32).labels["scene"]
    known = torch.arange(256) % 5 != 0
    test = torch.arange(256) % 4 == 0
    commonest = layouts[known & ~test].mode().values
    right = (layouts[known & test] == commonest).float().mean()
    assert found["scores"]["constant"]["scene"] == pytest.approx(100 * float(right), abs=0.1)


def latency(found: dict[str, Any]) -> None:
    assert found["found"].unit == "latency"
    assert sorted(found["errors"]) == sorted(found["networks"])
    assert max(found["errors"].values()) < 1e-3


def added(found: dict[str, Any]) -> None:
    """The old outputs stay, and the new task costs less the more it shares."""
    before = found["deployed"](found["test"].images)
    for network in found["grown"].values():
        outputs = network(found["test"].images)
        assert all(torch.equal(outputs[task], before[task]) for task in before)
    sizes = [found["sizes"][until] for until in ("layer1", "layer2", "layer3")]
    assert sizes == sorted(sizes, reverse=True)
    assert found["chosen"].frozen


def lightning(found: dict[str, Any]) -> None:
    depth = found["depth"]
    mean, test = depth[:128][~depth[:128].isnan()].mean(), depth[128:][~depth[128:].isnan()]
    assert found["constant"]["depth"] == pytest.approx(float((test - mean).pow(2).mean().sqrt()), rel=1e-3)
    assert not found["network"].training


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "add_a_task": added,
    "labelled_folder": labelled,
    "latency_and_onnx": latency,
    "text_heads": text,
    "three_kinds_of_task": kinds,
    "three_mobilenets": mobilenets,
    "timm_networks": timm_networks,
    "with_lightning": lightning,
}


def test_every_example_is_checked_and_says_what_to_replace() -> None:
    assert sorted(CHECKS) == sorted(path.stem for path in EXAMPLES.glob("*.py"))
    for path in EXAMPLES.glob("*.py"):
        assert "eplace" in path.read_text(encoding="utf-8").split('"""')[1], path.name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(CHECKS))
def test_an_example_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    found = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.strip() and "nan" not in printed.split()
    CHECKS[name](found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.ipynb")))
def test_a_notebook_runs(name: str) -> None:
    notebook = json.loads((EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None, "notebooks are kept without outputs"
            exec(compile("".join(cell["source"]), f"{name}.ipynb, cell {number}", "exec"), names)
    if name == "first_steps":
        assert all(score > 0 for score in names["after"].values())
    else:
        figures = [names[f"{figure}_figure"] for figure in ("affinity", "front", "study")]
        assert all(figure.axes for figure in figures)
        assert names["front"][-1].cost <= names["front"][0].cost or names["front"][0].cost <= names["front"][-1].cost
        assert names["study"].reference == "separate"
        assert isinstance(names["difference"], branchnet.training.PairedDifference)
