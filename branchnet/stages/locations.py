"""Where networks can be cut: the places at which a module's call has just ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx, nn

from branchnet.stages.graph.common_subgraph import Alignment
from branchnet.stages.graph.dataflow import Dataflow, alive_after, carryable
from branchnet.stages.graph.propagation import TensorForm


@dataclass(frozen=True)
class Location:
    """A place at which a network can be cut.

    Attributes:
        name: the outermost module whose call ends here, `name@2` for its second call.
        aliases: all modules whose calls end here, outermost first.
        shapes: shapes of the tensors of the cut, at the example's size.
        cut_bytes: bytes of the tensors of the cut.
        params: parameters used up to here, each counted once.
        flops: multiply-adds up to here.
        position: number of the place in the order of computation.
        inside: the module calls that have begun and not ended here, outermost first.

    >>> network = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).eval()
    >>> place = branchnet.candidate_locations(network, torch.zeros(1, 4))[0]
    >>> isinstance(place, branchnet.Location), place.name, place.shapes, place.cut_bytes
    (True, '0', ((1, 8),), 32)
    """

    name: str
    aliases: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    cut_bytes: int
    params: int
    flops: int
    position: int
    inside: tuple[str, ...] = ()


def find_locations(alignment: Alignment) -> list[Location]:
    """All places of the common structure at which every network that passes them can be cut, in order."""
    reference = alignment.reference
    flow, order = alignment.flows[reference], alignment.order(reference)
    ends = _call_ends(flow, order)
    carried = carried_after(alignment)
    good = _cuttable(alignment, carried)
    params, flops = _cumulative(flow, order)
    found = []
    for position in sorted(set(ends.values())):
        # Names, shapes and costs are those of one network; the common structure has the same in all of them.
        if position in good:
            forms = [flow.facts[order[k]].form for k in carried[position]]
            tensors = [form for form in forms if isinstance(form, TensorForm)]
            calls = flow.calls(order[position])
            aliases = tuple(name for name in calls if ends.get(name) == position)
            found.append(
                Location(
                    aliases[0],
                    aliases,
                    tuple(form.shape for form in tensors),
                    sum(form.bytes for form in tensors),
                    params[position],
                    flops[position],
                    position,
                    tuple(name for name in calls if name not in aliases),
                )
            )
    return found


def carried_after(alignment: Alignment) -> list[tuple[int, ...]]:
    """For every common position, the common nodes whose values some network needs later.

    The union over the networks: a value that only one network's head reads is carried by all of them, so that their
    cuts are the same; the others ignore it. A network that has left the trunk before needs nothing. Tensors come first,
    in the order in which they are made, then sizes.

    The rule is sound: a value carried at one place was either made by the stage before it, which all networks have in
    common, or carried at the place before.
    """
    length = len(alignment.common)
    union: list[set[int]] = [set() for _ in range(length)]
    for network, flow in enumerate(alignment.flows):
        order = alignment.order(network)
        index = {node: k for k, node in enumerate(order)}
        rest = [node for node in flow.order if node not in index]
        alive = alive_after([*order, *rest], flow.output)
        for position in range(len(order)):
            union[position] |= {index[node] for node in alive[position]}
    flow = alignment.flows[alignment.reference]
    forms = [flow.facts[node].form for node in alignment.order(alignment.reference)]
    return [tuple(sorted(nodes, key=lambda k: (not isinstance(forms[k], TensorForm), k))) for nodes in union]


def _cuttable(alignment: Alignment, carried: Sequence[tuple[int, ...]]) -> set[int]:
    """Positions with a sound cut: tensors in it, something to compute before it and parameters on both sides.

    A cut with two views of one memory block that is overwritten later is not sound: a stage that copies one of them
    before writing would no longer change the other. Nor is one with a value that some of the networks have overwritten
    and others have not. Nor is a cut between a write to a buffer and another use of it:
    nodes of a branched network have buffers of their own.
    """
    overwritten_at = [_overwritten_at(flow, alignment.order(k)) for k, flow in enumerate(alignment.flows)]
    good = {
        position
        for position in range(len(alignment.common))
        if all(len({at[k] <= position for at in overwritten_at if len(at) > position}) == 1 for k in carried[position])
    }
    for network, flow in enumerate(alignment.flows):
        order = alignment.order(network)
        index = {node: k for k, node in enumerate(order)}
        everything = [*order, *(node for node in flow.order if node not in index)]
        last_write = {block: k for k, node in enumerate(everything) for block in flow.facts[node].overwritten}
        end = _last_parameter(flow, everything)
        together = _uses_of_written_state(flow, everything)
        for position in [each for each in good if each < len(order)]:
            values = [order[k] for k in carried[position]]
            forms = [flow.facts[node].form for node in values]
            blocks = [b for node in values for b in flow.facts[node].storages if last_write.get(b, -1) > position]
            sound = len(blocks) == len(set(blocks)) and all(map(carryable, forms))
            sound = sound and not any(first <= position < last for first, last in together)
            if not sound or position >= end or not any(isinstance(form, TensorForm) for form in forms):
                good.discard(position)
    return good


def _overwritten_at(flow: Dataflow, order: Sequence[fx.Node]) -> list[int]:
    """For each common node, the position at which its value is first overwritten; the end where it never is."""
    found = [len(order)] * len(order)
    writes = [(k, flow.facts[node].overwritten) for k, node in enumerate(order) if flow.facts[node].overwritten]
    for k, node in enumerate(order):
        blocks = flow.facts[node].storages
        found[k] = next((at for at, written in writes if at > k and written & blocks), len(order))
    return found


def _uses_of_written_state(flow: Dataflow, nodes: Sequence[fx.Node]) -> list[tuple[int, int]]:
    """First and last use of every parameter or buffer that the network's own code, not a module, writes to."""
    read = (flow.facts[node].storages for node in flow.facts if node.op == "get_attr")
    state = frozenset[int]().union(*read) & flow.overwritten
    uses: dict[int, list[int]] = {block: [] for block in state}
    for k, node in enumerate(nodes if state else ()):
        facts = flow.facts[node]
        sources = (flow.facts[source].storages for source in node.all_input_nodes)
        for block in state & facts.overwritten.union(facts.state, *sources):
            uses[block].append(k)
    return [(min(positions), max(positions)) for positions in uses.values() if positions]


def _last_parameter(flow: Dataflow, nodes: Sequence[fx.Node]) -> int:
    """Position of the last node that uses parameters; the end where none does."""
    return max((k for k, node in enumerate(nodes) if flow.parameters([node])), default=len(nodes) - 1)


def _call_ends(flow: Dataflow, order: Sequence[fx.Node]) -> dict[str, int]:
    """Position at which each module call ends, for calls that lie wholly in the common structure.

    Arithmetic of sizes counts to no call: tracing notes it where a size was first seen, however late it is done.
    """
    common = set(order)
    working = {node for node in flow.order if _is_work(flow, node)}
    broken = {name for node in working - common for name in flow.calls(node)}
    ends: dict[str, int] = {}
    for position, node in enumerate(order):
        if node in working:
            ends |= {name: position for name in flow.calls(node) if name not in broken}
    return ends


def _is_work(flow: Dataflow, node: fx.Node) -> bool:
    facts = flow.facts[node]
    return bool(facts.tensors or facts.overwritten or facts.flops)


def _cumulative(flow: Dataflow, order: Sequence[fx.Node]) -> tuple[list[int], list[int]]:
    seen: dict[int, nn.Parameter] = {}
    params, flops, used, spent = [], [], 0, 0
    for node in order:
        for identity, parameter in flow.parameters([node]).items():
            if identity not in seen:
                seen[identity] = parameter
                used += parameter.numel()
        spent += flow.facts[node].flops
        params.append(used)
        flops.append(spent)
    return params, flops


def own_names(alignment: Alignment, network: int, positions: Sequence[int]) -> tuple[str, ...]:
    """What the places are called in one network: the outermost module that ends there, else the innermost around it.

    Places that it does not pass have the name of the last one that it does.
    """
    flow, order = alignment.flows[network], alignment.order(network)
    ends = _call_ends(flow, order)
    names = []
    last = max((position for position in positions if position < len(order)), default=-1)
    for position in (min(position, last) for position in positions):
        here = [name for name, end in ends.items() if end == position]
        around = flow.calls(order[position]) or ("",)
        names.append(min(here, key=lambda name: name.count(".")) if here else around[-1])
    return tuple(names)
