"""Which unit of one network does what a unit of another does: matched by how their activations on a probe correlate.

The matching of "Git Re-Basin" (Ainsworth et al. 2023, section 3.1) with correlations instead of inner products, as in
"ZipIt!" (Stoica et al. 2024, section 4): for each space the one-to-one assignment that maximises the sum of the
correlations, averaged over all places of the network that carry the space and over the batches of the probe.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, fx, nn

from branchnet.affinity.probes import Probe, on_device
from branchnet.builder.weights.symmetries import Symmetries
from branchnet.builder.weights.unit_spaces import Axes
from branchnet.stages import StagedNetwork
from branchnet.stages.interface import Example, flat_example
from branchnet.stages.staged import Stage
from branchnet.stages.tracing.trial import saved
from branchnet.utils.installed_torch.torch_internals import tree_leaves
from branchnet.utils.modes import mode_of

MOST_ROWS = 4096
"""Positions (samples x pixels) that a correlation is taken over, at most, for one place and batch.

Its standard error is then about 1 / sqrt(4096) = 0.016, and early layers with many pixels cost no more than late ones.
"""


def match_units(
    symmetries: Symmetries, reference: StagedNetwork, other: StagedNetwork, probe: Probe, spaces: Collection[int]
) -> dict[int, Tensor]:
    """Find for each space the order that makes the other network's units correspond to those of the reference.

    Unit `order[u]` of the other network does what unit u of the reference does.

    Args:
        symmetries: the spaces of both networks.
        reference: a staged network.
        other: another one with equal stages.
        probe: inputs that both are run on.
        spaces: which spaces to match.

    Returns:
        per space an order (n,).
    """
    sums = {space: torch.zeros(symmetries.sizes[space], symmetries.sizes[space]) for space in spaces}
    both = (reference, other)
    with (
        saved(reference),
        saved(other),
        torch.no_grad(),
        mode_of(reference, training=False),
        mode_of(other, training=False),
    ):
        for batch in probe.batches("matching units"):
            cuts = [flat_example(cast(Example, on_device(batch, _device(network)))) for network in both]
            for number in range(len(reference.stages)):
                wanted = {place: axes for (d, place), axes in symmetries.values.items() if d == number}
                runs = [_Recorder(network.stages[number], wanted) for network in both]
                cuts = [tuple(tree_leaves(run.run(*cut))) for run, cut in zip(runs, cuts, strict=True)]
                for (space, first), (_, second) in zip(runs[0].found, runs[1].found, strict=True):
                    if space in sums:
                        sums[space] += (_standardised(first).T @ _standardised(second).to(first.device)).cpu()
    return {
        space: torch.from_numpy(linear_sum_assignment(total.numpy(), maximize=True)[1]) for space, total in sums.items()
    }


def _device(network: StagedNetwork) -> torch.device:
    return next((tensor.device for tensor in network.parameters()), torch.device("cpu"))


class _Recorder(fx.Interpreter):
    """Runs a stage and keeps the activations of the units at the places asked for."""

    def __init__(self, stage: nn.Module, wanted: dict[int, Axes]) -> None:
        super().__init__(stage, graph=cast(Stage, stage).graph)
        self.found: list[tuple[int, Tensor]] = []
        self._wanted = {node: wanted[place] for place, node in enumerate(self.graph.nodes) if place in wanted}

    def run_node(self, n: fx.Node) -> Any:
        """Run the node; keep its units' activations at up to 4,096 places."""
        result = super().run_node(n)
        for axis, carriers in self._wanted.get(n, {}).items():
            for carrier in carriers:
                # Positions first: a copy of all of an early layer's activations costs more than the layer.
                units = _some_rows(result.movedim(axis, -1))[:, carrier.index.to(result.device)]
                self.found.append((carrier.space, _some_rows(units).float()))
        return result


def _some_rows(units: Tensor) -> Tensor:
    """Up to 4,096 evenly spaced rows (rows, units) of a tensor (..., units)."""
    positions = units.shape[:-1]
    step = -(-positions.numel() // MOST_ROWS)
    chosen = torch.arange(0, positions.numel(), step, device=units.device)
    return units[torch.unravel_index(chosen, positions)]


def _standardised(rows: Tensor) -> Tensor:
    """Each column with mean 0 and norm 1; a constant column, of which rounding alone would be left, becomes 0."""
    centred = rows - rows.mean(0)
    norms = centred.square().sum(0).sqrt()
    return centred / norms.where(norms > 1e-6 * (1 + rows.abs().amax(0)), torch.inf)
