"""Variance given back to the units of averaged layers in networks without BatchNorm.

The mean of several weights has less varied activations than any of them, layer after layer. "REPAIR" (Jordan et al.
2023, sections 3 and 4) scales and shifts every unit so that its mean and standard deviation over the inputs are the
mean of those of the networks averaged. All layers are corrected in one pass, each on features that are corrected
already, and the correction goes into weight and bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from branchnet.builder.network.branched_network import BranchedNetwork, Input
from branchnet.builder.weights.averaging import counterparts
from branchnet.stages import StagedNetwork, call
from branchnet.stages.staged import Stage
from branchnet.utils.modes import mode_of

Inputs = Callable[[], Iterable[Input]]
Order = Callable[[str, int, str, Tensor], Tensor]
"""From (task, stage, name of a bias in the first task's network, values per unit) to the values in the common order."""


class _Moments:
    """Running mean and standard deviation of each unit of a layer's output."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, rows: Tensor) -> None:
        self.count += len(rows)
        self.total = self.total + rows.double().sum(0).cpu()
        self.squares = self.squares + rows.double().square().sum(0).cpu()

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def deviation(self) -> Tensor:
        return (self.squares / self.count - self.mean.square()).clamp_min(0).sqrt()


def restore_variance(
    branched: BranchedNetwork, networks: Mapping[str, StagedNetwork], nodes: Iterable[str], order: Order, inputs: Inputs
) -> int:
    """Rescale the convolutions and linear layers with a bias in averaged nodes, see the module.

    Args:
        branched: the averaged network.
        networks: the donors.
        nodes: ids of the averaged nodes.
        order: puts a donor's values per unit into the order of the average.
        inputs: gives the probe, in batches.

    Returns:
        the number of layers that were rescaled.
    """
    chosen = set(nodes)
    layers: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    for stage, clusters in enumerate(branched.tree.partitions):
        averaged = [k for k in range(len(clusters)) if f"nodes.{stage}.{k}" in chosen]
        tasks = {task for k in averaged for task in clusters[k]}
        moments = {task: _donor_moments(networks, branched.tasks[0], task, stage, order, inputs) for task in tasks}
        for k in averaged:
            donor = networks[branched.donors[stage][k]]
            first = cast(Stage, networks[branched.tasks[0]].stages[stage])
            names = counterparts(first, cast(Stage, donor.stages[stage]))
            for name, own in moments[clusters[k][0]].items():
                layer = branched.nodes[stage][k].get_submodule(names[f"{name}.bias"].rpartition(".")[0])  # type: ignore[index]
                every = [own, *(moments[task][name] for task in clusters[k][1:])]
                mean, deviation = (torch.stack([one[i] for one in every]).mean(0) for i in range(2))
                layers[layer] = (mean, deviation)
    _correct(branched, layers, inputs)
    return len(layers)


def _donor_moments(
    networks: Mapping[str, StagedNetwork], first: str, task: str, stage: int, order: Order, inputs: Inputs
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and deviation of the units of each layer of a donor's stage, by the layer's name in the first network."""
    network = networks[task]
    names = counterparts(cast(Stage, networks[first].stages[stage]), cast(Stage, network.stages[stage]))
    layers = {
        name.removesuffix(".bias"): network.stages[stage].get_submodule(its.rpartition(".")[0])
        for name, its in names.items()
        if name.endswith(".bias")
    }
    layers = {name: layer for name, layer in layers.items() if _rescalable(layer)}
    moments = {name: _Moments() for name in layers}
    hooks = [
        layer.register_forward_hook(lambda layer, _, y, name=name: moments[name].add(_rows(layer, y)))
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad(), mode_of(network):
            for batch in inputs():
                call(network, cast(Any, batch))
    finally:
        for hook in hooks:
            hook.remove()
    seen = {name: found for name, found in moments.items() if found.count}
    return {
        name: tuple(order(task, stage, f"{name}.bias", values) for values in (found.mean, found.deviation))  # type: ignore[misc]
        for name, found in seen.items()
    }


def _correct(branched: BranchedNetwork, layers: Mapping[nn.Module, tuple[Tensor, Tensor]], inputs: Inputs) -> None:
    """Scale and shift every layer's units to the wanted moments."""
    moments = {layer: _Moments() for layer in layers}

    def corrected(layer: nn.Module, _: Any, y: Tensor) -> Tensor:
        rows = _rows(layer, y)
        moments[layer].add(rows)
        wanted = [values.to(y) for values in layers[layer]]
        scale = wanted[1] / rows.std(0, correction=0).clamp_min(1e-6)
        axis = 1 if isinstance(layer, _ConvNd) else -1
        moved = y.movedim(axis, -1)
        return ((moved - rows.mean(0)) * scale + wanted[0]).movedim(-1, axis)

    hooks = [layer.register_forward_hook(corrected) for layer in layers]
    try:
        with torch.no_grad(), mode_of(branched):
            for batch in inputs():
                branched(batch)
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        for layer, (mean, deviation) in layers.items():
            if moments[layer].count:
                scale = deviation / moments[layer].deviation.clamp_min(1e-6)
                weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
                axis = 1 if getattr(layer, "transposed", False) else 0
                weight.copy_((weight.movedim(axis, -1) * scale.to(weight)).movedim(-1, axis))
                bias.copy_((bias - moments[layer].mean.to(bias)) * scale.to(bias) + mean.to(bias))


def _rescalable(layer: nn.Module) -> bool:
    if isinstance(layer, _ConvNd):
        return not layer.transposed or layer.groups == 1
    return isinstance(layer, nn.Linear)


def _rows(layer: nn.Module, y: Tensor) -> Tensor:
    """A layer's output as (rows, units)."""
    moved = y.movedim(1, -1) if isinstance(layer, _ConvNd) else y
    return moved.reshape(-1, moved.shape[-1])
