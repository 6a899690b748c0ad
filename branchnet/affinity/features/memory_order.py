"""The order in memory in which images of a probe are given to networks: on CPUs channels last, where they can take it.

Convolutions take a half to nine tenths of the time so. Networks that call `view` on what one returns cannot be run so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn

from branchnet.affinity.features.isolation import device_of, untouched
from branchnet.affinity.probes import Probe, channels_last, on_device
from branchnet.data.collation import leaves
from branchnet.stages import call


def in_fast_order(probe: Probe, networks: Iterable[nn.Module], place: torch.device | None = None) -> Probe:
    """Give images channels last, if they are there and all networks can be run on the example so.

    Args:
        probe: the inputs.
        networks: that will be run on them; they are left as they were.
        place: where they will be run; by default where they are.

    Returns:
        the same inputs, which differ in their order in memory alone.
    """
    images = any(leaf.dim() == 4 and leaf.is_floating_point() for leaf in leaves(probe.example))
    different = list({id(network): network for network in networks}.values())
    if not images or any((place or device_of(network)).type != "cpu" for network in different):
        return probe
    try:
        for network in different:
            with untouched(network, place) as device:
                call(network, on_device(channels_last(probe.example), device))
    except Exception:  # whatever it is: it comes again, and is explained, where the networks are run in the usual order
        return probe
    return replace(probe, channels_last=True)
