"""The order in memory in which a probe's images are given to networks: on CPUs channels last, where possible."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from branchnet.affinity.features.isolation import device_of
from branchnet.affinity.probes import Probe
from branchnet.data.collation import leaves
from branchnet.stages import call
from branchnet.stages.tracing.input_order import takes_channels_last


def in_fast_order(probe: Probe, networks: Iterable[nn.Module], place: torch.device | None = None) -> Probe:
    """Give images channels last, if they are there and all networks can be run on the example so.

    Args:
        probe: the inputs.
        networks: that will be run on them; they are left as they were.
        place: where they will be run; by default where they are.

    Returns:
        the same inputs, which differ in their order in memory alone.
    """
    images = any(leaf.dim() == 4 for leaf in leaves(probe.example))
    different = list({id(network): network for network in networks}.values())
    if not images or any((place or device_of(network)).type != "cpu" for network in different):
        return probe
    with torch.no_grad():
        taken = all(takes_channels_last(network, probe.example, _evaluated, place) for network in different)
    return replace(probe, channels_last=True) if taken else probe


def _evaluated(network: nn.Module, example: Any) -> Any:
    return call(network.eval(), example)
