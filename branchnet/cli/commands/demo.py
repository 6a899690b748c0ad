"""`branchnet demo`: the whole way on procedural scenes, from seven single-task networks to one branched network."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from branchnet.cli.options import AsJson, Device, DryRun, Quiet, Seed

if TYPE_CHECKING:
    from torch import nn

    from branchnet.data import Scenes
    from branchnet.pipeline.dry_run import Plan
    from branchnet.pipeline.workspace import Workspace

BUDGET = "60% params"
PROBE = 500
TEST = 500
BATCH = 64
LEARNING_RATE = 3e-3
SHOWN = 5
RANDOM_TREES = 2
Quick = Annotated[
    bool,
    Parameter(negative=(), help="Train much less and compile nothing: to see that everything works, not how well."),
]


def demo(
    *,
    out: Path = Path("branchnet-demo"),
    quick: Quick = False,
    seed: Seed = 0,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Train seven networks on procedural scenes; find the best tree; build, distil and measure it.

    Takes about six minutes on two CPU cores; --quick about one, with much less training. Run again, it goes on from
    what is finished. It also leaves `run.yaml`, a config of these networks to try the other verbs on.

    Example: `branchnet demo`

    Parameters
    ----------
    out
        Folder for the results.
    """
    import shlex

    import torch

    from branchnet.cli.loading import placed
    from branchnet.cli.printing import say
    from branchnet.clustering import Budget
    from branchnet.data import scenes
    from branchnet.pipeline.run_outputs import finish
    from branchnet.pipeline.scene_tasks import TASKS, run_config
    from branchnet.pipeline.steps import Problem, find_trees, judge, train_networks
    from branchnet.pipeline.workspace import STEPS, Workspace
    from branchnet.utils.files import write_text
    from branchnet.utils.progress import silence

    workspace = Workspace(out, quiet=quiet)
    count, steps = (600, 16) if quick else (3200, 160)
    if dry_run:
        plan_demo(count, steps).show(as_json=as_json, writes=[out])
        return
    with workspace.console.status("render scenes"):
        train, test = scenes(count, seed=seed), scenes(PROBE + TEST, seed=seed, start=count)
    with silence() if quiet else nullcontext():
        single = train_single_tasks(train, steps, seed, workspace, device)
    problem = Problem(
        networks=single,
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
        random_trees=1 if quick else RANDOM_TREES,
        seed=seed,
        compiled=not quick,
    )
    with silence() if quiet else nullcontext():
        trees = find_trees(problem, workspace)
        networks = train_networks(problem, trees, workspace)
        results = judge(problem, trees, networks, workspace)
    shown = placed(test.images[PROBE : PROBE + SHOWN], device, None)
    with torch.no_grad():
        alone = {name: network.eval()(shown).cpu() for name, network in single.items()}
        merged = {name: output.cpu() for name, output in networks["branched"](shown).items()}
    samples = [
        task.samples(name, problem.targets[name][:SHOWN], {"separate": alone[name], "branched": merged[name]})
        for name, task in TASKS.items()
    ]
    words = ["--out", str(out), "--seed", str(seed), *(["--quick"] if quick else [])]
    command = shlex.join(["branchnet", "demo", *words, *([] if device is None else ["--device", device])])
    weights = {name: f"{STEPS}/single-{name}.safetensors" for name in TASKS}
    write_text(workspace.directory / "run.yaml", run_config(weights, budget=BUDGET, steps=steps, batch_size=BATCH))
    finish(
        problem, trees, networks["branched"], results, workspace, command=command, samples=samples, as_text=not as_json
    )
    if quick:
        say("--quick trains the networks hardly at all: their figures say nothing", quiet=quiet)


def plan_demo(count: int, steps: int) -> Plan:
    """The plan of the demo: seven trainings, the comparison, and the distillation of the compared trees."""
    import torch

    import branchnet
    from branchnet.pipeline.dry_run import Plan, plan_comparison, plan_distillation
    from branchnet.pipeline.scene_tasks import TASKS

    networks = {name: task.network() for name, task in TASKS.items()}
    example = torch.rand(1, 3, 64, 64)
    every = list(networks.values())
    staged = branchnet.split_all(networks, example).values()
    costs = next(iter(staged)).costs
    activations = sum(cost.activation_bytes for network in staged for cost in (*network.costs, network.head_cost))
    work = {"steps": steps, "batch_size": BATCH, "activations": activations}
    plan = Plan("demo").step(f"render {count + PROBE + TEST} scenes")
    plan = plan_distillation(plan, f"train 7 networks, {steps} batches each", every, example, **work)
    cut_bytes = [cost.cut_bytes for cost in costs]
    plan = plan_comparison(plan, networks, example, count=PROBE, batch_size=BATCH, cut_bytes=cut_bytes)
    trees = 2 + RANDOM_TREES
    work["steps"] = steps * trees
    return plan_distillation(plan, f"distil {trees} branched networks, {steps} batches each", every, example, **work)


def train_single_tasks(
    train: Scenes, steps: int, seed: int, workspace: Workspace, device: str | None = None
) -> dict[str, nn.Module]:
    """Train one network for each task, or read back those that are finished."""
    import torch

    import branchnet
    from branchnet.cli.loading import placed_networks
    from branchnet.deploy import load_weights, save_weights
    from branchnet.pipeline.scene_tasks import TASKS

    def make(name: str, unfinished: Path) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = placed_networks({name: TASKS[name].network()}, device, None)[name]
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
        network = placed_networks({name: TASKS[name].network()}, device, None)[name]
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
