"""Lower bounds for many tasks: no tree that fits the budget costs less.

First each stage is bounded on its own, as a function of its width, and the widths are chosen at best within the budget:

- Values by the largest loss (`max`): from cliques in the graphs of pairs below a threshold (`clique_bounds`).
- Values that are sums over tasks (`mean`, `sum`): a task in a cluster of s tasks loses at least what its s - 1 nearest
  tasks cost it, and sum over tasks of 1 / s is the number of clusters; the multiplier of that equation gives a line for
  every value of it, and their upper envelope bounds every width.
- `medoid`: all tasks but the k representatives lose at least their nearest loss.

Given the cost of a known tree, what ties the stages together is added where the number of tasks allows it: for `max`
by branching on chains of nested clusters (`chain_branch_and_bound`) and by Lagrangian relaxation over lenses
(`radius_bounds`), by Lagrangian relaxation for `mean` and `sum` (`lagrangian_bounds`) and for `medoid`
(`medoid_bounds`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from branchnet.clustering.additive_losses import StageLosses
from branchnet.clustering.bounds.chain_branch_and_bound import chain_bounds
from branchnet.clustering.bounds.clique_bounds import StageRadii, stage_radii
from branchnet.clustering.bounds.lagrangian_bounds import pair_bounds
from branchnet.clustering.bounds.medoid_bounds import medoid_bounds
from branchnet.clustering.bounds.radius_bounds import radius_bounds
from branchnet.clustering.bounds.width_knapsack import WidthBounds
from branchnet.clustering.constraints import Rules

Floats = npt.NDArray[np.float64]
EFFORT = 400  # steps for 40 tasks
# Branching on chains ends where so many steps leave more than this share of the gap, unless it is already near, as a
# share of the cost; and the share of the steps that goes over lenses.
_IDLE, _PROGRESS, _NEAR, _LENSES = 30, 0.97, 0.1, 0.4


def lower_bound(
    losses: StageLosses,
    rules: Rules,
    sizes: Floats,
    limit: float,
    *,
    target: float | None = None,
    effort: int = EFFORT,
) -> float:
    """A lower bound on the cost of every tree that fits.

    Args:
        losses: the objective.
        rules: the constraints.
        sizes: (D, N + 1) size of every stage at every width.
        limit: largest size, heads not included.
        target: cost of a known tree, if a tighter bound is worth seconds.
        effort: how many steps the tighter bound may take.

    Returns:
        A number that no tree within the limit is below; inf where no tree fits.
    """
    return max(rising_bounds(losses, rules, sizes, limit, target=target, effort=effort))


def rising_bounds(
    losses: StageLosses,
    rules: Rules,
    sizes: Floats,
    limit: float,
    *,
    target: float | None = None,
    effort: int = EFFORT,
) -> Iterator[float]:
    """Lower bounds, each valid by itself, so that one can stop at any of them; arguments as `lower_bound`."""
    losses, radii, below, table = _stages_alone(losses)
    bound, widths = WidthBounds(rules, sizes, limit).least(table)
    yield bound + losses.offset
    if target is None or not widths or bound >= target - losses.offset:
        return
    known, gained = target - losses.offset, 0.0
    if radii is not None:
        gained = float(below.sum()) / losses.divisor * (1 if losses.averaged else len(losses.tasks) // 2)
        tighter = _largest_loss_bounds(losses, radii, rules, sizes, limit, known - gained, effort)
    elif losses.kind in ("mean", "sum") and not losses.averaged:
        pairs = losses.pairs / losses.divisor
        worth = np.array([_best_slope(stage, losses.kind, k) for stage, k in zip(pairs, widths, strict=True)])
        tighter = pair_bounds(losses, rules, sizes, limit, known, worth, effort)
    elif losses.kind == "medoid" and not losses.averaged:
        tighter = medoid_bounds(losses, rules, sizes, limit, known, effort)
    else:
        return
    yield from (value + gained + losses.offset for value in tighter)


def _largest_loss_bounds(
    losses: StageLosses,
    radii: Sequence[StageRadii],
    rules: Rules,
    sizes: Floats,
    limit: float,
    target: float,
    effort: int,
) -> Iterator[float]:
    """Chains first, which are best where one cluster is much larger than the others; then lenses."""
    best, left = 0.0, []
    for value in chain_bounds(losses, radii, rules, sizes, limit, target, effort):
        best = max(best, value)
        yield best
        if value > 0.0:
            left.append(target - best)
        if len(left) > _IDLE and left[-1] > max(_PROGRESS * left[-1 - _IDLE], _NEAR * target):
            break
    if best < target:
        for value in radius_bounds(losses, radii, rules, sizes, limit, target, round(_LENSES * effort)):
            yield max(best, value)


def stage_tables(losses: StageLosses) -> Floats:
    """(D, N + 1) lower bounds on the cost of every stage at every width, each stage on its own; width 0 is inf."""
    return _stages_alone(losses)[-1]


def _stages_alone(losses: StageLosses) -> tuple[StageLosses, list[StageRadii] | None, Floats, Floats]:
    """The losses without gains where they need it, radii, by how much that lowers a cluster's value, and the tables."""
    radii, below = None, np.minimum(losses.pairs.min(axis=(1, 2)), 0.0)
    if losses.kind == "max":
        # Cliques need losses that are not negative. Every cluster of several tasks loses at least what it does without
        # gains, plus `below`.
        losses = replace(losses, pairs=np.maximum(losses.pairs, 0.0))
        radii = [stage_radii(pairs) for pairs in losses.pairs]
    table = [_stage_bounds(losses, stage, radii, float(below[stage])) for stage in range(losses.depth)]
    return losses, radii, below, np.array(table)


def _stage_bounds(losses: StageLosses, stage: int, radii: Sequence[StageRadii] | None, below: float) -> Floats:
    """For every width 0..N a lower bound on the cost of a partition of that width; width 0 is inf.

    With radii, a cluster of several tasks may cost up to -`below` less than its radius.
    """
    pairs = losses.pairs[stage]
    n = len(pairs)
    sums: Floats
    if radii is not None:
        sums = radii[stage].of_widths(n)[1:] + below * np.minimum(np.arange(1, n + 1), n // 2)
    elif losses.kind == "medoid":
        sums = _medoid_sums(pairs)
    else:
        sums = _task_lines(pairs, losses.kind)[1].max(axis=0)
    scale = np.array([losses.scale(k) for k in range(1, n + 1)])
    return np.concatenate([[np.inf], sums * scale])


def _task_lines(pairs: Floats, kind: str) -> tuple[Floats, Floats]:
    """Slopes, and for each of them a lower bound at every width k = 1..N; (S,) and (S, N).

    The least sum over tasks of (what a cluster of s tasks loses it) + slope * (1 / s - k / N); in this form steep
    slopes lose no digits.
    """
    n = len(pairs)
    nearest = np.sort(pairs + np.where(np.eye(n, dtype=np.bool_), np.inf, 0.0), axis=1)[:, : n - 1]
    sums = np.concatenate([np.zeros((n, 1)), np.cumsum(nearest, axis=1)], axis=1)
    sizes = np.arange(1, n + 1)
    shares = sums / np.maximum(sizes - 1, 1) if kind == "mean" else sums / 2
    spread = max(float(np.abs(shares).max()), 1e-300)
    slopes = np.concatenate([[0.0], spread * np.geomspace(1e-4, 1e3 * n, 400)])
    chosen = np.array([(shares + slope / sizes).argmin(axis=1) for slope in slopes])
    lost = shares[np.arange(n), chosen].sum(axis=1)
    counts = np.array([np.bincount(row, minlength=n) for row in chosen])
    return slopes, lost[:, None] + slopes[:, None] * (counts @ (1.0 / sizes[:, None] - sizes / n))


def _best_slope(pairs: Floats, kind: str, width: int) -> float:
    slopes, lines = _task_lines(pairs, kind)
    return float(slopes[lines[:, width - 1].argmax()])


def _medoid_sums(pairs: Floats) -> Floats:
    """Rows of `pairs` are the representatives', columns the tasks' that they serve."""
    nearest = np.sort((pairs + np.where(np.eye(len(pairs), dtype=np.bool_), np.inf, 0.0)).min(axis=0))
    return np.concatenate([[0.0], np.cumsum(nearest)])[: len(pairs)][::-1].copy()
