"""The last steps of a run: measure all networks, and how sure the choice of the tree is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from branchnet.builder import BranchedNetwork, SeparateNetworks, build
from branchnet.clustering import Stability, Tree, stability
from branchnet.inference import Latency
from branchnet.pipeline.network_timing import Seconds, load_seconds, time_networks
from branchnet.pipeline.problem import Problem, donor_outputs
from branchnet.pipeline.search_inputs import replicates_of
from branchnet.pipeline.steps import Trees, build_stitched, donors_of
from branchnet.pipeline.workspace import Workspace, save_json
from branchnet.reporting import ComparedNetwork, Comparison
from branchnet.reporting.comparison import BEFORE_TRAINING, CONSTANT, WITHOUT_STITCHES
from branchnet.training import Metric, constant_scores
from branchnet.training.judging.evaluation import evaluate_each
from branchnet.utils.interrupt import deferred_interrupt

SAMPLES = Metric(
    "samples",
    True,
    sums=lambda output, target: _known(target).sum(dtype=torch.float64)[None].cpu(),
    result=lambda total: float(total[0]),
)
"""How many samples have a target, as far as it shows: NaN and negative classes are none."""


@dataclass(frozen=True)
class Results:
    """What was measured.

    Attributes:
        comparison: the separate networks, the branched one, the baselines, and what they are judged against.
        stability: how often the search by RSA proposes the same tree on other samples of the probe.
    """

    comparison: Comparison
    stability: Stability


def judge(problem: Problem, trees: Trees, networks: Mapping[str, BranchedNetwork], workspace: Workspace) -> Results:
    """Measure every network, the separate ones first, and how sure the choice of the tree is.

    Args:
        problem: what is asked.
        trees: what was found.
        networks: the networks of the compared trees, by name.
        workspace: where the latencies are kept.

    Returns:
        The measurements.
    """
    workspace.console.print("[dim]measure all networks on the images held out, and their latencies[/dim]")
    separate = SeparateNetworks(problem.networks).eval()
    everything: dict[str, BranchedNetwork | SeparateNetworks] = {"separate": separate, **networks}
    tree_texts = {name: str(tree) for name, tree in trees.compared.items()}
    seconds: Seconds = workspace.step(
        "latency.json",
        [problem.identity, problem.compiled, tree_texts, list(trees.first.locations), *problem.hardware],
        make=lambda _: time_networks(everything, problem.example, workspace.console, compiled=problem.compiled),
        save=save_json,
        load=load_seconds,
    )
    references = _references(problem, trees)
    counts: dict[str, int] = {}
    judged = {name: _judged(problem, network, counts) for name, network in {**everything, **references}.items()}
    judged[CONSTANT] = _constant(problem)
    comparison = Comparison(
        tuple(_compared(trees, name, network, seconds, judged[name][0]) for name, network in everything.items())
        + tuple(ComparedNetwork(name, judged[name][0], reference=True) for name in (*references, CONSTANT)),
        {task: metric.name for task, metric in problem.metrics.items()},
        {task: not metric.larger_is_better for task, metric in problem.metrics.items()},
        {
            task: {
                metric.name: {
                    name: further[task][metric.name]
                    for name, (_, further) in judged.items()
                    if metric.name in further.get(task, {})
                }
                for metric in metrics
            }
            for task, metrics in _by_task(problem.further).items()
        },
        counts,
    )
    return Results(comparison, _stability(problem, trees))


def _references(problem: Problem, trees: Trees) -> dict[str, nn.Module]:
    """What the branched network is without training, and without stitches."""
    options, tree = problem.options, trees.chosen.tree
    found: dict[str, nn.Module] = {}
    if options.steps or problem.labelled is not None:
        found[BEFORE_TRAINING] = build_stitched(problem, trees, tree)
    found[WITHOUT_STITCHES] = build(tree, trees.staged, donors=donors_of(problem, trees, tree), init="donor").eval()
    return found


def _judged(
    problem: Problem, network: nn.Module, counts: dict[str, int]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The metrics by task, and the further ones by task and name; `counts` takes how many samples they are of."""
    asked = [*problem.metrics.items(), *problem.further, *((task, SAMPLES) for task in problem.metrics)]
    batch_size = problem.options.batch_size
    if (labelled := problem.labelled) is not None:
        values = evaluate_each(network, labelled.test, None, asked, batch_size=batch_size)
    else:
        values = evaluate_each(network, problem.test, problem.targets, asked, batch_size=batch_size)
    count = len(problem.metrics)
    counts |= dict(zip(problem.metrics, map(int, values[len(values) - count :]), strict=True))
    values = values[: len(values) - count]
    further: dict[str, dict[str, float]] = {}
    for (task, metric), value in zip(problem.further, values[count:], strict=True):
        further.setdefault(task, {})[metric.name] = value
    return dict(zip(problem.metrics, values[:count], strict=True)), further


def _constant(problem: Problem) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """What the best constant answer under each metric reaches, where one is known."""
    fitted_on: Any
    targets: Any
    if (labelled := problem.labelled) is not None:
        fitted_on, targets = labelled.train, labelled.test
    else:
        fitted_on, targets = problem.validation_targets, problem.targets
        if fitted_on is None:
            fitted_on = donor_outputs(problem.networks, problem.validation, problem.options.batch_size)
    metrics: dict[str, float] = {}
    further: dict[str, dict[str, float]] = {}
    for task, metric in problem.metrics.items():
        if metric.constant is not None:
            metrics |= constant_scores(fitted_on, targets, {task: metric})
    for task, metric in problem.further:
        if metric.constant is not None:
            score = constant_scores(fitted_on, targets, {task: metric})[task]
            further.setdefault(task, {})[metric.name] = score
    return metrics, further


def _known(target: torch.Tensor) -> torch.Tensor:
    """Which samples have a target, (B,)."""
    known = ~target.isnan() if target.is_floating_point() else target >= 0
    return known.reshape(len(target), -1).any(1)


def _by_task(metrics: Sequence[tuple[str, Metric]]) -> dict[str, list[Metric]]:
    found: dict[str, list[Metric]] = {}
    for task, metric in metrics:
        found.setdefault(task, []).append(metric)
    return found


def _compared(
    trees: Trees, name: str, network: nn.Module, seconds: Seconds, metrics: Mapping[str, float]
) -> ComparedNetwork:
    chosen = trees.chosen.tree
    tree = trees.compared.get(name) or Tree.separate(chosen.tasks, chosen.depth, chosen.depths)
    return ComparedNetwork(
        name,
        metrics,
        params=sum(parameter.numel() for parameter in network.parameters()),
        flops=int(trees.size(tree, "flops")),
        latency={
            how: Latency(tuple(seconds[how][name]))
            for how in ("eager", "compiled")  # in this order, whether measured now or read from the file
            if name in seconds.get(how, {})
        },
    )


def _stability(problem: Problem, trees: Trees) -> Stability:
    """Search by RSA again on bootstrap replicates of the probe."""
    replicates = replicates_of(trees.affinity)
    limits = trees.limits
    with deferred_interrupt() as interrupted:
        found = stability(
            trees.proposed,
            replicates,
            limits.costs,
            limits.budget,
            head_costs=limits.heads,
            stitch_sizes=limits.stitch_sizes,
        )
        if interrupted():
            raise KeyboardInterrupt
    return found
