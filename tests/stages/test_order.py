"""The order of parameters, which optimizers' saved states rely on, is the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import torch, branchnet
network = branchnet.create("branchnet:scene_network", outputs=2, width=4)
staged = branchnet.split(network, torch.rand(1, 3, 32, 32), locations=["stem", "layer2", "layer4"])
print(*staged.state_dict(), sep="\\n")
"""


def test_parameters_come_in_the_same_order_under_any_hash_seed(capsys: pytest.CaptureFixture[str]) -> None:
    """Of this process, and of one with another seed."""
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    other = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    exec(CODE)
    order = capsys.readouterr().out
    assert "stages.0.stem.0.weight" in order.split()
    assert order == other.stdout
