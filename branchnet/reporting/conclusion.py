"""A comparison in one or two sentences: what was gained and lost, and whether the choice of the tree mattered."""

from __future__ import annotations

from branchnet.reporting.comparison import Comparison


def verdict(comparison: Comparison) -> str:
    """What was gained and lost, in one or two sentences.

    Args:
        comparison: the separate networks first, the branched one second; baselines are called `shared`, `random ...`.

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
    if not parts:
        return first
    note = ""
    if random and len(random) > 1 and min(random) <= delta <= max(random):
        note = " So the choice of the tree made no difference beyond chance."
    if random and delta < min(random):
        note = " So the chosen tree was the wrong one here."
    if any(value >= delta for value in others.values()):
        note = " So sharing everything would have been the better choice here: it is smaller, and no worse."
    return f"{first} For comparison, {'; '.join(parts)}.{note}"


def _change(delta: float) -> str:
    return f"{abs(delta):.1f}% {'better' if delta >= 0 else 'worse'}"
