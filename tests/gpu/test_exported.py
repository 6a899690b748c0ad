"""Networks exported from the GPU are loaded there and give the same outputs; weights travel between devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from branchnet.deploy import load_weights, save_weights
from branchnet.deploy.exporting import write_model
from tests.gpu.toys import TASKS, assert_close, branched, images


def outputs_of(loaded: Any, device: str, batch: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    x = images(batch, seed=batch).to(device)
    with torch.no_grad():
        return loaded(x), x


def test_a_program_of_torch_export(device: str, tmp_path: Path) -> None:
    network = branched().to(device)
    written = write_model(tmp_path / "net.pt2", network, images().to(device), "pt2", dynamic=True)
    assert set(written.outputs) == set(TASKS) and all(value <= 1e-4 for value in written.difference.values())
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    for batch in (1, 2, 7):
        found, x = outputs_of(loaded, device, batch)
        with torch.no_grad():
            assert_close(found, network(x), 1e-4)
        assert all(value.device.type == device for value in found.values())


@pytest.mark.slow
def test_a_package_of_aotinductor(device: str, tmp_path: Path) -> None:
    network = branched().to(device)
    write_model(tmp_path / "net.pt2", network, images().to(device), "aoti", dynamic=True)
    loaded = torch._inductor.aoti_load_package(str(tmp_path / "net.pt2"))
    for batch in (1, 2, 7):
        found, x = outputs_of(loaded, device, batch)
        with torch.no_grad():
            assert_close(found, network(x), 1e-4)


def test_a_program_in_bfloat16(device: str, tmp_path: Path) -> None:
    network = branched().to(device, torch.bfloat16)
    written = write_model(tmp_path / "net.pt2", network, images().to(device, torch.bfloat16), "pt2", dynamic=False)
    assert all(value <= 4e-2 for value in written.difference.values())


@pytest.mark.parametrize("back", [False, True])
def test_weights_of_one_device_are_loaded_on_another(device: str, tmp_path: Path, back: bool) -> None:
    source, target = ("cpu", device) if back else (device, "cpu")
    network = branched().to(source)
    save_weights(network, tmp_path / "net.safetensors")
    other = branched().to(target)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
        load_weights(other, tmp_path / "net.safetensors")
        assert all(tensor.device.type == target for tensor in other.state_dict().values())
        assert_close(other(images().to(target)), network(images().to(source)))
