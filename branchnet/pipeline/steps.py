"""What `demo` and `run` have in common: compare the networks, find the trees, build and distil, measure.

Every step that takes long is kept in the workspace, so that the same command goes on where it was interrupted.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import branchnet
from branchnet.affinity import Affinity
from branchnet.builder import BranchedNetwork, SeparateNetworks, choose_donors
from branchnet.clustering import Budget, SearchResult, Stability, Tree, stability, tree_size
from branchnet.clustering.budgets import Costs, HeadCosts
from branchnet.data.collation import placed
from branchnet.data.samples import Source, count_samples, read_samples
from branchnet.deploy import load_weights, save_weights
from branchnet.inference import CompiledNetwork, Latency, LatencyTable, compare_latency, compiler_problem
from branchnet.inference.torch_compile import device_of
from branchnet.pipeline.workspace import Workspace, load_json, save_json
from branchnet.reporting import ComparedNetwork, Comparison
from branchnet.stages import StagedNetwork
from branchnet.training import Metric, Teachers, reestimate_batchnorm
from branchnet.utils.interrupt import deferred_interrupt

RANDOM_TREES = 200
REPEATS = 30
REPLICATES = 50


@dataclass(frozen=True)
class Problem:
    """What is asked: networks, images, and how the answer is judged.

    Attributes:
        networks: trained single-task networks by task.
        identity: JSON values that decide the networks' weights and the images; finished steps of another identity are
            not reused.
        train: images to distil on.
        probe: images on which the networks are compared.
        test: images that the results are measured on.
        targets: labels of the test images by task, or the donors' outputs.
        metrics: the metric of each task.
        random_trees: how many random trees, where they are among the baselines; fewer where the budget admits fewer.
        donor: the task whose weights every node that serves it starts from; None for medoids.
        compiled: whether latencies are measured compiled, too.
        further: more metrics, by the label they are reported under: the task and the metric.
    """

    networks: Mapping[str, nn.Module]
    identity: Any
    train: Source
    probe: Source
    test: Source
    targets: Mapping[str, Tensor]
    metrics: Mapping[str, Metric]
    budget: Budget
    objective: str
    locations: list[str] | int | None
    steps: int
    batch_size: int
    learning_rate: float
    baselines: tuple[str, ...]
    seed: int
    random_trees: int = 3
    donor: str | None = None
    compiled: bool = True
    further: Mapping[str, tuple[str, Metric]] = field(default_factory=dict)

    @property
    def example(self) -> Any:
        """One input, as the networks take it, where they are."""
        return placed(read_samples(self.test).take(torch.tensor([0])).inputs, self.device)

    @property
    def device(self) -> torch.device:
        """The device that the single-task networks are on."""
        return next(next(iter(self.networks.values())).parameters()).device

    @property
    def hardware(self) -> list[Any]:
        """What latencies depend on, besides the networks."""
        return [torch.cuda.get_device_name(self.device)] if self.device.type == "cuda" else [torch.get_num_threads()]


@dataclass(frozen=True)
class Trees:
    """What the search found.

    Attributes:
        staged: the single-task networks, split.
        affinity: how well each pair of tasks could share each stage.
        front: the Pareto front over parameters.
        chosen: the best tree within the budget.
        compared: the trees that are built: the chosen one first.
        costs: of every stage in the budget's unit.
        head_costs: of every head in that unit.
    """

    staged: Mapping[str, StagedNetwork]
    affinity: Affinity
    front: list[SearchResult]
    chosen: SearchResult
    compared: Mapping[str, Tree]
    costs: Costs
    head_costs: HeadCosts

    @property
    def first(self) -> StagedNetwork:
        """The first network; its stages stand for all."""
        return next(iter(self.staged.values()))

    def size(self, tree: Tree, unit: str) -> float:
        """Parameters or multiply-adds of `tree`, heads included."""
        heads = {task: network.head_cost for task, network in self.staged.items()}
        return tree_size(tree, self.first.costs, head_costs=heads, unit=unit)


@dataclass(frozen=True)
class Results:
    """What was measured.

    Attributes:
        comparison: the separate networks, the branched one and the baselines.
        further: further metrics, by label and network.
        stability: how often the same tree is chosen on other samples of the probe.
    """

    comparison: Comparison
    further: Mapping[str, Mapping[str, float]]
    stability: Stability


def find_trees(problem: Problem, workspace: Workspace) -> Trees:
    """Split the networks, compare them on the probe, and search.

    Raises:
        SplitError: networks without a common structure.
        AffinityError: a probe that nothing can be learnt from.
        BudgetError: a budget below the smallest tree.
    """
    staged = branchnet.split_all(problem.networks, problem.example, locations=problem.locations)
    first = next(iter(staged.values()))
    costs, heads = _costs(problem, staged, workspace)
    check_budget(problem, first.locations, costs, heads)
    affinity = workspace.step(
        "affinity.npz",
        [problem.identity, list(first.locations), count_samples(problem.probe)],
        make=lambda _: branchnet.rsa(staged, problem.probe, batch_size=problem.batch_size),
        save=lambda result, path: result.save(path),
        load=Affinity.load,
    )
    with deferred_interrupt() as interrupted:  # a search that is interrupted returns its best tree so far
        chosen = branchnet.search(
            affinity, costs, problem.budget, head_costs=heads, objective=problem.objective, seed=problem.seed
        )
        params = {task: network.head_cost for task, network in staged.items()}
        front = branchnet.pareto_front(affinity, first.costs, head_costs=params, objective=problem.objective)
        if interrupted():
            raise KeyboardInterrupt
    compared = {"branched": chosen.tree}
    if "shared" in problem.baselines:
        compared["shared"] = Tree.shared(chosen.tree.tasks, chosen.tree.depth)
    if "random" in problem.baselines:
        compared |= _random_trees_of_same_size(chosen, costs, heads, problem)
    return Trees(staged, affinity, front, chosen, compared, costs, heads)


def _costs(problem: Problem, staged: Mapping[str, StagedNetwork], workspace: Workspace) -> tuple[Costs, HeadCosts]:
    """What stages and heads cost in the budget's unit; milliseconds are measured here and now."""
    first = next(iter(staged.values()))
    if problem.budget.unit != "latency":
        return first.costs, {task: network.head_cost for task, network in staged.items()}
    compiled = problem.compiled and not compiler_problem(problem.device.type)
    table = workspace.step(
        "latency_table.json",
        [problem.identity, list(first.locations), compiled, *problem.hardware],
        make=lambda _: branchnet.latency_table(staged, problem.example, compiled=compiled, progress=True),
        save=lambda made, path: save_json(made.to_dict(), path),
        load=lambda path: LatencyTable.from_dict(load_json(path)),
    )
    workspace.console.print(str(table), markup=False, highlight=False)
    return table.costs, table.head_costs


def check_budget(problem: Problem, locations: Sequence[str], costs: Costs, heads: HeadCosts) -> None:
    """Raise BudgetError where not even the smallest tree fits, before anything takes long."""
    tasks = tuple(problem.networks)
    nothing_known = Affinity(tasks, locations, np.ones((len(locations), len(tasks), len(tasks))))
    branchnet.search(nothing_known, costs, problem.budget, head_costs=heads, objective=problem.objective)


def _random_trees_of_same_size(
    chosen: SearchResult, costs: Costs, heads: HeadCosts, problem: Problem
) -> dict[str, Tree]:
    """Of trees drawn uniformly under the budget those nearest to the chosen one's size: neither that nor the shared."""
    generator = random.Random(problem.seed)
    draw = partial(branchnet.random_tree, chosen.tree.tasks, chosen.tree.depth, seed=generator, costs=costs)
    drawn = dict.fromkeys(draw(budget=problem.budget, head_costs=heads) for _ in range(RANDOM_TREES))
    shared = Tree.shared(chosen.tree.tasks, chosen.tree.depth)
    others = [tree for tree in drawn if tree not in (chosen.tree, shared)]
    unit = problem.budget.unit
    others.sort(key=lambda tree: abs(tree_size(tree, costs, head_costs=heads, unit=unit) - chosen.size))
    return {f"random {number}": tree for number, tree in enumerate(others[: problem.random_trees], start=1)}


def train_networks(problem: Problem, trees: Trees, workspace: Workspace) -> dict[str, BranchedNetwork]:
    """Build each compared tree from the donors' weights and distil it, all with the same number of steps."""
    teachers: list[Teachers] = []

    def build(tree: Tree) -> BranchedNetwork:
        donors = choose_donors(tree, trees.affinity, preferred=problem.donor)
        return branchnet.build(tree, trees.staged, donors=donors).eval()

    def make(tree: Tree, name: str, unfinished: Path) -> BranchedNetwork:
        branched = build(tree)
        if problem.steps == 0:
            reestimate_batchnorm(branched, problem.train)
            return branched
        if not teachers:
            teachers.append(Teachers(problem.networks, problem.train, batch_size=problem.batch_size))
        branchnet.distill(
            branched,
            teachers[0],
            problem.train,
            steps=problem.steps,
            batch_size=problem.batch_size,
            learning_rate=problem.learning_rate,
            seed=problem.seed,
            checkpoint=unfinished,
            description=f"distil {name}",
        )
        return branched

    def load(tree: Tree, path: Path) -> BranchedNetwork:
        branched = build(tree)
        load_weights(branched, path)
        return branched

    settings = [
        getattr(problem, name) for name in ("identity", "steps", "batch_size", "learning_rate", "seed", "donor")
    ]
    return {
        name: workspace.step(
            f"{name.replace(' ', '-')}.safetensors",
            [*settings, str(tree), trees.affinity.probe_hash],
            make=partial(make, tree, name),
            save=save_weights,
            load=partial(load, tree),
        )
        for name, tree in trees.compared.items()
    }


def judge(problem: Problem, trees: Trees, networks: Mapping[str, BranchedNetwork], workspace: Workspace) -> Results:
    """Measure every network, the separate ones first, and how sure the choice of the tree is."""
    separate = SeparateNetworks(problem.networks).eval()
    everything: dict[str, BranchedNetwork | SeparateNetworks] = {"separate": separate, **networks}
    latency = workspace.step(
        "latency.json",
        [
            problem.identity,
            problem.compiled,
            {name: str(tree) for name, tree in trees.compared.items()},
            *problem.hardware,
        ],
        make=lambda _: measure(everything, problem.example, workspace, compiled=problem.compiled),
        save=save_json,
        load=load_json,
    )
    compared = []
    for name, network in everything.items():
        tree = trees.compared.get(name) or Tree.separate(trees.chosen.tree.tasks, trees.chosen.tree.depth)
        compared.append(
            ComparedNetwork(
                name,
                _evaluate(problem, network, problem.metrics),
                params=sum(parameter.numel() for parameter in network.parameters()),
                flops=int(trees.size(tree, "flops")),
                latency={
                    how: Latency(tuple(latency[how][name]))
                    for how in ("eager", "compiled")  # in this order, whether measured now or read from the file
                    if name in latency.get(how, {})
                },
            )
        )
    comparison = Comparison(
        tuple(compared),
        {task: metric.name for task, metric in problem.metrics.items()},
        {task: not metric.larger_is_better for task, metric in problem.metrics.items()},
    )
    further = {
        label: {name: _evaluate(problem, network, {task: metric})[task] for name, network in everything.items()}
        for label, (task, metric) in problem.further.items()
    }
    return Results(comparison, further, _stability(problem, trees))


def _evaluate(problem: Problem, network: nn.Module, metrics: Mapping[str, Metric]) -> dict[str, float]:
    return branchnet.evaluate(network, problem.test, problem.targets, metrics, batch_size=problem.batch_size)


def _stability(problem: Problem, trees: Trees) -> Stability:
    """Search again on bootstrap replicates of the probe."""
    replicates = [replace(trees.affinity, values=values, samples=None) for values in trees.affinity.replicates()]
    shown = replicates[:REPLICATES]
    with deferred_interrupt() as interrupted:
        found = stability(trees.chosen, shown, trees.costs, problem.budget, head_costs=trees.head_costs)
        if interrupted():
            raise KeyboardInterrupt
    return found


def measure(
    networks: Mapping[str, BranchedNetwork | SeparateNetworks],
    example: Any,
    workspace: Workspace,
    *,
    compiled: bool,
    repeats: int = REPEATS,
) -> dict[str, dict[str, list[float]]]:
    """Seconds for one input, all in turns: every network eager; the separate and the branched compiled, too.

    The separate networks are compiled one by one. Where torch.compile does not work there are eager figures only.
    """
    runs: dict[str, dict[str, Callable[..., Any]]] = {"eager": dict(networks)}
    if compiled and (problem := compiler_problem(device_of(next(iter(networks.values()))))):
        workspace.console.print(f"torch.compile does not work here ({problem}); everything runs eager", style="yellow")
    elif compiled:
        with workspace.console.status("compile"):
            try:
                first = [name for name in ("separate", "branched") if name in networks]
                runs["compiled"] = {name: _compiled(networks[name], example) for name in first}
            except Exception as error:  # torch raises many kinds for what it cannot compile; eager figures remain
                reason = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
                message = f"torch.compile refuses these networks ({type(error).__name__}: {reason})"
                workspace.console.print(f"{message}; there are eager figures only", style="yellow", markup=False)
    bound = {
        f"{how} {name}": partial(_call_with, function, example)
        for how, functions in runs.items()
        for name, function in functions.items()
    }
    latencies: dict[str, Latency] = compare_latency(bound, example, repeats=repeats)
    return {
        how: {name: list(latencies[f"{how} {name}"].samples) for name in functions} for how, functions in runs.items()
    }


def _call_with(function: Callable[..., Any], example: Any, *args: Any, **kwargs: Any) -> Any:
    return function(example)  # a branched network takes a tuple or dict as one argument


def _compiled(network: BranchedNetwork | SeparateNetworks, example: Any) -> Callable[..., Any]:
    if isinstance(network, BranchedNetwork):
        return branchnet.compile(network, example, dynamic=False)
    one_by_one = CompiledNetwork(network, dynamic=False)

    def run(x: Any) -> dict[str, Any]:
        return {task: one_by_one(x, [task])[task] for task in network.tasks}

    run(example)
    return run


def as_json(problem: Problem, trees: Trees, results: Results) -> dict[str, Any]:
    """Everything that was measured, as JSON values; latencies in seconds."""
    chosen, comparison = trees.chosen, results.comparison
    return {
        "budget": str(problem.budget),
        "objective": problem.objective,
        "chosen": {
            "cost": chosen.cost,
            "size": chosen.size,
            "lower_bound": chosen.lower_bound,
            "proven": chosen.proven,
            "method": chosen.method,
        },
        "trees": {name: [list(map(list, stage)) for stage in tree.partitions] for name, tree in trees.compared.items()},
        "same_tree_in_replicates": results.stability.same_tree,
        "metrics": dict(comparison.metric_names),
        "networks": {
            network.name: {
                "params": network.params,
                "flops": network.flops,
                "latency": {
                    how: asdict(latency) | {"median": latency.median} for how, latency in network.latency.items()
                },
                "metrics": dict(network.metrics),
                "further": {label: values[network.name] for label, values in results.further.items()},
                "delta": comparison.delta(network),
            }
            for network in comparison.networks
        },
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
