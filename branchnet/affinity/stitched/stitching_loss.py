"""Affinity by stitching: how well one network's rest works on another network's features."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from branchnet.affinity.bootstrap import draw_weights
from branchnet.affinity.features.isolation import device_of, untouched
from branchnet.affinity.measure_options import Options, ProbeArguments
from branchnet.affinity.measurement import prepare
from branchnet.affinity.networks import Family, Networks
from branchnet.affinity.probes import blaming_inputs
from branchnet.affinity.stitched.pair_fits import fit_pairs, prepare_fits
from branchnet.affinity.stitched.rest_losses import Distances, best_stitches, judge_stitches
from branchnet.affinity.tensor import Affinity
from branchnet.errors import AffinityError
from branchnet.stitching.output_distances import OutputKind
from branchnet.stitching.probe_division import warn_of_noise
from branchnet.utils.progress import progress_bar

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it from Python 3.11 on

LARGEST_LOSS = 100.0
"""What outputs count that are infinite or NaN, or so far off that they would hide everything else in a sum."""
CHOOSING = 4
"""Every fourth of the inputs that judge chooses among the three ways of fitting; the others give the loss."""


def stitch_affinity(
    networks: Networks,
    probe: Any,
    *,
    kinds: Mapping[str, OutputKind] | None = None,
    **options: Unpack[ProbeArguments],
) -> Affinity:
    """Affinity by stitching: how well task j's own rest works on task i's features.

    At every location an affine map from i's features to j's is fitted in closed form on part of the probe ("model
    stitching", Lenc & Vedaldi 2015; Bansal et al. 2021); j's rest is run on the mapped features of other inputs, and
    its output compared with j's own. No labels are needed. The affinity is `1 - loss`; the loss is 0 where the outputs
    are equal and 1 where they are as bad as a constant, so negative affinities are possible.

    It takes D N (N - 1) runs of a rest on 16 to 64 inputs, 1.5 times over, and the N networks on those for the fit:
    about as long as `rsa` takes on the same probe, and longer where many tasks meet many locations.

    Args:
        networks: {task: network}; plain ones, or results of `split_all`. They are left exactly as they were.
        probe: the K inputs, as `branchnet.rsa` takes them; 100 or more of the kind that the networks were trained on.
        kinds: how the outputs of some tasks are compared: `"classification"` by the KL divergence of the softmax over
            dimension 1 divided by that of a constant distribution, else `"regression"` by the share of variance that
            is not explained.
        **options: as `rsa` takes them: locations, batch_size, device, bootstrap, seed.

    Returns:
        Affinities (D, N, N), at most 1, directed: `values[d, i, j]` is what task j keeps on i's features; ones on the
        diagonal; with standard errors by bootstrap over the inputs that judge.

    Raises:
        DataError: inputs that cannot be read, or change between readings.
        AffinityError: several networks for one task, features that are not finite, unknown tasks or kinds, options of
            other measures.
        SplitError: plain networks that cannot be cut.

    >>> def network():
    ...     return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> trained = {"depth": network(), "normals": network()}
    >>> affinity = branchnet.stitch_affinity(trained, torch.randn(60, 6), locations=["1", "3"], bootstrap=10)
    >>> affinity.directed, affinity.values.shape, bool((affinity.values <= 1).all())
    (True, (2, 2, 2), True)
    """
    if unused := {"features", "tensors", "memory_limit", "cache"} & set(options):
        raise AffinityError(
            f"stitch_affinity does not take {sorted(unused)}; expected locations, batch_size, device, bootstrap, seed"
        )
    settings = Options(**options)
    family, fixed = prepare(networks, probe, settings)
    _check(family, kinds or {})
    warn_of_noise(fixed.example)
    with ExitStack() as inside:
        for network in {id(member.network): member.network for member in family.members}.values():
            inside.enter_context(untouched(network, settings.place))
        inside.enter_context(blaming_inputs(fixed, family.members[0].network))
        device = settings.place or device_of(family.members[0].network)
        inputs, distances = _losses(family, fixed, kinds or {}, device)
    shape = (len(family.locations), len(family.tasks), len(family.tasks))

    def values(weights: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
        found = np.ones(shape)
        for key, judged in distances.items():
            found[key] = 1 - min(judged[0].value(weights), LARGEST_LOSS) if judged else 1.0
        return found

    drawn = None
    if settings.bootstrap:
        drawn = np.stack([values(row) for row in draw_weights(inputs, settings.bootstrap, settings.seed)])
    errors = None if drawn is None else drawn.std(axis=0, ddof=1)
    return Affinity(family.tasks, family.locations, values(None), "stitch", errors, fixed.content, drawn, directed=True)


def _losses(family: Family, probe: Any, kinds: Mapping[str, OutputKind], device: torch.device) -> tuple[int, Distances]:
    """How many inputs judged, and the distances of the outputs of the best stitch of every pair."""
    division, dimensions = prepare_fits(family, probe, device)
    choosing = division.judged[::CHOOSING]
    judging = tuple(number for number in division.judged if number not in set(choosing)) or choosing
    steps = 3 * len(probe.sizes)
    with progress_bar("stitch", steps) as shown:

        def advance() -> None:
            shown("")

        found = fit_pairs(family, probe, division.fitted, dimensions, device, advance)
        best = best_stitches(found, judge_stitches(family, probe, choosing, found, kinds, device, advance))
        return len(judging), judge_stitches(family, probe, judging, best, kinds, device, advance)


def _check(family: Family, kinds: Mapping[str, OutputKind]) -> None:
    if len(family.members) > len(family.tasks):
        several = next(member.task for member in family.members if member.seed)
        raise AffinityError(f"task {several!r} has several networks; expected one for each task")
    for task, kind in kinds.items():
        if task not in family.tasks:
            raise AffinityError(f"kinds names the unknown task {task!r}; expected some of {list(family.tasks)}")
        if kind not in ("regression", "classification"):
            raise AffinityError(f"the kind of {task!r} is {kind!r}; expected 'regression' or 'classification'")
