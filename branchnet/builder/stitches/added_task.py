"""Adding a task to a branched network that is in use: its rest is attached to nodes that stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from branchnet.affinity.features.memory_order import in_fast_order
from branchnet.affinity.probes import read_probe
from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.surgery import add_branch
from branchnet.builder.stitches.top_down_fit import stitch_donors
from branchnet.errors import BuildError
from branchnet.stages.interface import call_form
from branchnet.stitching.output_distances import OutputKind

PROBE_BATCH = 64


def add_task(
    branched: BranchedNetwork,
    name: str,
    network: nn.Module,
    *,
    beside: str,
    until: str | None,
    stitch: bool = False,
    probe: Any = None,
    kinds: Mapping[str, OutputKind] | None = None,
) -> BranchedNetwork:
    """Grow a branch for a new task that shares the nodes of the task `beside` until the end of a location.

    From there on the branch is a copy of `network`'s own stages and head. The outputs of all other tasks stay bitwise
    identical. In the shared stages the new task gets the features of its sibling's nodes: fit a stitching layer to
    them, which takes seconds and no training, or train the branch, e.g. with everything else frozen (`freeze`).

    Args:
        branched: the network.
        name: the new task, which becomes the last one.
        network: its single-task network of the same backbone: plain (it is split at the same locations, together with
            the branched network's paths where their heads need more than its own) or staged.
        beside: the task whose path is shared.
        until: the last location that is shared; None to share nothing.
        stitch: put a stitching layer, fitted on the probe, where the branch begins.
        probe: for that, K inputs as `branchnet.rsa` takes them.
        kinds: for that, how the outputs of the new task are compared, as `build` takes it.

    Returns:
        a new network with the task.

    Raises:
        BuildError: a task that exists, an unknown sibling or location, a network whose stages or cuts are not those of
            the branched network, or a stitch without a probe.
        SplitError: a plain network that cannot be cut at the locations.
    """
    if stitch and probe is None:
        raise BuildError("stitch=True fits a map to the sibling's features; expected probe=, inputs of all tasks")
    grown, staged = add_branch(branched, name, network, beside=beside, until=until)
    if stitch:
        read = in_fast_order(read_probe(probe, PROBE_BATCH, call_form(staged)), [staged, grown])
        stitch_donors(grown, {name: staged}, read, kinds, corrected=False)
    return grown
