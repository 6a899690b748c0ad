"""`branchnet run`: the whole way on a user's own networks and images, as a config file says."""

from __future__ import annotations

import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from branchnet.cli.options import AsJson, Config, Device, DryRun, Quiet

if TYPE_CHECKING:
    from branchnet.pipeline.dry_run import Plan
    from branchnet.pipeline.steps import Problem


def run(
    config: Config,
    *,
    out: Path | None = None,
    seed: int | None = None,
    device: Device = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Find, build, distil and measure the branched network that CONFIG asks for.

    CONFIG names Python factories, which are imported and called: run only configs that you trust.
    Run again, it goes on from what is finished.

    Example: `branchnet run branchnet-demo/run.yaml --out result`

    Parameters
    ----------
    config
        YAML file: networks, images, budget. `branchnet schema --config` says which fields there are.
    out
        Folder for the results; by default beside the config and named after it.
    seed
        Instead of the config's.
    """
    from branchnet.cli.loading import changed, read_config
    from branchnet.pipeline.problem import problem_from_config
    from branchnet.pipeline.run_outputs import finish
    from branchnet.pipeline.steps import find_trees, judge, train_networks
    from branchnet.pipeline.workspace import Workspace
    from branchnet.utils.progress import silence

    workspace = Workspace(out or config.with_name(f"{config.stem}-branched"), quiet=quiet)
    settings = changed(read_config(config), seed=seed)
    problem = problem_from_config(settings, config.parent, device=device)
    if dry_run:
        plan_of(problem, "run").show(as_json=as_json, writes=[workspace.directory])
        return
    with silence() if quiet else nullcontext():
        trees = find_trees(problem, workspace)
        networks = train_networks(problem, trees, workspace)
        results = judge(problem, trees, networks, workspace)
    options: dict[str, Any] = {"--out": workspace.directory, "--seed": seed, "--device": device}
    given = [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    command = shlex.join(["branchnet", "run", str(config), *given])
    finish(problem, trees, networks["branched"], results, workspace, command=command, as_text=not as_json)


def plan_of(problem: Problem, verb: str) -> Plan:
    """The plan of a whole run: comparing, and distilling the chosen tree and the baselines.

    Raises:
        SplitError: networks without a common structure.
        BudgetError: a budget of parameters or multiply-adds below the smallest tree.
    """
    import branchnet
    from branchnet.data.samples import count_samples
    from branchnet.pipeline.dry_run import Plan, plan_comparison, plan_distillation
    from branchnet.pipeline.steps import check_budget

    staged = branchnet.split_all(problem.networks, problem.example, locations=problem.locations)
    first = next(iter(staged.values()))
    if problem.budget.unit != "latency":  # milliseconds would have to be measured
        heads = {task: network.head_cost for task, network in staged.items()}
        check_budget(problem, first.locations, first.costs, heads)
    plan = plan_comparison(
        Plan(verb),
        problem.networks,
        problem.example,
        count=count_samples(problem.probe),
        batch_size=problem.batch_size,
        cut_bytes=[cost.cut_bytes for cost in first.costs],
    )
    trees = 1 + ("shared" in problem.baselines) + ("random" in problem.baselines) * problem.random_trees
    return plan_distillation(
        plan,
        f"distil {trees} branched networks, {problem.steps} batches each (at most: as slow as separate networks)",
        list(problem.networks.values()),
        problem.example,
        steps=problem.steps * trees,
        batch_size=problem.batch_size,
        activations=sum(
            cost.activation_bytes for network in staged.values() for cost in (*network.costs, network.head_cost)
        ),
    )
