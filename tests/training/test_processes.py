"""Several processes train as one does on the same batches: gradients are averaged, each takes its share."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning.fabric")
pytestmark = pytest.mark.slow

SCRIPT = """
import os, sys, torch, branchnet
from branchnet.training import squared_loss
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler
import torch.nn.functional as F
torch.set_num_threads(1)
torch.manual_seed(0)
single = lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)).double()
networks = {task: single() for task in "abc"}
x = torch.randn(48, 5, dtype=torch.float64)
labels = {task: torch.randn(48, 2, dtype=torch.float64) for task in "abc"}
if "missing" in sys.argv[2]:
    for number, values in enumerate(labels.values()):
        values[torch.randperm(48)[: 12 + 8 * number]] = torch.nan
class Rows(torch.utils.data.Dataset):
    def __init__(self, x, labels): self.x, self.labels = x, labels
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], {task: values[i] for task, values in self.labels.items()}
class Both:
    def __init__(self, shares): self.shares, self.drop_last = shares, False
    def __len__(self): return 4
    def set_epoch(self, epoch): [one.set_epoch(epoch) for one in self.shares]
    def __iter__(self):
        one, other = map(list, self.shares)
        for k in range(0, 24, 6): yield one[k : k + 6] + other[k : k + 6]
tree = branchnet.Tree(list("abc"), [[list("abc")], [["a", "b"], ["c"]]])
staged = branchnet.split_all(networks, x[:2], locations=["1", "3"])
net = branchnet.build(tree, staged, init="donor")
sgd = lambda groups: torch.optim.SGD(groups, momentum=0.9)
settings = dict(steps=12, batch_size=12, learning_rate=0.05, optimizer=sgd, progress=False, every=4)
if sys.argv[2] == "distil":
    history = branchnet.distill(net, networks, x, checkpoint=sys.argv[3] if len(sys.argv) > 3 else None, **settings)
else:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, *labels.values()), 12)
    batches = [(a, dict(zip("abc", b))) for a, *b in loader]
    train = batches if sys.argv[2] == "loader missing" else (x, labels)
    if sys.argv[2] == "sampler":  # each process reads samples of its own; one process reads those of both
        rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        data = Rows(x, labels)
        shares = [DistributedSampler(data, 2, number, shuffle=True) for number in range(2)]
        train = DataLoader(data, 6, sampler=shares[rank]) if count > 1 else DataLoader(data, batch_sampler=Both(shares))
    if sys.argv[2] == "void":  # labels of pixels, most of which are missing in some samples
        labels = {task: values.masked_fill(torch.rand(48, 2) < torch.linspace(0, 1, 48)[:, None], torch.nan)
                  for task, values in labels.items()}
        train = (x, labels)
    loss = squared_loss if sys.argv[2] == "void" else F.mse_loss
    more = {"weights": "rlw"} if sys.argv[2] == "missing" else {}
    history = branchnet.fit(net, train, dict.fromkeys("abc", loss), keep="last", **more, **settings)
torch.save([dict(history.losses), history.after, net.state_dict()], sys.argv[1] + os.environ.get("RANK", ""))
"""


def run(folder: Path, name: str, kind: str, processes: int, *others: str) -> None:
    script = folder / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([*launch, str(script), str(folder / name), kind, *others], check=True, env=environment, timeout=300)


@pytest.mark.parametrize(
    ("kind", "processes"),
    [("all", 2), ("missing", 3), ("loader missing", 2), ("distil", 2), ("sampler", 2), ("void", 2)],
)
def test_several_processes_train_the_network_that_one_trains(tmp_path: Path, kind: str, processes: int) -> None:
    run(tmp_path, "one", kind, 1)
    run(tmp_path, "many", kind, processes)
    losses, after, weights = torch.load(tmp_path / "one")
    for rank in range(processes):
        others, judged, found = torch.load(tmp_path / f"many{rank}")
        for name, tensor in weights.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)
        for task, values in losses.items():
            torch.testing.assert_close(
                torch.tensor(others[task]), torch.tensor(values), rtol=1e-5, atol=1e-6, equal_nan=True
            )
        assert judged == pytest.approx(after, rel=1e-5)


def test_a_finished_checkpoint_gives_all_processes_the_result(tmp_path: Path) -> None:
    for name in ("first", "again"):
        run(tmp_path, name, "distil", 2, str(tmp_path / "run.pt"))
    for rank in range(2):
        one, other = (torch.load(tmp_path / f"{name}{rank}") for name in ("first", "again"))
        assert one[0] == other[0]
        assert all(torch.equal(tensor, other[2][name]) for name, tensor in one[2].items())


def run_on_two_nodes(folder: Path, name: str, kind: str, *others: str) -> None:
    """Each node has a launcher, a working directory and thereby a disk of its own, as machines have."""
    script = folder / "train.py"
    script.write_text(textwrap.dedent(SCRIPT))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    launchers = []
    for node in range(2):
        disk = folder / f"node{node}"
        disk.mkdir(exist_ok=True)
        launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={node}"]
        launch += ["--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={port}"]
        command = [*launch, str(script), str(folder / name), kind, *others]
        launchers.append(subprocess.Popen(command, cwd=disk, env=environment))
    assert [launcher.wait(timeout=300) for launcher in launchers] == [0, 0]


def test_two_nodes_train_the_network_that_one_process_trains(tmp_path: Path) -> None:
    run(tmp_path, "one", "distil", 1)
    run_on_two_nodes(tmp_path, "nodes", "distil", "run.pt")
    assert (tmp_path / "node0/run.pt").exists() and not (tmp_path / "node1/run.pt").exists()  # the first one writes
    run_on_two_nodes(tmp_path, "again", "distil", "run.pt")  # resumed from the first node's disk
    losses, after, weights = torch.load(tmp_path / "one")
    for name in ("nodes0", "nodes1", "again0", "again1"):
        others, judged, found = torch.load(tmp_path / name)
        for key, tensor in weights.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=1e-6)
        for task, values in losses.items():
            torch.testing.assert_close(torch.tensor(others[task]), torch.tensor(values), rtol=1e-5, atol=1e-6)
        assert judged == pytest.approx(after, rel=1e-5)
