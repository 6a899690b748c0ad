"""The demo's run: train seven networks on procedural scenes, then go the whole way with them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from branchnet.builder import BranchedNetwork
from branchnet.clustering import Budget
from branchnet.data import Scenes, scenes
from branchnet.deploy import load_weights, save_weights
from branchnet.pipeline.config.run_config import RunOptions
from branchnet.pipeline.demo.scene_tasks import TASKS, run_config
from branchnet.pipeline.full_run import finish
from branchnet.pipeline.measuring_steps import judge
from branchnet.pipeline.plans.dry_run import Plan, plan_comparison, plan_distillation
from branchnet.pipeline.plans.run_plan import plan_after_comparison
from branchnet.pipeline.problem import VALIDATION, Problem
from branchnet.pipeline.run_result import RunResult
from branchnet.pipeline.steps import find_trees, train_networks
from branchnet.pipeline.workspace import STEPS, Workspace
from branchnet.reporting import TaskSamples
from branchnet.stages import split_all
from branchnet.training import fit
from branchnet.utils.files import write_text
from branchnet.utils.progress import silence
from branchnet.utils.random_state import seeded

BUDGET = "60% params, 60% flops"
PROBE = 500
TEST = 500
BATCH = 64
LEARNING_RATE = 3e-3
"""Of single-task networks, from random weights; merged ones would forget at it."""
MERGED_RATE = 1e-4
"""Peak learning rate of every branched network, so that all are compared at the same one: what the range test chooses
for the tree that the search proposes."""
STITCH_STEPS = 40
SHOWN = 5
RANDOM_TREES = 1


@dataclass(frozen=True)
class Size:
    """How much is trained.

    Attributes:
        count: scenes to train on.
        steps: batches of every training.
        random_trees: how many random trees are compared.
        compiled: whether latencies are measured compiled, too.
    """

    count: int
    steps: int
    random_trees: int
    compiled: bool


FULL = Size(3200, 128, RANDOM_TREES, compiled=True)
QUICK = Size(600, 16, 1, compiled=False)


def run_demo(
    folder: str | os.PathLike[str] = "branchnet-demo",
    *,
    quick: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    command: str = "",
    quiet: bool = False,
) -> RunResult:
    """Train seven networks on procedural scenes; find the best tree; build, distil and measure it.

    Interrupted, the same call goes on from what is finished. It also writes `run.yaml`, a config of these networks.

    Args:
        folder: where the results go.
        quick: train much less and compile nothing: to see that everything works, not how well.
        seed: decides everything that is random.
        device: where the networks run; by default on the CPU.
        command: the shell command that the page names as the way to make all of this again.
        quiet: no progress and no messages on stderr.

    Returns:
        The result, as `branchnet.run` gives it.

    Raises:
        DataError: a folder that is a file, that another run writes into, or that holds the results of another.
    """
    size = QUICK if quick else FULL
    with Workspace(folder, quiet=quiet) as workspace:
        workspace.claim({"tasks": sorted(TASKS), "data": "procedural scenes"})
        with workspace.console.status("render scenes"):
            train, test = scenes(size.count, seed=seed), scenes(PROBE + TEST, seed=seed, start=size.count)
        with silence() if quiet else nullcontext():
            single = train_single_tasks(train, size.steps, seed, workspace, device)
            problem = demo_problem(single, train, test, size, seed)
            trees = find_trees(problem, workspace)
            networks = train_networks(problem, trees, workspace)
            results = judge(problem, trees, networks, workspace)
            samples = shown_samples(problem, test, networks["branched"])
        weights = {name: f"{STEPS}/single-{name}.safetensors" for name in TASKS}
        config = run_config(weights, budget=BUDGET, steps=size.steps, batch_size=BATCH)
        write_text(Path(folder) / "run.yaml", config)
        return finish(problem, trees, networks["branched"], results, workspace, command=command, samples=samples)


def demo_problem(single: dict[str, nn.Module], train: Scenes, test: Scenes, size: Size, seed: int) -> Problem:
    """The problem of the demo: the networks are judged by the scenes' labels."""
    targets = {name: task.target(test.labels[name][PROBE:]) for name, task in TASKS.items()}
    others = {name: task.target(train.labels[name][-VALIDATION:]) for name, task in TASKS.items()}
    return replace(_problem(single, train.images, test.images, targets, size, seed), validation_targets=others)


def _problem(
    single: dict[str, nn.Module], train: Tensor, test: Tensor, targets: dict[str, Tensor], size: Size, seed: int
) -> Problem:
    return Problem(
        networks=single,
        identity=["scenes", size.count, size.steps, seed],
        train=train[:-VALIDATION],
        validation=train[-VALIDATION:],
        probe=test[:PROBE],
        test=test[PROBE:],
        targets=targets,
        metrics={name: task.metric for name, task in TASKS.items()},
        budget=Budget.parse(BUDGET),
        options=RunOptions(
            steps=size.steps // 2,  # stitched networks start near their goal
            stitch_steps=min(size.steps, STITCH_STEPS),
            batch_size=BATCH,
            learning_rate=MERGED_RATE,
            compare=True,
            random_trees=size.random_trees,
            seed=seed,
        ),
        compiled=size.compiled,
        kinds={name: task.output_kind for name, task in TASKS.items()},
    )


def shown_samples(problem: Problem, test: Scenes, branched: BranchedNetwork) -> Sequence[TaskSamples]:
    """Truth and predictions of the first test scenes."""
    shown = test.images[PROBE : PROBE + SHOWN].to(problem.device)
    with torch.no_grad():
        alone = {name: network.eval()(shown).cpu() for name, network in problem.networks.items()}
        merged = {name: output.cpu() for name, output in branched(shown).items()}
    return [
        task.samples(name, problem.targets[name][:SHOWN], {"separate": alone[name], "branched": merged[name]})
        for name, task in TASKS.items()
    ]


def plan_demo(*, quick: bool = False) -> Plan:
    """The plan of the demo: seven trainings, and then a whole run.

    Args:
        quick: whether much less is trained.

    Returns:
        The plan.
    """
    size = QUICK if quick else FULL
    networks = {name: task.network() for name, task in TASKS.items()}
    example = torch.rand(1, 3, 64, 64)
    staged = split_all(networks, example)
    costs = next(iter(staged.values())).costs
    activations = sum(
        cost.activation_bytes for network in staged.values() for cost in (*network.costs, network.head_cost)
    )
    plan = Plan("demo").step(f"render {size.count + PROBE + TEST} scenes")
    plan = plan_distillation(
        plan,
        f"train 7 networks, {size.steps} batches each",
        list(networks.values()),
        example,
        steps=size.steps,
        batch_size=BATCH,
        activations=activations,
    )
    cut_bytes = [cost.cut_bytes for cost in costs]
    plan = plan_comparison(plan, networks, example, count=PROBE, batch_size=BATCH, cut_bytes=cut_bytes)
    images = example.expand(size.count + PROBE + TEST, -1, -1, -1)
    problem = _problem(networks, images[: size.count], images[size.count :], {}, size, seed=0)
    return plan_after_comparison(plan, problem, staged)


def train_single_tasks(
    train: Scenes, steps: int, seed: int, workspace: Workspace, device: torch.device | str | None = None
) -> dict[str, nn.Module]:
    """Train one network for each task, or read back those that are finished.

    Args:
        train: the scenes.
        steps: batches of each training.
        seed: decides the initial weights and the order of batches.
        workspace: where the trained weights are kept.
        device: where the networks run.

    Returns:
        The networks by task.
    """

    def new(name: str) -> nn.Module:
        return TASKS[name].network().eval().to(device=device)

    def make(name: str, unfinished: Path | None) -> nn.Module:
        with seeded(seed):
            network = new(name)
        fit(
            network,
            (train.images, TASKS[name].target(train.labels[name])),
            TASKS[name].loss,
            keep="last",
            steps=steps,
            batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            seed=seed,
            checkpoint=unfinished,
            description=f"train {name}",
        )
        return network

    def load(name: str, path: Path) -> nn.Module:
        network = new(name)
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
