"""The order of parameters, which optimizers' saved states rely on, is the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
import torch, branchnet
network = branchnet.create("branchnet:scene_network", outputs=2, width=4)
staged = branchnet.split(network, torch.rand(1, 3, 32, 32), locations=["stem", "layer2", "layer4"])
print(*staged.state_dict(), sep="\\n")
"""


def test_parameters_come_in_the_same_order_under_any_hash_seed() -> None:
    orders = [
        subprocess.run(
            [sys.executable, "-c", CODE],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert "stages.0.stem.0.weight" in orders[0].split()
    assert orders[0] == orders[1]
