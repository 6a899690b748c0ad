"""Put the pieces of followed networks together as staged networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import fx, nn

from branchnet.stages.costs import StageCost, StageCosts
from branchnet.stages.graph.common_subgraph import Alignment, align
from branchnet.stages.graph.dataflow import Dataflow, piece
from branchnet.stages.graph.propagation import TensorForm
from branchnet.stages.interface import Example, Interface, flat_example
from branchnet.stages.locations import Location, carried_after, find_locations, own_names
from branchnet.stages.staged import CutTensor, Program, Stage, StagedNetwork, hold, keep_unused
from branchnet.stages.tracing.fx_tracer import PREPROCESSING
from branchnet.stages.tracing.trace import Followed

if TYPE_CHECKING:
    from branchnet.models.constructors import Constructor


@dataclass(frozen=True)
class _Plan:
    """Where one network's dataflow is cut: the nodes of each piece and the values of each cut."""

    flow: Dataflow
    pieces: tuple[tuple[fx.Node, ...], ...]
    cuts: tuple[tuple[fx.Node, ...], ...]

    def graphs(self) -> list[fx.Graph]:
        """One graph per stage, then the head's."""
        before = (self.flow.inputs, *self.cuts)
        after = (*self.cuts, None)
        return [piece(self.flow, *parts) for parts in zip(self.pieces, before, after, strict=True)]


def assemble(
    followed: Sequence[Followed], alignment: Alignment, chosen: Sequence[Location], example: Example
) -> list[StagedNetwork]:
    """Cut every network at the chosen places, in both modes where all of them can be trained."""
    names = [place.name for place in chosen]
    evaluation = _plans(alignment, [place.position for place in chosen])
    training, reason = _training_plans(followed, names)
    return [
        _staged(network, plan, trained, reason, own_names(alignment, k, [p.position for p in chosen]), names, example)
        for k, (network, plan, trained) in enumerate(zip(followed, evaluation, training, strict=True))
    ]


def cost_of_whole(flow: Dataflow) -> tuple[int, int]:
    """Parameters and multiply-adds of all that the network runs."""
    params = sum(parameter.numel() for parameter in flow.parameters([*flow.order, flow.output]).values())
    return params, sum(facts.flops for facts in flow.facts.values())


def _plans(alignment: Alignment, positions: Sequence[int]) -> list[_Plan]:
    carried = carried_after(alignment)
    starts = (0, *(position + 1 for position in positions))
    plans = []
    for network, flow in enumerate(alignment.flows):
        order = alignment.order(network)
        stages = [order[start:end] for start, end in pairwise(starts)]
        before = set(order[: starts[-1]])
        head = tuple(node for node in flow.order if node not in before)
        cuts = tuple(tuple(order[k] for k in carried[position]) for position in positions)
        plans.append(_Plan(flow, (*stages, head), cuts))
    return plans


def _training_plans(followed: Sequence[Followed], names: Sequence[str]) -> tuple[list[_Plan] | list[None], str | None]:
    """Plans of training mode with cuts at the same places, or None for each network and the reason."""
    flows = [network.training for network in followed if network.training is not None]
    if len(flows) < len(followed):
        return [None] * len(followed), next(network.eval_only for network in followed if network.eval_only)
    alignment = align(flows)
    places = {alias: place.position for place in find_locations(alignment) for alias in place.aliases}
    if missing := [name for name in names if name not in places]:
        return [None] * len(followed), f"in training mode it cannot be cut at {', '.join(missing)}"
    return _plans(alignment, [places[name] for name in names]), None


def _staged(
    followed: Followed,
    plan: _Plan,
    training: _Plan | None,
    eval_only: str | None,
    own_locations: Sequence[str],
    names: Sequence[str],
    example: Example,
) -> StagedNetwork:
    interface = Interface.of(example)
    tensors = (*followed.root.parameters(), *followed.root.buffers(), *flat_example(example))
    device = tensors[0].device
    graphs = plan.graphs()
    trained = training.graphs() if training is not None else [None] * len(graphs)
    stages = []
    for k, (name, graph, other) in enumerate(zip([*names, "head"], graphs, trained, strict=True)):
        is_head = k == len(names)
        programs = [
            None if one is None else Program(one, flow.trace.output if is_head else None, device)
            for one, flow in ((graph, plan.flow), (other, (training or plan).flow))
        ]
        keywords = interface.names if k == 0 else ()
        stage = Stage(name, programs[0], programs[1], keywords, eval_only or "")  # type: ignore[arg-type]
        hold(stage, followed.root, [graph] if other is None else [graph, other])
        stages.append(stage)
    costs = _costs(plan, stages, names)
    used = {key for stage in stages for key in stage.state_dict()}
    staged = StagedNetwork(
        stages[:-1],
        stages[-1],
        keep_unused(followed.root, used),
        locations=names,
        own_locations=own_locations,
        cuts=_cut_tensors(plan),
        costs=StageCosts(tuple(costs[:-1])),
        head_cost=costs[-1],
        interface=interface,
        constructor=_constructor_of(followed),
        traced_by=plan.flow.trace.method,
        eval_only=eval_only,
    )
    _set_modes(staged, followed.root, followed.network.training and eval_only is None)
    if eval_only is not None:
        staged.eval()
    return staged


def _set_modes(staged: StagedNetwork, root: nn.Module, training: bool) -> None:
    """Give the modules that splitting made the network's mode; the network's own keep theirs."""
    own = set(root.modules())
    for module in staged.modules():
        if module not in own:
            module.training = training


def _costs(plan: _Plan, stages: Sequence[Stage], names: Sequence[str]) -> list[StageCost]:
    costs = []
    for name, stage, nodes, cut in zip([*names, "head"], stages, plan.pieces, (*plan.cuts, ()), strict=True):
        facts = [plan.flow.facts[node] for node in nodes]
        forms = [plan.flow.facts[node].form for node in cut]
        costs.append(
            StageCost(
                name,
                sum(parameter.numel() for parameter in stage.parameters()),
                sum(fact.flops for fact in facts),
                sum(fact.activation_bytes for fact in facts),
                sum(form.bytes for form in forms if isinstance(form, TensorForm)),
            )
        )
    return costs


def _cut_tensors(plan: _Plan) -> list[list[CutTensor]]:
    made = {node: stage for stage, nodes in enumerate(plan.pieces) for node in nodes if node.op != "placeholder"}
    described = []
    for cut in plan.cuts:
        forms = [(node, plan.flow.facts[node].form) for node in cut]
        described.append(
            [
                CutTensor(node.name, form.shape, str(form.dtype).removeprefix("torch."), made.get(node, -1))
                for node, form in forms
                if isinstance(form, TensorForm)
            ]
        )
    return described


def _constructor_of(followed: Followed) -> Constructor | None:
    """How the network is made by name; None where a transform runs before it, which no constructor knows."""
    from branchnet.models.constructors import constructor_of

    transform = followed.root._modules.get(PREPROCESSING)
    return constructor_of(followed.network) if transform is None or isinstance(transform, nn.Identity) else None
