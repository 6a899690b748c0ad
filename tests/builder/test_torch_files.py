"""Weights in files of torch.save: in the forms that training loops write, and hostile ones."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from branchnet.deploy import load_weights
from branchnet.errors import CheckpointError


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


class Wrapper(nn.Module):
    """What Lightning modules are: the network is an attribute."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class OptimizedModule(nn.Module):
    """Names its tensors as torch.compile's class of this name, which takes long to import."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._orig_mod = network


FORMS: dict[str, Callable[[nn.Module], Any]] = {
    "plain": lambda net: net.state_dict(),
    "section": lambda net: {"epoch": 3, "state_dict": net.state_dict(), "optimizer": {"lr": 0.1}},
    "model": lambda net: {"model": net.state_dict(), "ema": network().state_dict()},
    "model_state_dict": lambda net: {"model_state_dict": net.state_dict(), "loss": 0.5},
    "averaged": lambda net: {"ema": AveragedModel(net).state_dict()},
    "data parallel": lambda net: nn.DataParallel(net).state_dict(),
    "compiled": lambda net: OptimizedModule(net).state_dict(),
    "compiled inside": lambda net: Wrapper(OptimizedModule(net)).state_dict(),
    "lightning": lambda net: {"state_dict": Wrapper(net).state_dict()},
    "all at once": lambda net: {"model": nn.DataParallel(Wrapper(OptimizedModule(net))).state_dict()},
}


@pytest.mark.parametrize(
    ("form", "suffix"), [*((form, ".pt") for form in FORMS), ("plain", ".pth"), ("section", ".PTH")]
)
def test_every_form_gives_the_tensors_that_were_saved(
    form: str, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved, loaded = network(), network()
    path = tmp_path / f"weights{suffix}"
    torch.save(FORMS[form](saved), path)
    load_weights(loaded, path)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert len(caplog.messages) == (form != "plain")
    assert ("'ema'" in caplog.text) == (form in ("model", "averaged"))


def test_names_that_are_the_networks_own_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved, loaded = Wrapper(network()), Wrapper(network())
    torch.save(saved.state_dict(), tmp_path / "weights.pt")
    load_weights(loaded, tmp_path / "weights.pt")
    assert torch.equal(loaded.state_dict()["model.0.weight"], saved.state_dict()["model.0.weight"])
    assert not caplog.messages


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_hostile_file_is_run(zipped: bool, tmp_path: Path) -> None:
    path, trace = tmp_path / "weights.pt", tmp_path / "trace"
    content = {"state_dict": network().state_dict(), "x": Hostile(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="system"):
        load_weights(network(), path)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Hostile(trace)))
    with pytest.raises(CheckpointError, match=r"bare.pth (cannot be read as weights|holds Python objects)"):
        load_weights(network(), tmp_path / "bare.pth")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (network(), "holds Python objects that loading would run: .*Conv2d.*state_dict"),
        ([1, 2], "holds a list; expected tensors by name"),
        ({"weights": {"a": torch.zeros(1)}}, "a dict with weights; expected tensors by name, or one of the sections"),
        ({"state_dict": {"a": torch.zeros(1), "b": 3}}, "'b' is a int among tensors"),
        ({"0.weight": torch.zeros(4, 3, 3, 3)}, "does not fit the network"),
    ],
)
def test_other_files_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_weights(net, tmp_path / "weights.pt")
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_weights(network(), tmp_path / "none.pt")
    torch.save(network().state_dict(), tmp_path / "weights.pt")
    content = (tmp_path / "weights.pt").read_bytes()
    for kept in (0, 10, len(content) // 2):
        (tmp_path / "cut.pt").write_bytes(content[:kept])
        with pytest.raises(CheckpointError, match=r"cut\.pt cannot be read as weights"):
            load_weights(network(), tmp_path / "cut.pt")
