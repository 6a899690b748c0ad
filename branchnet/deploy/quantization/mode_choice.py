"""The modes of all nodes together: chosen as if losses added up, then measured, and taken back where they do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np

from branchnet.deploy.quantization.model_bench import ModelBench
from branchnet.deploy.quantization.node_choice import Floats, choose_options
from branchnet.deploy.quantization.node_quantizer import MODES, Mode
from branchnet.deploy.quantization.quantized import NodeCost
from branchnet.errors import BudgetError

Goal: TypeAlias = Literal["latency", "bytes"]
_TIE = 1e-3
"""What the whole file's bytes count next to the whole call's time: they decide where times are equal."""


def _table(costs: Sequence[NodeCost], number: Callable[[NodeCost], Sequence[float]]) -> Floats:
    """(N, M, R): R numbers of every node in every mode, zeros in float."""
    nodes = list(dict.fromkeys(cost.node for cost in costs))
    width = len(number(costs[0]))
    table = np.zeros((len(nodes), len(MODES), width))
    for cost in costs:
        table[nodes.index(cost.node), MODES.index(cost.mode)] = number(cost)
    return table


def _lost(costs: Sequence[NodeCost], tasks: Sequence[str]) -> Floats:
    return _table(costs, lambda cost: [max(0.0, cost.losses.get(task, 0.0)) for task in tasks])


def _worth(costs: Sequence[NodeCost], goal: Goal, bench: ModelBench) -> Floats:
    """What each option costs of the goal, less what it costs in float: (N, M)."""
    bytes_share = _table(costs, lambda cost: [-cost.saved_bytes / len(bench.float_content)])[..., 0]
    if goal == "bytes":
        return bytes_share
    return _table(costs, lambda cost: [-cost.saved_seconds])[..., 0] + bytes_share * _TIE * bench.seconds


def best_modes(
    costs: Sequence[NodeCost], bench: ModelBench, limits: Mapping[str, float], goal: Goal
) -> dict[str, Mode]:
    """The modes that make the network as fast, or as small, as the limits of losses allow, if losses add up.

    Args:
        costs: of every node in every mode.
        bench: the float model.
        limits: by task what it may lose.
        goal: what is minimised.
    """
    modes = _modes(costs, _worth(costs, goal, bench), _lost(costs, bench.branched.tasks), np.array([*limits.values()]))
    assert modes is not None  # all float loses nothing
    return modes


def _modes(costs: Sequence[NodeCost], worth: Floats, uses: Floats, limits: Floats) -> dict[str, Mode] | None:
    chosen = choose_options(worth, uses, limits)
    nodes = dict.fromkeys(cost.node for cost in costs)
    return None if chosen is None else {node: MODES[k] for node, k in zip(nodes, chosen.tolist(), strict=True)}


def modes_within(
    max_bytes: int, costs: Sequence[NodeCost], bench: ModelBench, limits: Mapping[str, float]
) -> dict[str, Mode]:
    """The modes that lose least in a file of so many bytes.

    Args:
        max_bytes: of the file.
        costs: of every node in every mode.
        bench: the float model.
        limits: by task what it may lose.

    Raises:
        BudgetError: nothing fits.
    """
    lost = _lost(costs, bench.branched.tasks)
    saved = _table(costs, lambda cost: [-float(cost.saved_bytes)])
    saved -= (lowest := saved.min(1, keepdims=True))  # a knapsack's limits are 0 or more
    room = max_bytes - len(bench.float_content) - float(lowest.sum())
    while room >= 0:
        worth = np.where(np.isfinite(lost).all(2), lost.sum(2), np.inf)
        modes = _modes(costs, worth, np.concatenate([lost, saved], 2), np.array([*limits.values(), room]))
        if modes is None:
            break
        # Bytes add up but for what neighbours share.
        if (over := len(bench.quantizer.write(modes)) - max_bytes) <= 0:
            return modes
        room -= over
    smallest = len(bench.float_content) + float(lowest.sum())
    raise too_large(max_bytes, int(smallest))


def too_large(max_bytes: int, smallest: int) -> BudgetError:
    """The error for a file that no choice is small enough for.

    Args:
        max_bytes: what was asked for.
        smallest: what is there.
    """
    return BudgetError(
        f"no choice of nodes fits into max_bytes={max_bytes:,} under the limits of losses; the smallest file is about "
        f"{smallest:,}; expected a larger max_bytes or max_loss",
        smallest=smallest,
    )


def verified_modes(
    modes: dict[str, Mode], costs: Sequence[NodeCost], bench: ModelBench, limits: Mapping[str, float]
) -> tuple[dict[str, Mode], dict[str, float], tuple[str, ...]]:
    """Measure the whole network, and take nodes back until no task loses more than it may.

    The node goes first that costs the tasks over their limits most; from int8 to int8 weights where that costs them
    less, else to float.

    Args:
        modes: those that were chosen.
        costs: of every node in every mode.
        bench: what measures.
        limits: by task what it may lose.

    Returns:
        the modes, what every task loses with them, and the nodes that were taken back.
    """
    by_option = {(cost.node, cost.mode): cost for cost in costs}
    modes, taken_back = dict(modes), list[str]()

    def lost(node: str, mode: Mode, tasks: Sequence[str]) -> float:
        return 0.0 if mode == "float" else sum(by_option[node, mode].losses.get(task, 0.0) for task in tasks)

    while True:
        losses = bench.measured(modes)
        over = [task for task, loss in losses.items() if not loss <= limits[task]]
        changed = [node for node, mode in modes.items() if mode != "float"]
        if not over or not changed:
            return modes, losses, tuple(dict.fromkeys(taken_back))
        worst = max(changed, key=lambda node: lost(node, modes[node], over))
        milder = modes[worst] == "int8" and lost(worst, "weights", over) < lost(worst, "int8", over)
        modes[worst] = "weights" if milder else "float"
        taken_back.append(worst)
