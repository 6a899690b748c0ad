"""Branched networks on several processes of torch.distributed: replicated, or sharded node by node.

Which tasks run is part of the program here: with `shard` every process must ask for the same tasks in the same step,
because a node that only some of them run would leave the others waiting. With `replicate(..., some_tasks=True)` a step
may train some of the tasks.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from branchnet.builder.network.branched_network import BranchedNetwork
from branchnet.builder.network.surgery import check_branched
from branchnet.errors import BuildError


def shard(branched: BranchedNetwork, **options: Any) -> BranchedNetwork:
    """Shard the parameters of every node and head by FSDP2 (`torch.distributed.fsdp.fully_shard`), in place.

    Each node's parameters are gathered when it runs and freed behind it, so a process never holds more than one node
    whole. A step may train some of the tasks, the same ones on every process.

    Args:
        branched: the network, on the device of the mesh; make the optimizer afterwards.
        options: passed to `fully_shard`: `mesh`, `mp_policy`, `reshard_after_forward`, `offload_policy`, ...

    Returns:
        the network itself, sharded.

    Raises:
        BuildError: not a branched network, or parameters that several nodes share: FSDP2 gathers a parameter with the
            one module that holds it.
    """
    check_branched(branched)
    holders = Counter(
        id(p) for node in branched.members() for p in {id(p): p for p in node.module.parameters()}.values()
    )
    shared = [name for name, parameter in branched.named_parameters() if holders[id(parameter)] > 1]
    if shared:
        raise BuildError(
            f"{shared[:5]} are shared by several nodes; expected each parameter in one node; use "
            "branchnet.builder.replicate(branched)"
        )
    # Inner modules first: the last call groups what no node holds, and makes the whole network the root.
    for node in branched.members():
        if any(True for _ in node.module.parameters()):
            fully_shard(node.module, **options)
    fully_shard(branched, **options)
    assert isinstance(branched, FSDPModule)
    return branched


def replicate(branched: BranchedNetwork, *, some_tasks: bool = False, **options: Any) -> DistributedDataParallel:
    """Wrap the network in DistributedDataParallel; gradients are averaged over the processes.

    Args:
        branched: the network, on this process's device.
        some_tasks: whether a step may leave tasks out (`tasks=`). Nodes that did not run then take part with zero
            gradients where another process ran them; without it, DDP refuses the step after such a one.
        options: passed to DistributedDataParallel.

    Returns:
        the wrapped network.

    Raises:
        BuildError: not a branched network.
    """
    check_branched(branched)
    return DistributedDataParallel(branched, find_unused_parameters=some_tasks, **options)
