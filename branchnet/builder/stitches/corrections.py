"""Closed-form corrections below stitches: statistics of channels, and linear heads. Kept where they measure better.

What a stitch leaves unexplained changes the statistics of every layer after it. BatchNorm statistics are estimated
again; where there are none, convolutions and linear layers get the means and deviations that they have in their own
network. A linear head is refitted, by ridge regression, from the features that arrive to its own network's outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.node import Node
from branchnet.builder.stitches.probe_features import ArrivingFeatures, Batch, BelowStitches, Chain, OwnFeatures, Part
from branchnet.builder.weights.normalisation import estimate_batchnorm
from branchnet.builder.weights.variance_correction import (
    UnitStatistics,
    correct_layers,
    hooked,
    layer_statistics,
    rescalable,
)
from branchnet.stages import Stage
from branchnet.stitching.closed_form import least_squares
from branchnet.stitching.moments import Moments, MomentSums
from branchnet.stitching.output_distances import OutputDistance, OutputKind
from branchnet.stitching.stitch import unstitched
from branchnet.utils.installed_torch.torch_internals import BatchNormBase
from branchnet.utils.modes import evaluation_mode
from branchnet.utils.random_state import seeded

RIDGES = (0.1, 1.0)
"""Of a head's refit, relative to the features' mean variance: strong, as there are fewer inputs than features."""
STATISTICS_INPUTS = 64
"""About so many inputs give the means and deviations of channels, each from all its positions."""


def correct_below_stitches(branched: BranchedNetwork, own: OwnFeatures, kinds: Mapping[str, OutputKind]) -> list[str]:
    """Try each correction, and keep those with which the outputs are nearer to the own ones on other inputs.

    Args:
        branched: a network with stitches, changed in place.
        own: what the donors make of the probe.
        kinds: how the outputs of some tasks are compared.

    Returns:
        in words what was kept.
    """
    with ExitStack() as inside:
        inside.enter_context(torch.no_grad())
        inside.enter_context(seeded(0))
        for network in (branched, *{id(network): network for network in own.networks.values()}.values()):
            inside.enter_context(evaluation_mode(network))
        return _Below(branched, own, kinds).kept_corrections()


def below_stitches(branched: BranchedNetwork) -> list[Node]:
    """The nodes and heads that some stitch feeds, directly or through others; from input to output.

    Args:
        branched: the network.

    Returns:
        those whose features are not their donor's own.
    """
    stitched = {child for _, child in branched.stitches}
    found: dict[str, Node] = {}
    for node in branched.members():
        if node.id in stitched or branched.parent_of(node) in found:
            found[node.id] = node
    return list(found.values())


@dataclass(frozen=True)
class _Measured:
    """What is below stitches on inputs that nothing was fitted on.

    Attributes:
        losses: for each task the distance from the own outputs.
        given: for each task with a linear head what that layer is given, batch by batch.
    """

    losses: Mapping[str, float]
    given: Mapping[str, Sequence[Tensor]]

    @property
    def mean(self) -> float:
        return sum(self.losses.values()) / len(self.losses)


class _Below:
    """What is below stitches, run from the cuts before it, which corrections do not change."""

    def __init__(self, branched: BranchedNetwork, own: OwnFeatures, kinds: Mapping[str, OutputKind]) -> None:
        self.own, self.kinds = own, kinds
        self.nodes = below_stitches(branched)
        self.network = BelowStitches(branched, self.nodes)
        self.arriving = ArrivingFeatures(branched, own)
        self.tasks = [node.tasks[0] for node in self.nodes if node.is_head]
        found = {node.tasks[0]: _last_linear(node.module) for node in self.nodes if node.is_head}
        self.heads = {task: layer for task, layer in found.items() if layer is not None}

    def cuts(self, batch: Batch) -> dict[str, Any]:
        return {name: self.arriving.after(batch, name) for name in self.network.before}

    def outputs(self, part: Part) -> Iterator[tuple[Batch, dict[str, Any], dict[str, Tensor]]]:
        """The batches of a part of the probe, the outputs by task, and what the linear heads are given."""
        seen: dict[nn.Module, Tensor] = {}

        def remember(layer: nn.Module, given: Any, _: Tensor) -> None:
            seen[layer] = given[0]

        with hooked(dict.fromkeys(self.heads.values(), remember)):
            for batch in self.own.batches(part):
                outputs = self.network(self.cuts(batch))
                yield batch, outputs, {task: seen[layer] for task, layer in self.heads.items()}

    def measured(self) -> _Measured:
        """Run the network on inputs that nothing was fitted on."""
        judged = {task: OutputDistance(self.kinds.get(task, "regression")) for task in self.tasks}
        given: dict[str, list[Tensor]] = {task: [] for task in self.heads}
        for batch, outputs, seen in self.outputs("judged"):
            for task, distance in judged.items():
                distance.add(outputs[task], self.own.own_output(batch, task, distance.kind))
            for task, features in seen.items():
                given[task].append(features)
        return _Measured({task: distance.value() for task, distance in judged.items()}, given)

    def kept_corrections(self) -> list[str]:
        """Try all corrections, and keep those that help; in words what was kept."""
        best, kept = self.measured(), []
        before = [{key: value.clone() for key, value in node.module.state_dict().items()} for node in self.nodes]
        self.correct_statistics()
        if (now := self.measured()).mean < best.mean:
            best = now
            kept.append("channel statistics")
        else:
            for node, state in zip(self.nodes, before, strict=True):
                node.module.load_state_dict(state)
        return kept + (["linear heads"] if self.heads and self.refit_heads(best) else [])

    def refit_heads(self, before: _Measured) -> bool:
        """Refit the linear heads where that helps, with the first ridge with which it does; whether it did.

        A head returns what its last layer makes of what it is given, so that nothing else has to run again.
        """
        sums = {task: MomentSums() for task in self.heads}
        for batch, outputs, seen in self.outputs("fitted"):
            for task, given in seen.items():
                missing = self.own.output(batch, task) - outputs[task]
                sums[task].add([given.flatten(0, -2), missing.flatten(0, -2)], [(0, 0), (0, 1)])
        moments = {task: of_task.moments(0, 1) for task, of_task in sums.items()}
        for ridge in RIDGES:
            refitted = {task: _refitted(layer, moments[task], ridge) for task, layer in self.heads.items()}
            losses = {task: self._loss_of(task, layer, before.given[task]) for task, layer in refitted.items()}
            if _Measured({**before.losses, **losses}, {}).mean < before.mean:
                for task, layer in refitted.items():
                    self.heads[task].load_state_dict(layer.state_dict())
                return True
        return False

    def _loss_of(self, task: str, layer: nn.Linear, given: Sequence[Tensor]) -> float:
        distance = OutputDistance(self.kinds.get(task, "regression"))
        for batch, features in zip(self.own.batches("judged"), given, strict=True):
            distance.add(layer(features), self.own.own_output(batch, task, distance.kind))
        return distance.value()

    def correct_statistics(self) -> None:
        """Estimate BatchNorm again; without any, give layers the means and deviations of their own networks."""
        modules = [unstitched(node.module) for node in self.nodes]
        if any(isinstance(layer, BatchNormBase) for module in modules for layer in module.modules()):
            several = [self.cuts(batch) for batch in self._some() if len(batch) > 1]  # one sample has no variance
            if several:
                estimate_batchnorm(self.network, modules, several)
            return
        wanted: dict[nn.Module, UnitStatistics] = {}
        for donor in dict.fromkeys(node.donor for node in self.nodes if not node.is_head):
            wanted |= self._own_statistics(donor)
        correct_layers(self.network, wanted, lambda: (self.cuts(batch) for batch in self._some()))

    def _own_statistics(self, donor: str) -> dict[nn.Module, UnitStatistics]:
        """What a donor's layers below stitches have in its own network."""
        mine = [node for node in self.nodes if node.donor == donor and not node.is_head]
        network, first = self.own.networks[donor], min(node.stage for node in mine)
        own = {
            f"{node.id}.{name}": layer
            for node in mine
            for name, layer in network.stages[node.stage].named_modules()
            if rescalable(layer) and getattr(layer, "bias", None) is not None
        }
        chain = Chain(network.stages[first : max(node.stage for node in mine) + 1])
        found = layer_statistics(chain, own, lambda: (self.own.cut(batch, donor, first) for batch in self._some()))
        return {self._layer(mine, name): statistics for name, statistics in found.items()}

    @staticmethod
    def _layer(nodes: Sequence[Node], name: str) -> nn.Module:
        node = next(node for node in nodes if name.startswith(f"{node.id}."))
        return unstitched(node.module).get_submodule(name.removeprefix(f"{node.id}."))

    def _some(self) -> Iterator[Batch]:
        return self.own.batches("fitted", STATISTICS_INPUTS)


def _refitted(layer: nn.Linear, moments: Moments, ridge: float) -> nn.Linear:
    """A copy with what it misses added, as far as least squares explains it."""
    made, change = copy.deepcopy(layer), least_squares(moments, ridge)
    made.weight.add_(change.T.to(made.weight))
    if made.bias is not None:
        made.bias.add_((moments.mean_y - moments.mean_x @ change).to(made.bias))
    return made


def _last_linear(head: nn.Module) -> nn.Linear | None:
    """The linear layer whose result a head returns as it is."""
    stage = unstitched(head)
    if not isinstance(stage, Stage):
        return None
    returned = stage.graph.output_node().args[0]
    if not isinstance(returned, torch.fx.Node) or returned.op != "call_module":
        return None
    layer = stage.get_submodule(str(returned.target))
    return layer if isinstance(layer, nn.Linear) and stage.running.output is None else None
