"""torchvision's wheel for CUDA next to a CPU build of torch: constructors and factories work all the same."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = """
import branchnet
from branchnet.pipeline.config.config_sources import call_factory
from pathlib import Path
network = branchnet.create("torchvision:resnet18", num_classes=3).eval()
assert network(__import__("torch").rand(1, 3, 32, 32)).shape == (1, 3)
assert type(call_factory("own_networks:small", Path("."))) is type(network)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None or torch.version.cuda is not None,
    reason="needs torchvision and a CPU build of torch",
)
@pytest.mark.parametrize("first", ["create", "factory"])
def test_torchvision_is_imported_where_its_operators_are_not_there(tmp_path: Path, first: str) -> None:
    own = "from torchvision.models import resnet18\n\n\ndef small():\n    return resnet18(num_classes=3)\n"
    (tmp_path / "own_networks.py").write_text(own)
    lines = SCRIPT.strip().splitlines()
    order = lines if first == "create" else [*lines[:3], "call_factory('own_networks:small', Path('.'))", *lines[3:]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(order)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
