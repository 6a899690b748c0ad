"""From networks and a probe to an Affinity of tasks: read, compare at every location, resample, assemble."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from branchnet.affinity.features.memory_order import in_fast_order
from branchnet.affinity.features.signatures import Kind, Signature, read_signatures
from branchnet.affinity.measure_options import Options
from branchnet.affinity.networks import Family, Networks, form_of, gather_networks
from branchnet.affinity.probes import Probe, blaming_inputs, read_probe
from branchnet.affinity.seeds import measure_reliability, task_values
from branchnet.affinity.tensor import Affinity

logger = logging.getLogger(__name__)

Matrix: TypeAlias = npt.NDArray[np.float64]
Compare: TypeAlias = Callable[[Sequence[Signature], Sequence[str]], Matrix]
Resample: TypeAlias = Callable[[Sequence[Signature], Options], Matrix]


def prepare(networks: Networks, probe: Any, options: Options) -> tuple[Family, Probe]:
    """Read the probe once, cut the networks, and lay the inputs out as these run fastest."""
    fixed = read_probe(probe, options.batch_size, form_of(networks))
    family = gather_networks(networks, fixed.example, options.locations)
    return family, in_fast_order(fixed, [member.network for member in family.members], options.place)


def measure_pairs(
    measure: str, networks: Networks, probe: Any, options: Options, kind: Kind, compare: Compare, resample: Resample
) -> Affinity:
    """The whole way, for measures that compare one signature per network and location.

    Args:
        measure: name of the result's measure.
        networks: as `rsa` takes them.
        probe: as `rsa` takes it.
        options: how features are read.
        kind: the signature.
        compare: signatures of M networks, and how errors name them -> (M, M), ones on the diagonal.
        resample: the same on resampled inputs -> (draws, M, M).
    """
    family, fixed = prepare(networks, probe, options)
    with blaming_inputs(fixed, family.members[0].network):
        signatures = read_signatures(family, fixed, kind, options)
    between, samples = [], []
    for location, ones in zip(family.locations, signatures, strict=True):
        between.append(compare(ones, labels(family, location)))
        if options.bootstrap:
            samples.append(resample(ones, options))
    return assemble(measure, family, fixed, between, samples, options)


def labels(family: Family, location: str) -> list[str]:
    """How errors name every network at a location."""
    return [f"{member.label} at {location!r}" for member in family.members]


def assemble(
    measure: str,
    family: Family,
    probe: Probe,
    between: Sequence[Matrix],
    samples: Sequence[Matrix],
    options: Options,
) -> Affinity:
    """Average over the networks of each task, attach what the resampling says, and report unreliable locations.

    Args:
        measure: name of the result's measure.
        family: the M networks.
        probe: the inputs.
        between: (M, M) per location.
        samples: (draws, M, M) per location, or none.
        options: how features were read.
    """
    matrices = np.stack(between)
    reliability = measure_reliability(matrices, family)
    if reliability is not None and (noisy := reliability.noise(family.locations)):
        logger.warning("the order of the pairs is mostly seed noise at: %s", ", ".join(noisy))
    drawn = _task_samples(np.stack(samples, axis=1), family, options) if samples else None
    # Features of identical weights are identical: what is found besides is rounding.
    values, identical = task_values(matrices, family), family.identical
    values = np.where(identical, 1.0, values)
    drawn = None if drawn is None else np.where(identical, 1.0, drawn)
    return Affinity(
        family.tasks,
        family.locations,
        values,
        measure,
        None if drawn is None else drawn.std(axis=0, ddof=1),
        probe.content,
        drawn,
        reliability,
        depths=family.depths,
    )


def _task_samples(samples: Matrix, family: Family, options: Options) -> Matrix:
    """(draws, D, M, M) -> (draws, D, N, N), also resampling the networks of every task."""
    # A stream of its own: the same seed already drew the inputs.
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
