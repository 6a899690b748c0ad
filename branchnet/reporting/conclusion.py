"""A comparison in a few sentences: what was gained and lost, and whether training and the choice of tree mattered."""

from __future__ import annotations

import math

from branchnet.reporting.comparison import BEFORE_TRAINING, CONSTANT, ComparedNetwork, Comparison
from branchnet.training.judging.performance import extreme_tasks

FEW_SAMPLES = 30
"""Samples below which a task's metric is said to be of few."""
WORTH_NAMING = 0.01
"""Share of the distance between a task's own network and a constant answer: a loss below it is not named, as training
takes it for none, too."""


def verdict(comparison: Comparison) -> str:
    """What was gained and lost, in a few sentences; tasks that training or sharing ruined are named.

    Args:
        comparison: the separate networks first, the branched one second; baselines are called `shared`, `random ...`,
            references as in `branchnet.reporting.comparison`.

    Returns:
        The sentences.
    """
    separate, branched = comparison.networks[:2]
    share = f"{100 * (branched.params or 0) / (separate.params or 1):.0f}% of the parameters"
    way = next(reversed(list(branched.latency)), None)
    if way is not None and way in separate.latency:
        ratio = separate.latency[way].median / branched.latency[way].median
        share += f" and {ratio:.2g} times the speed ({way})"
    delta = comparison.delta(branched)
    mean = "no relative change to average" if math.isnan(delta) else f"metrics {_change(delta)} on average"
    first = f"The branched network has {share} of the separate networks, {mean}."
    first += "".join(f" {sentence}" for sentence in _cautions(comparison))
    random = [comparison.delta(network) for network in comparison.networks if network.name.startswith("random")]
    others = {network.name: comparison.delta(network) for network in comparison.networks if network.name == "shared"}
    parts = [f"the fully shared network's are {_change(value)}" for value in others.values()]
    if random:
        spread = f", from {min(random):+.1f}% to {max(random):+.1f}%" if len(random) > 1 else ""
        of_random = _change(sum(random) / len(random))
        one, some = (
            "a random tree's of about its size are",
            f"those of {len(random)} random trees of about its size are",
        )
        parts.append(f"{one} {of_random}" if len(random) == 1 else f"{some} {of_random} on average{spread}")
    lost = "".join(f" {sentence}" for sentence in _ruined(comparison))
    if not parts:
        return f"{first}{lost}"
    note = ""
    if random and len(random) > 1 and min(random) <= delta <= max(random):
        note = " So the choice of the tree made no difference beyond chance."
    if random and delta < min(random):
        note = " So the chosen tree was the wrong one here."
    if any(value >= delta for value in others.values()):
        note = " So sharing everything would have been the better choice here: it is smaller, and no worse."
    return f"{first}{lost} For comparison, {'; '.join(parts)}.{note}"


def task_lines(comparison: Comparison) -> list[str]:
    """Every task's metric, of the branched network and of the task's own, one line each.

    Args:
        comparison: the separate networks first, the branched one second.

    Returns:
        The lines.
    """
    separate, branched = comparison.networks[:2]
    changes = comparison.changes(branched)
    return [
        f"{task}: {name} {branched.metrics[task]:.4g}, own network {separate.metrics[task]:.4g} ({changes[task]})"
        for task, name in comparison.metric_names.items()
    ]


def _cautions(comparison: Comparison) -> list[str]:
    """What the mean does not tell: the task that lost most, and tasks whose change says little."""
    separate, branched = comparison.networks[:2]
    changes = comparison.changes(branched)
    found = []
    worst = min(changes, key=lambda task: (_share_lost(changes[task].percent, changes[task].points), task))
    if (change := changes[worst]).points < 0:
        metrics = f"{branched.metrics[worst]:.4g} against {separate.metrics[worst]:.4g}"
        found.append(f"{worst} lost most: {comparison.metric_names[worst]} {metrics} ({change}).")
    constant = comparison.reference(CONSTANT)
    if constant is not None and (poor := _tasks_below(comparison, separate, constant, or_equal=True)):
        found.append(
            f"The own network is no better than a constant answer, so that a change says nothing: {', '.join(poor)}."
        )
    relative = {task: change.percent for task, change in changes.items()}
    if undefined := [task for task, change in relative.items() if math.isnan(change)]:
        found.append(f"The own network's metric is 0, so that there is no relative change: {', '.join(undefined)}.")
    if extreme := extreme_tasks(relative):
        found.append(f"The own network's metric is close to 0, and decides the mean: {', '.join(extreme)}.")
    if few := [f"{task} ({count})" for task, count in comparison.samples.items() if count < FEW_SAMPLES]:
        found.append(
            f"Measured on fewer than {FEW_SAMPLES} samples, so that small changes are chance: {', '.join(few)}."
        )
    return found


def _share_lost(relative: float, points: float) -> float:
    """What tasks are ordered by: the relative change, and without one the worst or the best that there is."""
    return math.copysign(math.inf, points) if math.isnan(relative) else relative


def _ruined(comparison: Comparison) -> list[str]:
    """Name the tasks that are worse than before training, and those that are no better than a constant answer."""
    branched = comparison.networks[1]
    before, constant = comparison.reference(BEFORE_TRAINING), comparison.reference(CONSTANT)
    lost = {
        "Worse than before training": [] if before is None else _tasks_below(comparison, branched, before),
        "No better than a constant answer": []
        if constant is None
        else _tasks_below(comparison, branched, constant, or_equal=True),
    }
    return [f"{text}: {', '.join(tasks)}." for text, tasks in lost.items() if tasks]


def _tasks_below(
    comparison: Comparison, network: ComparedNetwork, reference: ComparedNetwork, *, or_equal: bool = False
) -> list[str]:
    """The tasks in which a network is worse than a reference, to the four digits of the tables."""
    found = []
    for task in (task for task in comparison.metric_names if task in reference.metrics):
        now, then = (f"{compared.metrics[task]:.4g}" for compared in (network, reference))
        gained = float(now) - float(then)
        gained = -gained if comparison.lower_is_better[task] else gained
        if gained <= 0 if or_equal else gained < -WORTH_NAMING * _range(comparison, task):
            found.append(f"{task} ({now} against {then})")
    return found


def _range(comparison: Comparison, task: str) -> float:
    """How far a task's own network is from a constant answer, in the metric's unit; 0 where that is not known."""
    constant = comparison.reference(CONSTANT)
    if constant is None or task not in constant.metrics:
        return 0.0
    return abs(comparison.baseline.metrics[task] - constant.metrics[task])


def _change(delta: float) -> str:
    return f"{abs(delta):.1f}% {'better' if delta >= 0 else 'worse'}"
