"""Put the subgraphs of traced networks together as staged networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import fx, nn

from branchnet.stages.codegen.program import Program
from branchnet.stages.costs import FirstDifference, StageCost, StageCosts
from branchnet.stages.graph.common_subgraph import Alignment, Groups, align
from branchnet.stages.graph.dataflow import Dataflow, subgraph
from branchnet.stages.graph.propagation import TensorForm
from branchnet.stages.interface import Example, Interface, flat_example
from branchnet.stages.locations import Location, carried_after, find_locations, own_names
from branchnet.stages.staged import CutTensor, Stage, StagedNetwork, hold, keep_unused
from branchnet.stages.tracing.fx_tracer import PREPROCESSING
from branchnet.stages.tracing.trace import TracedNetwork
from branchnet.stages.verification import check_evaluation, training_difference

if TYPE_CHECKING:
    from branchnet.models.constructors import Constructor


@dataclass(frozen=True)
class _Plan:
    """Where one network's dataflow is cut: the nodes of each subgraph and the values of each cut.

    From `depth` on, where the network leaves the trunk, stages have no nodes and return the cut before them.
    """

    flow: Dataflow
    subgraphs: tuple[tuple[fx.Node, ...], ...]
    cuts: tuple[tuple[fx.Node, ...], ...]
    depth: int

    def graphs(self) -> list[fx.Graph]:
        """One graph per stage, then the head's."""
        before = (self.flow.inputs, *self.cuts)
        after = (*self.cuts, None)
        return [subgraph(self.flow, *ends) for ends in zip(self.subgraphs, before, after, strict=True)]


@dataclass(frozen=True)
class TrainingPlaces:
    """Where networks can be cut in training mode.

    Attributes:
        alignment: of their training traces; None where one of them has none.
        positions: the places in it by the names of all modules that end there.
        reason: why one of them has no training trace.
    """

    alignment: Alignment | None
    positions: Mapping[str, int]
    reason: str | None = None

    def passing(self, name: str) -> tuple[int, ...] | None:
        """The networks that pass a place; None where it is not one."""
        if self.alignment is None or name not in self.positions:
            return None
        return self.alignment.passing(self.positions[name])


def training_places(traced: Sequence[TracedNetwork], groups: Groups | None = None) -> TrainingPlaces:
    """Find where all networks can be cut in training mode; `groups` as for `align`."""
    flows = [network.training for network in traced if network.training is not None]
    if len(flows) < len(traced):
        return TrainingPlaces(None, {}, next(network.eval_only for network in traced if network.eval_only))
    alignment = align(flows, groups)
    # A training trace may have other nodes (auxiliary heads, stochastic depth), so its cuts are found by name.
    places = find_locations(alignment)
    return TrainingPlaces(alignment, {alias: place.position for place in places for alias in place.aliases})


def in_both_modes(candidates: Sequence[Location], alignment: Alignment, training: TrainingPlaces) -> list[Location]:
    """The places of evaluation mode that training mode has, too, under the names that they have there.

    Training may write to a buffer on both sides of a place. All places where none is left, or nothing can be trained.
    """
    kept = []
    for place in candidates:
        passing = alignment.passing(place.position)
        names = tuple(name for name in place.aliases if training.passing(name) == passing)
        if names:
            kept.append(replace(place, name=names[0], aliases=names))
    return kept or list(candidates)


def assemble(
    traced: Sequence[TracedNetwork],
    alignment: Alignment,
    chosen: Sequence[Location],
    places: TrainingPlaces,
    example: Example,
    difference: FirstDifference | None = None,
) -> list[StagedNetwork]:
    """Cut every network at the chosen places, in both modes where all of them can be trained."""
    names = [place.name for place in chosen]
    evaluation = _plans(alignment, [place.position for place in chosen])
    own = [own_names(alignment, k, [place.position for place in chosen]) for k in range(len(traced))]

    def staged(training: Sequence[_Plan | None], reason: str | None) -> list[StagedNetwork]:
        networks = zip(traced, evaluation, training, own, strict=True)
        return [_staged(*network, names, example, reason, difference) for network in networks]

    training, reason = _training_plans(evaluation, places, names)
    found = staged(training, reason)
    for network, stages in zip(traced, found, strict=True):
        check_evaluation(network, stages, example)
    if reason is not None:
        return found
    differences = (training_difference(*pair, example) for pair in zip(traced, found, strict=True))
    lost = next((each for each in differences if each), None)
    return found if lost is None else staged([None] * len(traced), f"in training mode {lost}")


def _plans(alignment: Alignment, positions: Sequence[int]) -> list[_Plan]:
    carried = carried_after(alignment)
    plans = []
    for network, flow in enumerate(alignment.flows):
        order = alignment.order(network)
        passed = [position for position in positions if position < len(order)]
        starts = (0, *(position + 1 for position in passed))
        stages = [order[start:end] for start, end in pairwise(starts)]
        before = set(order[: starts[-1]])
        head = tuple(node for node in flow.order if node not in before)
        cuts = [tuple(order[k] for k in carried[position]) for position in passed]
        beyond = len(positions) - len(passed)
        subgraphs = (*stages, *[()] * beyond, head)
        plans.append(_Plan(flow, subgraphs, (*cuts, *cuts[-1:] * beyond), len(passed)))
    return plans


def _training_plans(
    evaluation: Sequence[_Plan], places: TrainingPlaces, names: Sequence[str]
) -> tuple[list[_Plan] | list[None], str | None]:
    """Plans of training mode with cuts at the same places, or None for each network and the reason."""
    nothing = [None] * len(evaluation)
    if places.alignment is None:
        return nothing, places.reason
    passing = [tuple(k for k, plan in enumerate(evaluation) if stage < plan.depth) for stage in range(len(names))]
    if missing := [name for name, those in zip(names, passing, strict=True) if places.passing(name) != those]:
        return nothing, f"in training mode it cannot be cut at {', '.join(missing)}"
    return _plans(places.alignment, [places.positions[name] for name in names]), None


def _staged(
    traced: TracedNetwork,
    plan: _Plan,
    training: _Plan | None,
    own_locations: Sequence[str],
    names: Sequence[str],
    example: Example,
    eval_only: str | None,
    difference: FirstDifference | None,
) -> StagedNetwork:
    interface = Interface.of(example)
    tensors = (*traced.root.parameters(), *traced.root.buffers(), *flat_example(example))
    device = tensors[0].device
    graphs = plan.graphs()
    trained = training.graphs() if training is not None else [None] * len(graphs)
    stages = []
    for k, (name, graph, other) in enumerate(zip([*names, "head"], graphs, trained, strict=True)):
        is_head = k == len(names)
        programs = [
            None
            if one is None
            else Program(one, flow.trace.output if is_head else None, device, None if k else flow.trace.sizes)
            for one, flow in ((graph, plan.flow), (other, (training or plan).flow))
        ]
        keywords = interface.names if k == 0 else ()
        left = traced.left_in_evaluation
        stage = Stage(name, programs[0], programs[1], keywords, eval_only or "", left)  # type: ignore[arg-type]
        hold(stage, traced.root, [graph] if other is None else [graph, other])
        stages.append(stage)
    # Stages count what they hold: a parameter of two stages (a tied embedding) counts in both, since nodes that serve
    # different tasks do not share it.
    costs = _costs(plan, stages, names)
    used = {key for stage in stages for key in stage.state_dict()}
    staged = StagedNetwork(
        stages[:-1],
        stages[-1],
        keep_unused(traced.root, used),
        locations=names,
        own_locations=own_locations,
        cuts=_cut_tensors(plan),
        costs=StageCosts(tuple(costs[:-1]), difference),
        head_cost=costs[-1],
        interface=interface,
        constructor=_constructor_of(traced),
        traced_by=plan.flow.trace.method,
        eval_only=eval_only,
        depth=plan.depth,
    )
    _set_modes(staged, traced.root, traced.network.training and eval_only is None)
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
    for name, stage, nodes, cut in zip([*names, "head"], stages, plan.subgraphs, (*plan.cuts, ()), strict=True):
        facts = [plan.flow.facts[node] for node in nodes]
        forms = [plan.flow.facts[node].form for node in cut]
        costs.append(
            StageCost(
                name,
                sum(parameter.numel() for parameter in stage.parameters()),
                sum(fact.flops for fact in facts),
                sum(fact.activation_bytes for fact in facts),
                sum(form.bytes for form in forms if isinstance(form, TensorForm)),
                tuple(sorted({operator for fact in facts for operator in fact.uncounted})),
            )
        )
    return costs


def _cut_tensors(plan: _Plan) -> list[list[CutTensor]]:
    made = {node: stage for stage, nodes in enumerate(plan.subgraphs) for node in nodes if node.op != "placeholder"}
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


def _constructor_of(traced: TracedNetwork) -> Constructor | None:
    """How the network is made by name; None where a transform runs before it, which no constructor knows."""
    from branchnet.models.constructors import constructor_of

    transform = traced.root._modules.get(PREPROCESSING)
    return constructor_of(traced.network) if transform is None or isinstance(transform, nn.Identity) else None
