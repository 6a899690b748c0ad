"""A comparison in a few sentences: what was gained and lost, and whether training and the choice of tree mattered."""

from __future__ import annotations

from branchnet.reporting.comparison import BEFORE_TRAINING, CONSTANT, Comparison


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
    first = f"The branched network has {share} of the separate networks, metrics {_change(delta)} on average."
    random = [comparison.delta(network) for network in comparison.networks if network.name.startswith("random")]
    others = {network.name: comparison.delta(network) for network in comparison.networks if network.name == "shared"}
    parts = [f"the fully shared network's are {_change(value)}" for value in others.values()]
    if random:
        spread = f", from {min(random):+.1f}% to {max(random):+.1f}%" if len(random) > 1 else ""
        mean = _change(sum(random) / len(random))
        one, some = (
            "a random tree's of about its size are",
            f"those of {len(random)} random trees of about its size are",
        )
        parts.append(f"{one} {mean}" if len(random) == 1 else f"{some} {mean} on average{spread}")
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


def _ruined(comparison: Comparison) -> list[str]:
    """Name the tasks that are worse than before training, and those that are no better than a constant answer."""
    lost = {
        "Worse than before training": _tasks_below(comparison, BEFORE_TRAINING, or_equal=False),
        "No better than a constant answer": _tasks_below(comparison, CONSTANT, or_equal=True),
    }
    return [f"{text}: {', '.join(tasks)}." for text, tasks in lost.items() if tasks]


def _tasks_below(comparison: Comparison, name: str, *, or_equal: bool) -> list[str]:
    """The tasks of the branched network whose metric is worse than a reference's, to the four digits of the tables."""
    reference, branched = comparison.reference(name), comparison.networks[1]
    if reference is None:
        return []
    found = []
    for task in comparison.metric_names:
        now, then = (f"{network.metrics[task]:.4g}" for network in (branched, reference))
        gained = float(now) - float(then)
        gained = -gained if comparison.lower_is_better[task] else gained
        if gained < 0 or (or_equal and gained == 0):
            found.append(f"{task} ({now} against {then})")
    return found


def _change(delta: float) -> str:
    return f"{abs(delta):.1f}% {'better' if delta >= 0 else 'worse'}"
