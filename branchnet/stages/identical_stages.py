"""Stages with identical weights: frozen backbones, and adapters before the first of which nothing differs.

Networks whose first stages are bitwise equal compute the same there, so one copy serves all of them without loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import torch
from torch import Tensor, fx, nn

from branchnet.stages.graph.dataflow import attribute
from branchnet.stages.graph.settings import module_signature
from branchnet.stages.staged import Stage, StagedNetwork

_COUNTERS = "num_batches_tracked"
"""Buffers that nothing reads in evaluation mode."""


def identical_prefixes(networks: Mapping[str, StagedNetwork]) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Group tasks whose networks have identical weights from the input on.

    Parameters, buffers and constants such as the `eps` of norms must be bitwise equal; counters of batches need not.

    Args:
        networks: the result of `split_all`.

    Returns:
        For each stage d the groups of tasks whose stages 0 to d are identical, in the order of the tasks; a task that
        is like no other, or has left the trunk, is alone.

    >>> backbone = nn.Linear(4, 8)
    >>> networks = {task: nn.Sequential(backbone, nn.Linear(8, 8), nn.Linear(8, 2)).eval() for task in ("a", "b")}
    >>> staged = branchnet.split_all(networks, torch.zeros(1, 4), locations=["0", "1"])
    >>> branchnet.stages.identical_prefixes(staged)
    ((('a', 'b'),), (('a',), ('b',)))
    """
    groups: list[list[str]] = [list(networks)]
    found = []
    for stage in range(max(len(network.stages) for network in networks.values())):
        groups = [part for group in groups for part in _identical(group, networks, stage)]
        found.append(tuple(sorted(map(tuple, groups), key=lambda group: list(networks).index(group[0]))))
    return tuple(found)


def _identical(tasks: Sequence[str], networks: Mapping[str, StagedNetwork], stage: int) -> list[list[str]]:
    """The tasks in groups whose stages are identical."""
    groups: list[list[str]] = []
    for task in tasks:
        network = networks[task]
        home = next((group for group in groups if _equal(networks[group[0]], network, stage)), None)
        if home is None:
            groups.append([task])
        else:
            home.append(task)
    return groups


def _equal(one: StagedNetwork, other: StagedNetwork, stage: int) -> bool:
    first, second = one.stages[stage], other.stages[stage]
    if stage >= min(one.depth, other.depth) or not (isinstance(first, Stage) and isinstance(second, Stage)):
        return False  # one has left the trunk, or others have taken the stages' places
    # Stages of one structure have their graphs' nodes in one order.
    return all(
        a is not None and b is not None and _equal_nodes((first, a), (second, b))
        for a, b in zip_longest(first.graph.nodes, second.graph.nodes)
    )


def _equal_nodes(one: tuple[nn.Module, fx.Node], other: tuple[nn.Module, fx.Node]) -> bool:
    if one[1].op != other[1].op:
        return False
    if one[1].op not in ("call_module", "get_attr"):
        return True  # what is common to networks is the same function of the same values
    values = [attribute(stage, str(node.target)) for stage, node in (one, other)]
    if all(isinstance(value, Tensor) for value in values):
        return _equal_tensors(*values)
    if not all(isinstance(value, nn.Module) for value in values):
        return bool(values[0] == values[1])
    return _equal_modules(*values)


def _equal_modules(one: nn.Module, other: nn.Module) -> bool:
    if one is other:
        return True
    constants = [[getattr(layer, "eps", None) for layer in module.modules()] for module in (one, other)]
    if constants[0] != constants[1] or module_signature(one) != module_signature(other):
        return False
    states = [
        {
            name: tensor
            for name, tensor in (
                *module.named_parameters(remove_duplicate=False),
                *module.named_buffers(remove_duplicate=False),
            )
            if name.rpartition(".")[2] != _COUNTERS
        }
        for module in (one, other)
    ]
    return all(_equal_tensors(tensor, states[1][name]) for name, tensor in states[0].items())


def _equal_tensors(one: Tensor, other: Tensor) -> bool:
    if one is other:
        return True
    if one.is_meta or other.is_meta or one.dtype != other.dtype:
        return False
    return torch.equal(one.detach(), other.detach().to(one.device))
