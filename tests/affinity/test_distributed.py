"""Several processes give what one gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from branchnet.affinity import Affinity
from tests.affinity.distributed_worker import MEASURES
from tests.affinity.toys import images, small_cnn

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "inputs"), [(2, 24), (3, 23)])
def test_equals_one_process(processes: int, inputs: int, tmp_path: Path) -> None:
    """Four networks on three processes: one is read by all of them together, in uneven shares of the probe."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["--module", "tests.affinity.distributed_worker", str(tmp_path), str(inputs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, check=True, env=environment, timeout=550)
    networks = {f"task{seed}": small_cnn(seed) for seed in range(5)}
    for name, measure in MEASURES.items():
        single = measure(networks, images(inputs), batch_size=5)
        for rank in range(processes):
            found = Affinity.load(tmp_path / f"{name}-{rank}.npz")
            np.testing.assert_allclose(found.values, single.values, atol=1e-6)
            if single.samples is not None:
                np.testing.assert_allclose(found.samples, single.samples, atol=1e-6)
    for rank in range(processes):
        assert "was given other probe inputs" in (tmp_path / f"error-{rank}").read_text()
        assert "task 'dead' at 'only'" in (tmp_path / f"dead-{rank}").read_text()
        assert "as asked" in (tmp_path / f"broken-{rank}").read_text()
