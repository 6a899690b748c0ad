"""Putting the affinities between networks together as an Affinity of tasks."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .networks import Family
from .options import Options
from .probes import Probe
from .seeds import measure_reliability, task_values
from .tensor import Affinity

logger = logging.getLogger(__name__)

Matrix = npt.NDArray[np.float64]


def assemble(
    measure: str,
    family: Family,
    probe: Probe,
    between: Sequence[Matrix],
    samples: Sequence[Matrix],
    options: Options,
) -> Affinity:
    """Average over the networks of each task, attach what the resampling says, and report unreliable locations.

    between: (M, M) per location; samples: (draws, M, M) per location.
    """
    matrices = np.stack(between)
    reliability = measure_reliability(matrices, family)
    if reliability is not None and (noisy := reliability.noise(family.locations)):
        logger.warning("the order of the pairs is mostly seed noise at: %s", ", ".join(noisy))
    drawn = _task_samples(np.stack(samples, axis=1), family, options) if options.bootstrap else None
    return Affinity(
        family.tasks,
        family.locations,
        task_values(matrices, family),
        measure,
        None if drawn is None else drawn.std(axis=0, ddof=1),
        probe.content,
        drawn,
        reliability,
    )


def _task_samples(samples: Matrix, family: Family, options: Options) -> Matrix:
    """(draws, D, M, M) -> (draws, D, N, N), also resampling the networks of every task."""
    random = np.random.default_rng([options.seed, 1])
    counts = [sum(member.task == task for member in family.members) for task in family.tasks]
    result = []
    for sample in samples:
        weights = [random.multinomial(count, np.full(count, 1 / count)) for count in counts]
        result.append(task_values(sample, family, _by_member(weights, family)))
    return np.stack(result)


def _by_member(weights: Sequence[npt.NDArray[np.int64]], family: Family) -> Matrix:
    places = {task: index for index, task in enumerate(family.tasks)}
    return np.array([float(weights[places[member.task]][member.seed]) for member in family.members])
