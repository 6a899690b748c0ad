"""Variance given back to the units of averaged layers in networks without BatchNorm.

The mean of several weights has less varied activations than any of them, layer after layer. "REPAIR" (Jordan et al.
2023, sections 3 and 4) scales and shifts every unit so that its mean and standard deviation over the inputs are the
mean of those of the networks averaged. All layers are corrected in one pass, each on features that are corrected
already, and the correction goes into weight and bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from branchnet.builder.network.branched_network import BranchedNetwork, Input
from branchnet.builder.weights.averaging import counterparts
from branchnet.stages import StagedNetwork, call
from branchnet.stages.staged import Stage
from branchnet.stages.tracing.trial import saved
from branchnet.utils.installed_torch.torch_internals import ConvBase
from branchnet.utils.modes import mode_of

Inputs = Callable[[], Iterable[Input]]
Order = Callable[[str, int, str, Tensor], Tensor]
"""From (task, stage, name of a bias in the first task's network, values per unit) to the values in the common order."""

SMALLEST_DEVIATION = 1e-6
"""Below this a unit is constant over the probe: the factor that restores its deviation would amplify rounding only."""


@dataclass(frozen=True)
class UnitStatistics:
    """Mean and standard deviation of each unit of a layer's output, (n,) each, in float64."""

    mean: Tensor
    deviation: Tensor


class _Moments:
    """Running sums over the rows of a layer's output: in float64, as the variance is a difference of two large sums."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, rows: Tensor) -> None:
        self.count += len(rows)
        self.total = self.total + rows.double().sum(0).cpu()
        self.squares = self.squares + rows.double().square().sum(0).cpu()

    def statistics(self) -> UnitStatistics:
        mean = self.total / self.count
        # Rounding can make the variance of a constant unit slightly negative.
        return UnitStatistics(mean, (self.squares / self.count - mean.square()).clamp_min(0).sqrt())


def restore_variance(
    branched: BranchedNetwork, networks: Mapping[str, StagedNetwork], nodes: Iterable[str], order: Order, inputs: Inputs
) -> int:
    """Rescale the convolutions and linear layers with a bias in averaged nodes, see the module.

    Args:
        branched: the averaged network, changed in place.
        networks: the donors.
        nodes: ids of the averaged nodes.
        order: puts a donor's values per unit into the order of the average.
        inputs: gives the probe, in batches.

    Returns:
        the number of layers that were rescaled.
    """
    chosen = set(nodes)
    wanted: dict[nn.Module, UnitStatistics] = {}
    for stage in range(branched.tree.depth):
        averaged = [n for n in branched.members() if n.id in chosen and n.stage == stage]
        tasks = {task for node in averaged for task in node.tasks}
        by_task = {
            task: _donor_statistics(networks, branched.tasks[0], task, stage, order, inputs) for task in sorted(tasks)
        }
        for node in averaged:
            own_names = _layers_of(networks, branched.tasks[0], node.donor, stage)
            for layer, statistics in _mean_statistics([by_task[task] for task in node.tasks]).items():
                wanted[node.module.get_submodule(own_names[layer])] = statistics
    correct_layers(branched, wanted, inputs)
    return len(wanted)


def _mean_statistics(donors: Sequence[Mapping[str, UnitStatistics]]) -> dict[str, UnitStatistics]:
    """What each layer of an average shall have: the mean of the donors' means and deviations."""
    means = {name: torch.stack([donor[name].mean for donor in donors]).mean(0) for name in donors[0]}
    deviations = {name: torch.stack([donor[name].deviation for donor in donors]).mean(0) for name in donors[0]}
    return {name: UnitStatistics(means[name], deviations[name]) for name in donors[0]}


def _layers_of(networks: Mapping[str, StagedNetwork], first: str, task: str, stage: int) -> dict[str, str]:
    """The layers with a bias in a stage: from their names in the first task's network to those in this one's."""
    names = counterparts(cast(Stage, networks[first].stages[stage]), cast(Stage, networks[task].stages[stage]))
    return {name.removesuffix(".bias"): own.rpartition(".")[0] for name, own in names.items() if name.endswith(".bias")}


def _donor_statistics(
    networks: Mapping[str, StagedNetwork], first: str, task: str, stage: int, order: Order, inputs: Inputs
) -> dict[str, UnitStatistics]:
    """The statistics of each layer of a donor's stage in the common order, by the layer's name in the first network."""
    network = networks[task]
    layers = {
        name: network.stages[stage].get_submodule(own) for name, own in _layers_of(networks, first, task, stage).items()
    }
    layers = {name: layer for name, layer in layers.items() if rescalable(layer)}
    with saved(network):
        found = layer_statistics(network, layers, inputs)
    return {
        name: UnitStatistics(*(order(task, stage, f"{name}.bias", v) for v in (values.mean, values.deviation)))
        for name, values in found.items()
    }


def layer_statistics(
    network: nn.Module, layers: Mapping[str, nn.Module], inputs: Callable[[], Iterable[Any]]
) -> dict[str, UnitStatistics]:
    """Mean and deviation of each unit of layers' outputs.

    Args:
        network: the network that holds the layers.
        layers: by any name.
        inputs: gives the inputs, in batches.

    Returns:
        the statistics by that name, of the layers that were run.
    """
    moments = {name: _Moments() for name in layers}

    def add_to(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda layer, _, y: moments[name].add(unit_rows(layer, y))

    with hooked({layer: add_to(name) for name, layer in layers.items()}), mode_of(network, training=False):
        for batch in inputs():
            call(network, batch)
    return {name: moment.statistics() for name, moment in moments.items() if moment.count}


def correct_layers(
    network: nn.Module, wanted: Mapping[nn.Module, UnitStatistics], inputs: Callable[[], Iterable[Any]]
) -> None:
    """Scale and shift every layer's units to the wanted statistics.

    Args:
        network: the network that holds the layers, called with each batch.
        wanted: by layer.
        inputs: gives the inputs, in batches.
    """
    moments = {layer: _Moments() for layer in wanted}

    def corrected(layer: nn.Module, _: Any, y: Tensor) -> Tensor:
        """Note the layer's statistics, and return its output corrected batch by batch: what later layers will see."""
        rows = unit_rows(layer, y)
        moments[layer].add(rows)
        mean, deviation = wanted[layer].mean.to(y), wanted[layer].deviation.to(y)
        scale = deviation / rows.std(0, correction=0).clamp_min(SMALLEST_DEVIATION)
        axis = 1 if isinstance(layer, ConvBase) else -1
        moved = y.movedim(axis, -1)
        return ((moved - rows.mean(0)) * scale + mean).movedim(-1, axis)

    with hooked(dict.fromkeys(wanted, corrected)), mode_of(network, training=False):
        for batch in inputs():
            network(batch)
    with torch.no_grad():
        for layer, statistics in wanted.items():
            if moments[layer].count:
                _rescale(layer, moments[layer].statistics(), statistics)


def _rescale(layer: nn.Module, found: UnitStatistics, wanted: UnitStatistics) -> None:
    """Fold `(y - found mean) * wanted deviation / found deviation + wanted mean` into weight and bias."""
    scale = wanted.deviation / found.deviation.clamp_min(SMALLEST_DEVIATION)
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    axis = 1 if getattr(layer, "transposed", False) else 0  # transposed convolutions hold (in, out, ...)
    weight.copy_((weight.movedim(axis, -1) * scale.to(weight)).movedim(-1, axis))
    bias.copy_((bias - found.mean.to(bias)) * scale.to(bias) + wanted.mean.to(bias))


@contextmanager
def hooked(hooks: Mapping[nn.Module, Callable[[nn.Module, Any, Tensor], Tensor | None]]) -> Iterator[None]:
    """Without gradients, call each hook after its layer has run; the layers have no hook more afterwards."""
    handles = [layer.register_forward_hook(hook) for layer, hook in hooks.items()]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def rescalable(layer: nn.Module) -> bool:
    """Whether one axis of the weight holds the units; a grouped transposed convolution spreads them over two."""
    if isinstance(layer, ConvBase):
        return not layer.transposed or layer.groups == 1
    return isinstance(layer, nn.Linear)


def unit_rows(layer: nn.Module, y: Tensor) -> Tensor:
    """A layer's output as (rows, units)."""
    moved = y.movedim(1, -1) if isinstance(layer, ConvBase) else y
    return moved.reshape(-1, moved.shape[-1])
