"""Where the weights of every node came from, and how well its features still match those of its tasks' donors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from branchnet.affinity import cka, rsa
from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.task_path import TaskPath
from branchnet.errors import AffinityError
from branchnet.stages import StagedNetwork

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeStart:
    """Where the weights of one node or head came from.

    Attributes:
        id: `nodes.<stage>.<k>` or `heads.<i>`.
        location: the end of the node's stage; `head` for a head.
        tasks: the tasks that it serves.
        source: where the weights came from, in words.
        rsa: for each task how similar the node's features and those of the task's own network are on the probe (see
            `branchnet.rsa`; 1 is best); empty without a probe, for heads, and where the features are constant.
        cka: the same by `branchnet.cka`.
    """

    id: str
    location: str
    tasks: tuple[str, ...]
    source: str
    rsa: Mapping[str, float] = field(default_factory=dict)
    cka: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Initialisation:
    """How `build` made the initial weights of a branched network.

    Attributes:
        init: the rule: `donor`, `mean`, `merge`, `pretrained` or `random`.
        nodes: every node from input to output, then every head.
    """

    init: str
    nodes: tuple[NodeStart, ...]

    def table(self) -> str:
        """Describe every node: its tasks, its source, and the match with each donor.

        Returns:
            text with one line for each node.
        """
        rows = [("node", "location", "tasks", "source", "RSA with donors", "CKA with donors")]
        rows += [
            (node.id, node.location, ", ".join(node.tasks), node.source, _text(node.rsa), _text(node.cka))
            for node in self.nodes
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def describe_start(
    branched: BranchedNetwork,
    init: str,
    sources: Mapping[str, str],
    networks: Mapping[str, StagedNetwork],
    probe: Any = None,
) -> Initialisation:
    """Describe the weights just made; with a probe of K inputs also compare features, four forwards for each task.

    Args:
        branched: the network.
        init: the rule that made the weights.
        sources: per node id where its weights came from, where it is not its donor alone.
        networks: the donors by task.
        probe: K inputs as `branchnet.rsa` takes them, or None.

    Returns:
        one entry for each node and head.
    """
    matches = (
        {task: _match(branched, task, networks[task], probe) for task in branched.tasks} if probe is not None else {}
    )
    starts = []
    for node in branched.members():
        source = sources.get(node.id, f"{node.donor}'s network")
        if node.is_head:
            starts.append(NodeStart(node.id, "head", node.tasks, source))
            continue
        values = {task: matches[task][node.stage] for task in node.tasks if matches.get(task)}
        by_rsa = {task: value[0] for task, value in values.items()}
        by_cka = {task: value[1] for task, value in values.items()}
        starts.append(NodeStart(node.id, branched.locations[node.stage], node.tasks, source, by_rsa, by_cka))
    return Initialisation(init, tuple(starts))


def _match(branched: BranchedNetwork, task: str, network: StagedNetwork, probe: Any) -> list[tuple[float, float]]:
    """RSA and CKA of the task's own network with its path through the branched network, stage by stage."""
    path = branched.path(task)
    passed = TaskPath(list(network.stages)[: len(path.stages)], network.head, path.locations)
    pair = {"donor": passed, "branched": path}
    try:
        by_rsa, by_cka = rsa(pair, probe, bootstrap=0).values, cka(pair, probe, bootstrap=0).values
    except AffinityError as error:
        logger.warning("the features of %r cannot be compared with its donor's: %s", task, error)
        return []
    return [(float(one[0, 1]), float(other[0, 1])) for one, other in zip(by_rsa, by_cka, strict=True)]


def _text(values: Mapping[str, float]) -> str:
    return ", ".join(f"{task} {value:.3f}" for task, value in values.items())
