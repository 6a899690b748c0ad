"""Closed-form corrections below stitches: statistics of channels, and linear heads. Kept where they measure better.

What a stitch leaves unexplained changes the statistics of every layer after it. BatchNorm statistics are estimated
again; where there are none, convolutions and linear layers get the means and deviations that they have in their own
network. A linear head is refitted, by ridge regression, from the features that arrive to its own network's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.node import Node
from branchnet.builder.stitches.probe_features import ArrivingFeatures, Batch, BelowStitches, Chain, OwnFeatures
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


class _Below:
    """What is below stitches, run from the cuts before it, which corrections do not change."""

    def __init__(self, branched: BranchedNetwork, own: OwnFeatures, kinds: Mapping[str, OutputKind]) -> None:
        self.own, self.kinds = own, kinds
        self.nodes = below_stitches(branched)
        self.network = BelowStitches(branched, self.nodes)
        self.arriving = ArrivingFeatures(branched, own)
        self.tasks = [node.tasks[0] for node in self.nodes if node.is_head]

    def cuts(self, batch: Batch) -> dict[str, Any]:
        return {name: self.arriving.after(batch, name) for name in self.network.before}

    def loss(self) -> float:
        """The mean over the tasks of the distance from the own outputs on inputs that nothing was fitted on."""
        judged = {task: OutputDistance(self.kinds.get(task, "regression")) for task in self.tasks}
        for batch in self.own.batches("judged"):
            found = self.network(self.cuts(batch))
            for task, distance in judged.items():
                distance.add(found[task], self.own.own_output(batch, task, distance.kind))
        return sum(distance.value() for distance in judged.values()) / len(judged)

    def kept_corrections(self) -> list[str]:
        """Try all corrections, and keep those that help; in words what was kept."""
        best, kept = self.loss(), []
        attempts: dict[str, Callable[[], list[Callable[[], None]]]] = {
            "channel statistics": lambda: [self.correct_statistics],
            "linear heads": self.head_corrections,
        }
        for name, corrections in attempts.items():
            for correct in corrections():
                before = [
                    {key: value.clone() for key, value in node.module.state_dict().items()} for node in self.nodes
                ]
                correct()
                if (now := self.loss()) < best:
                    best = now
                    kept.append(name)
                    break
                for node, state in zip(self.nodes, before, strict=True):
                    node.module.load_state_dict(state)
        return kept

    def correct_statistics(self) -> None:
        """Estimate BatchNorm again; without any, give layers the means and deviations of their own networks."""
        modules = [unstitched(node.module) for node in self.nodes]
        if any(isinstance(layer, _BatchNorm) for module in modules for layer in module.modules()):
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

    def head_corrections(self) -> list[Callable[[], None]]:
        """Refits of the linear heads, each with another ridge, from one pass over the inputs; none without heads."""
        found = {node.tasks[0]: _last_linear(node.module) for node in self.nodes if node.is_head}
        heads = {task: layer for task, layer in found.items() if layer is not None}
        if not heads:
            return []
        sums = {task: MomentSums() for task in heads}
        seen: dict[nn.Module, Tensor] = {}

        def remember(layer: nn.Module, given: Any, _: Tensor) -> None:
            seen[layer] = given[0]

        with hooked(dict.fromkeys(heads.values(), remember)):
            for batch in self.own.batches("fitted"):
                outputs = self.network(self.cuts(batch))
                for task, layer in heads.items():
                    missing = self.own.output(batch, task) - outputs[task]
                    rows = [seen[layer].flatten(0, -2), missing.flatten(0, -2)]
                    sums[task].add(rows, [(0, 0), (0, 1)])
        moments = {task: of_task.moments(0, 1) for task, of_task in sums.items()}
        return [partial(_refit, heads, moments, ridge) for ridge in RIDGES]


def _refit(heads: Mapping[str, nn.Linear], moments: Mapping[str, Moments], ridge: float) -> None:
    with torch.no_grad():
        for task, layer in heads.items():
            change = least_squares(moments[task], ridge)
            layer.weight.add_(change.T.to(layer.weight))
            if layer.bias is not None:
                layer.bias.add_((moments[task].mean_y - moments[task].mean_x @ change).to(layer.bias))


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
