"""Closed-form corrections below stitches: statistics of channels, and linear heads. Kept where they measure better.

What a stitch leaves unexplained changes the statistics of every layer after it. BatchNorm statistics are estimated
again; where there are none, convolutions and linear layers get the means and deviations that they have in their own
network. A linear head is refitted, by ridge regression, from the features that arrive to its own network's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from branchnet.affinity.probes import Probe, on_device
from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.node import Node
from branchnet.builder.weights.normalisation import estimate_batchnorm
from branchnet.builder.weights.variance_correction import (
    UnitStatistics,
    correct_layers,
    hooked,
    layer_statistics,
    rescalable,
)
from branchnet.data.collation import length
from branchnet.stages import Stage, StagedNetwork, call
from branchnet.stitching.closed_form import least_squares
from branchnet.stitching.moments import Moments, MomentSums
from branchnet.stitching.output_distances import OutputDistance, OutputKind
from branchnet.stitching.probe_division import ProbeDivision, chosen_inputs
from branchnet.stitching.stitch import unstitched
from branchnet.utils.modes import evaluation_mode
from branchnet.utils.random_state import seeded

RIDGES = (0.1, 1.0)
"""Of a head's refit, relative to the features' mean variance: strong, as there are fewer inputs than features."""

Inputs = Callable[[], Iterator[Any]]


def correct_below_stitches(
    branched: BranchedNetwork,
    networks: Mapping[str, StagedNetwork],
    probe: Probe,
    division: ProbeDivision,
    kinds: Mapping[str, OutputKind],
) -> list[str]:
    """Try each correction, and keep those with which the outputs are nearer to the own ones on other inputs.

    Args:
        branched: a network with stitches, changed in place.
        networks: the donors by task.
        probe: inputs of all networks.
        division: which inputs to fit on, and which to judge on.
        kinds: how the outputs of some tasks are compared.

    Returns:
        in words what was kept.
    """
    with ExitStack() as inside:
        inside.enter_context(torch.no_grad())
        inside.enter_context(seeded(0))
        for network in (branched, *{id(network): network for network in networks.values()}.values()):
            inside.enter_context(evaluation_mode(network))
        return _kept_corrections(branched, networks, probe, division, kinds)


def _kept_corrections(
    branched: BranchedNetwork,
    networks: Mapping[str, StagedNetwork],
    probe: Probe,
    division: ProbeDivision,
    kinds: Mapping[str, OutputKind],
) -> list[str]:
    device = next((p.device for p in branched.parameters()), torch.device("cpu"))

    def inputs(numbers: Sequence[int]) -> Iterator[Any]:
        return (on_device(batch, device) for batch in chosen_inputs(probe.batches("correcting"), numbers))

    nodes = below_stitches(branched)
    tasks = tuple(dict.fromkeys(task for node in nodes if node.is_head for task in node.tasks))

    own = [[call(networks[task], batch) for task in tasks] for batch in inputs(division.judged)]

    def loss() -> float:
        judged = [OutputDistance(kinds.get(task, "regression")) for task in tasks]
        for batch, wanted in zip(inputs(division.judged), own, strict=True):
            found = branched(batch, tasks)
            for task, distance, output in zip(tasks, judged, wanted, strict=True):
                distance.add(found[task], output)
        return sum(distance.value() for distance in judged) / len(judged)

    def fitted() -> Iterator[Any]:
        return inputs(division.fitted)

    best, kept = loss(), []
    for name, corrections in (
        ("channel statistics", lambda: [partial(_statistics, branched, networks, nodes, fitted)]),
        ("linear heads", lambda: _head_corrections(branched, networks, nodes, fitted)),
    ):
        for correct in corrections():
            before = [{key: value.clone() for key, value in node.module.state_dict().items()} for node in nodes]
            correct()
            if (now := loss()) < best:
                best = now
                kept.append(name)
                break
            for node, state in zip(nodes, before, strict=True):
                node.module.load_state_dict(state)
    return kept


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


def _statistics(
    branched: BranchedNetwork, networks: Mapping[str, StagedNetwork], nodes: Sequence[Node], inputs: Inputs
) -> None:
    modules = [unstitched(node.module) for node in nodes]
    if any(isinstance(layer, _BatchNorm) for module in modules for layer in module.modules()):
        several = [batch for batch in inputs() if length(batch) > 1]  # one sample has no variance
        if several:
            estimate_batchnorm(branched, modules, several)
        return
    wanted: dict[nn.Module, UnitStatistics] = {}
    for donor in dict.fromkeys(node.donor for node in nodes):
        mine = [node for node in nodes if node.donor == donor and not node.is_head]
        own = {
            f"{node.id}.{name}": layer
            for node in mine
            for name, layer in networks[donor].stages[node.stage].named_modules()
            if rescalable(layer) and getattr(layer, "bias", None) is not None
        }
        for name, statistics in layer_statistics(networks[donor], own, inputs).items():
            node = next(node for node in mine if name.startswith(f"{node.id}."))
            wanted[unstitched(node.module).get_submodule(name.removeprefix(f"{node.id}."))] = statistics
    correct_layers(branched, wanted, inputs)


def _head_corrections(
    branched: BranchedNetwork, networks: Mapping[str, StagedNetwork], nodes: Sequence[Node], inputs: Inputs
) -> list[Callable[[], None]]:
    """Refits of the linear heads, each with another ridge, from one pass over the inputs; none without such heads."""
    heads = {node.tasks[0]: layer for node in nodes if node.is_head and (layer := _last_linear(node.module))}
    if not heads:
        return []
    sums = {task: MomentSums() for task in heads}
    seen: dict[nn.Module, Tensor] = {}

    def remember(layer: nn.Module, given: Any, _: Tensor) -> None:
        seen[layer] = given[0]

    with hooked(dict.fromkeys(heads.values(), remember)):
        for batch in inputs():
            found = branched(batch, list(heads))
            for task, layer in heads.items():
                missing = cast(Tensor, call(networks[task], batch)) - found[task]
                rows = [seen[layer].flatten(0, -2), missing.flatten(0, -2)]
                sums[task].add(rows, [(0, 0), (0, 1), (1, 1)])
    moments = {task: found.moments(0, 1) for task, found in sums.items()}
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
