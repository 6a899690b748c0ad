"""`branchnet demo`: the whole way on procedural scenes, from seven single-task networks to one branched network."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from branchnet.cli.workspace import Workspace
    from branchnet.data import Scenes

BUDGET = "60% params"
PROBE = 500
TEST = 500
BATCH = 64
LEARNING_RATE = 3e-3
SHOWN = 5


def demo(*, out: Path = Path("branchnet-demo"), quick: bool = False, seed: int = 0) -> None:
    """Train seven networks on procedural scenes; find the best tree; build, distil and measure it.

    Takes about five minutes on two CPU cores; --quick about one, with much less training. Run again, it goes on from
    what is finished.

    Example: `branchnet demo --out my-demo`

    Parameters
    ----------
    out
        Folder for the results.
    quick
        Train much less and compile nothing: to see that everything works, not how well.
    seed
        Decides scenes, initial weights and the order of the batches.
    """
    import shlex

    import torch

    from branchnet import Budget
    from branchnet.cli.outputs import finish
    from branchnet.cli.scene_tasks import TASKS
    from branchnet.cli.study import Problem, find_trees, judge, train_networks
    from branchnet.cli.workspace import Workspace
    from branchnet.data import scenes

    workspace = Workspace(out)
    count, steps = (600, 16) if quick else (3200, 160)
    with workspace.console.status("render scenes"):
        train, test = scenes(count, seed=seed), scenes(PROBE + TEST, seed=seed, start=count)
    problem = Problem(
        networks=train_single_tasks(train, steps, seed, workspace),
        identity=["scenes", count, steps, seed],
        train=train.images,
        probe=test.images[:PROBE],
        test=test.images[PROBE:],
        targets={name: task.target(test.labels[name][PROBE:]) for name, task in TASKS.items()},
        metrics={name: task.metric for name, task in TASKS.items()},
        budget=Budget.parse(BUDGET),
        objective="mean-pair",
        locations=None,
        steps=steps,
        batch_size=BATCH,
        learning_rate=LEARNING_RATE,
        baselines=("shared", "random"),
        seed=seed,
        compiled=not quick,
    )
    trees = find_trees(problem, workspace)
    networks = train_networks(problem, trees, workspace)
    results = judge(problem, trees, networks, workspace)
    with torch.no_grad():
        outputs = networks["branched"](test.images[PROBE : PROBE + SHOWN])
    samples = [task.samples(name, problem.targets[name][:SHOWN], outputs[name]) for name, task in TASKS.items()]
    command = shlex.join(["branchnet", "demo", "--out", str(out), "--seed", str(seed), *(["--quick"] if quick else [])])
    finish(problem, trees, networks["branched"], results, workspace, command=command, samples=samples)


def train_single_tasks(train: Scenes, steps: int, seed: int, workspace: Workspace) -> dict[str, nn.Module]:
    """Train one network for each task, or read back those that are finished."""
    import torch

    import branchnet
    from branchnet.builder import load_weights, save_weights
    from branchnet.cli.scene_tasks import TASKS

    def make(name: str, unfinished: Path) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = TASKS[name].network()
        branchnet.fit(
            network,
            train.images,
            TASKS[name].target(train.labels[name]),
            TASKS[name].loss,
            steps=steps,
            batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            seed=seed,
            checkpoint=unfinished,
            description=f"train {name}",
        )
        return network

    def load(name: str, path: Path) -> nn.Module:
        network = TASKS[name].network().eval()
        load_weights(network, path)
        return network

    settings = ["scenes", len(train), steps, seed, BATCH, LEARNING_RATE]
    return {
        name: workspace.step(
            f"single-{name}.safetensors",
            settings,
            make=partial(make, name),
            save=save_weights,
            load=partial(load, name),
        )
        for name in TASKS
    }
