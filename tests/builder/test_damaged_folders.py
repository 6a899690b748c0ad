"""Thousands of damaged weights, records and saved folders: only the library's own errors get out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import branchnet
from branchnet import BranchedNetwork
from branchnet.deploy import load_weights, save_weights
from branchnet.deploy.checkpoint_metadata import read_record, write_record
from branchnet.deploy.weight_files import file_checksum, read_metadata
from branchnet.errors import BranchnetError, CheckpointError
from branchnet.specification import realisation
from branchnet.stages.graph.settings import module_signature
from tests.builder.test_saving import network_with_a_whole_record
from tests.damage import damaged


@pytest.fixture(scope="module")
def kept() -> BranchedNetwork:
    return network_with_a_whole_record()


def damaged_weights_are_refused(folder: Path, count: int) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    path = folder / "w.safetensors"
    save_weights(module, path, metadata={"branchnet": "{}"})
    for content in damaged(path.read_bytes(), count):
        path.write_bytes(content)
        for read in (read_metadata, file_checksum, lambda path: load_weights(module, path)):
            with suppress(CheckpointError):
                read(path)


def damaged_records_are_refused(kept: BranchedNetwork, count: int) -> None:
    for content in damaged(write_record(kept).encode(), count):
        with suppress(CheckpointError):
            read_record(content.decode(errors="replace"), kept)


@contextmanager
def structures_split_once() -> Iterator[None]:
    """Loading splits networks of one structure once, which takes a second or two each time otherwise."""
    known: dict[Any, Any] = {}

    def split_once(networks: dict[str, nn.Module], example: Tensor, **settings: Any) -> Any:
        structures = tuple((task, module_signature(network)) for task, network in networks.items())
        key = (structures, example.shape, example.dtype, str(settings))
        if key not in known:
            try:
                known[key] = branchnet.split_all(networks, example, **settings)
            except BranchnetError as error:
                known[key] = error
        if isinstance(known[key], BranchnetError):
            raise known[key]
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(realisation, "split_all", split_once)
        yield


def damaged_folders_are_refused(kept: BranchedNetwork, folder: Path, count: int) -> None:
    branchnet.save(kept, folder)
    for name in ("architecture.yaml", "weights.safetensors"):
        whole = (folder / name).read_bytes()
        with structures_split_once():
            for content in damaged(whole, count):
                (folder / name).write_bytes(content)
                with suppress(BranchnetError):
                    branchnet.load(folder)
        (folder / name).write_bytes(whole)


def test_damaged_files_raise_only_our_errors(kept: BranchedNetwork, tmp_path: Path) -> None:
    damaged_weights_are_refused(tmp_path, 300)
    damaged_records_are_refused(kept, 300)
    damaged_folders_are_refused(kept, tmp_path, 10)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands_of_damaged_files_raise_only_our_errors(kept: BranchedNetwork, tmp_path: Path) -> None:
    damaged_weights_are_refused(tmp_path, 5000)
    damaged_records_are_refused(kept, 5000)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_damaged_folders_raise_only_our_errors(kept: BranchedNetwork, tmp_path: Path) -> None:
    damaged_folders_are_refused(kept, tmp_path, 2500)
