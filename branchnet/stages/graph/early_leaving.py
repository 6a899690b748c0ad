"""Which networks leave the common trunk before the others, so that the others can share more of it.

A trunk is a chain: what all networks have in common comes first, then what a subset of them does, then what a subset of
that one does. Of all such chains the one is taken that saves the most parameters: a stretch with p parameters that n
networks share saves p (n - 1) of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from branchnet.stages.graph.dataflow import Dataflow
from branchnet.stages.graph.node_keys import node_keys

_Members = frozenset[int]


def leaving_groups(flows: Sequence[Dataflow]) -> list[tuple[int, ...]]:
    """Find who shares how far.

    Args:
        flows: one dataflow per network, evened out.

    Returns:
        Numbers of networks: all of them, then those that share more, and so on; each a subset of the one before.
    """
    everyone = frozenset(range(len(flows)))
    weights = _weights_by_members(flows)
    candidates = [members for members in weights if len(members) > 1]

    def common(members: _Members) -> int:
        return sum(weight for holders, weight in weights.items() if holders >= members)

    @cache
    def best(members: _Members) -> tuple[int, tuple[_Members, ...]]:
        """Parameters saved behind what `members` share, and the further groups."""
        options: list[tuple[int, tuple[_Members, ...]]] = [(0, ())]
        for fewer in candidates:
            if fewer < members and (gained := common(fewer) - common(members)):
                saved, rest = best(fewer)
                options.append((gained * (len(fewer) - 1) + saved, (fewer, *rest)))
        return max(options, key=lambda option: (option[0], -len(option[1]), _earliest_first(option[1])))

    return [tuple(sorted(members)) for members in (everyone, *best(everyone)[1])]


def _earliest_first(chain: Iterable[_Members]) -> list[list[int]]:
    """A tie goes to the networks that were given first."""
    return [[-network for network in sorted(members)] for members in chain]


def _weights_by_members(flows: Sequence[Dataflow]) -> dict[_Members, int]:
    """Parameters of all nodes by the networks that have them; one that is used twice counts at its first use."""
    holders: dict[int, set[int]] = {}
    weights: dict[int, int] = {}
    for network, flow in enumerate(flows):
        keys = node_keys(flow)
        seen: set[int] = set()
        for node in flow.order:
            used = {k: p.numel() for k, p in flow.parameters([node]).items() if k not in seen}
            seen |= used.keys()
            holders.setdefault(keys[node], set()).add(network)
            weights.setdefault(keys[node], sum(used.values()))
    found: dict[_Members, int] = {}
    for key, networks in holders.items():
        members = frozenset(networks)
        found[members] = found.get(members, 0) + weights[key]
    return found
