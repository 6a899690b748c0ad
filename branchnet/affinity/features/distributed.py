"""Reading features in the processes of `torch.distributed`.

Networks are scattered over the processes; those that are left over are read by all of them together, each running its
share of the probe. Such shares are then exchanged so that every process holds some features of all inputs, whose inner
products add up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from branchnet.affinity.features.feature_buffer import Kept
from branchnet.affinity.features.memory_plan import Chunk
from branchnet.affinity.probes import Probe
from branchnet.errors import AffinityError

Result = TypeVar("Result")


def world() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) outside `torch.distributed`."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def reading_rank(number: int, count: int) -> int | None:
    """The rank that reads the network of this number, of `count`; None where all read it together."""
    size = world()[1]
    return number % size if number < count - count % size else None


def share_of(probe: Probe, rank: int, size: int) -> range:
    """The batches that a rank runs; shares differ by at most one batch."""
    batches = len(probe.sizes)
    return range(rank * batches // size, (rank + 1) * batches // size)


def check_same_probe(probe: Probe) -> None:
    """Raise AffinityError where processes were given different inputs, if there are several."""
    for rank, content in enumerate(_gathered(probe.content)):
        if content != probe.content:
            raise AffinityError(f"process {rank} was given other probe inputs than this one; expected the same in all")


def smallest(value: int) -> int:
    """The least of what the processes hold."""
    return min(_gathered(value))


def columns_of_all(local: Kept, shares: Sequence[int], chunk: Chunk, device: torch.device) -> Kept:
    """From this process's inputs with all features of a chunk, all inputs with this process's share of the features.

    An all-to-all exchange, as one scatter from each rank.

    Args:
        local: what this process read, (B, F).
        shares: inputs that every rank ran.
        chunk: which features these are.
        device: where they are received.

    Returns:
        (K, F / size) features; the last rank may have fewer.
    """
    rank, size = world()
    width = -(-chunk.width // size)
    own = slice(rank * width, max(rank * width, min((rank + 1) * width, chunk.width)))
    received = []
    for source, inputs in enumerate(shares):
        if inputs:
            target = torch.empty(inputs, width, dtype=chunk.kept_as, device=device)
            dist.scatter(target, _slices(local.batches, width, size) if rank == source else None, src=source)
            received.append(target[:, : own.stop - own.start])
    return Kept(received, None if local.reference is None else local.reference[own])


def barrier(compute: Callable[[], Result]) -> Result:
    """What `compute` returns, once it has ended in all processes.

    An error of one process is raised in all: the others would wait for it in the next collective call until it times
    out.
    """
    result: list[Result] = []
    problem: Exception | None = None
    try:
        result.append(compute())
    except Exception as error:
        problem = error
    for other in _gathered(problem):
        if other is not None:
            raise other
    return result[0]


def scattered(count: int, work: Callable[[int], Result]) -> list[Result]:
    """`work(number)` for every number, each done by one process; all processes return all results."""
    rank, size = world()
    own = barrier(lambda: {number: work(number) for number in range(rank, count, size)})
    results = {number: result for held in _gathered(own) for number, result in held.items()}
    return [results[number] for number in range(count)]


def gathered(compute: Callable[[], Result]) -> list[Result]:
    """What `compute` returns in every process, by rank; an error of one process is raised in all."""
    return _gathered(barrier(compute))


def broadcast(value: Any, source: int) -> Any:
    """`value` as the process of rank `source` has it."""
    held = [value]
    dist.broadcast_object_list(held, src=source)
    return held[0]


def _slices(local: Sequence[Tensor], width: int, size: int) -> list[Tensor]:
    """What every rank gets of these inputs, (B, width); the last ones are filled up with zeros."""
    slices = [torch.cat([batch[:, rank * width : (rank + 1) * width] for batch in local]) for rank in range(size)]
    return [torch.nn.functional.pad(one, (0, width - one.shape[1])).contiguous() for one in slices]


def _gathered(value: Result) -> list[Result]:
    size = world()[1]
    if size == 1:
        return [value]
    held: list[Any] = [None] * size
    dist.all_gather_object(held, value)
    return held
