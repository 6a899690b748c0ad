"""Affinity by stitching: how well one network's rest works on another network's features."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch

from branchnet.affinity.bootstrap import draw_weights
from branchnet.affinity.features.distributed import check_same_probe, world
from branchnet.affinity.features.feature_cache import code_of
from branchnet.affinity.features.isolation import device_of, untouched
from branchnet.affinity.measure_options import Options, ProbeArguments
from branchnet.affinity.measurement import prepare
from branchnet.affinity.networks import Family, Networks
from branchnet.affinity.probes import Probe, blaming_inputs
from branchnet.affinity.stitched.labelled_losses import (
    LabelledDistance,
    LabelledTask,
    Loss,
    check_losses,
    labelled_tasks,
)
from branchnet.affinity.stitched.loss_cache import LossCache, Losses
from branchnet.affinity.stitched.pair_fits import Candidates, Key, fit_pairs, prepare_fits
from branchnet.affinity.stitched.rest_losses import Distance, Distances, best_stitches, judge_stitches
from branchnet.affinity.tensor import Affinity
from branchnet.data.call_forms import CallForm
from branchnet.data.collation import as_labels, leaves
from branchnet.errors import AffinityError
from branchnet.stitching.output_distances import OutputDistance, OutputKind
from branchnet.stitching.probe_division import ProbeDivision, warn_of_noise
from branchnet.utils.freed_memory import keeping_freed_memory
from branchnet.utils.progress import progress_bar

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it from Python 3.11 on

logger = logging.getLogger(__name__)

LARGEST_LOSS = 100.0
"""What outputs count that are infinite or NaN, or so far off that they would hide everything else in a sum."""
CHOOSING = 4
"""Every fourth of the inputs that judge chooses among the three ways of fitting; the others give the loss."""


def stitch_affinity(
    networks: Networks,
    probe: Any,
    *,
    kinds: Mapping[str, OutputKind] | None = None,
    losses: Mapping[str, Loss] | None = None,
    labels: Mapping[str, Any] | None = None,
    **options: Unpack[ProbeArguments],
) -> Affinity:
    """Affinity by stitching: how well task j's own rest works on task i's features.

    At every location an affine map from i's features to j's is fitted in closed form on part of the probe ("model
    stitching", Lenc & Vedaldi 2015; Bansal et al. 2021); j's rest is run on the mapped features of other inputs, and
    its output compared with j's own. No labels are needed. The affinity is `1 - loss`; the loss is 0 where the outputs
    are equal and 1 where they are as bad as a constant, so negative affinities are possible.

    It takes D N (N - 1) runs of a rest on 16 to 64 inputs, 1.5 times over, and the N networks on those for the fit:
    about as long as `rsa` takes on the same probe, and longer where many tasks meet many locations. The numbers are
    logged before it starts. With a cache only pairs with new networks are run; under `torch.distributed` processes
    share the inputs of the fit, and then the pairs.

    Args:
        networks: {task: network}; plain ones, or results of `split_all`. They are left exactly as they were.
        probe: the K inputs, as `branchnet.rsa` takes them; 100 or more of the kind that the networks were trained on.
        kinds: how the outputs of some tasks are compared: `"classification"` by the KL divergence of the softmax over
            dimension 1 divided by that of a constant distribution, `"direction"` by 1 minus the cosine along dimension
            1 divided by that of a constant direction, else `"regression"` by the share of variance that is not
            explained.
        losses: for some tasks {task: (output, labels) -> scalar}, lower is better: these are judged by labels. The loss
            is that of the stitched network less its own network's, divided by what a constant answer (for each channel
            the mean of the own outputs) has more than the own network; 0 where the stitched network does better. Each
            input is judged alone, and losses averaged.
        labels: for the same tasks K labels, in the order of the probe; one that is NaN throughout is missing, and its
            input does not count for the task.
        **options: as `rsa` takes them: locations, batch_size, device, bootstrap, seed, cache. With a cache, losses are
            plain functions, which their code tells apart.

    Returns:
        Affinities (D, N, N), at most 1, directed: `values[d, i, j]` is what task j keeps on i's features; ones on the
        diagonal; with standard errors by bootstrap over the inputs that judge.

    Raises:
        DataError: inputs that cannot be read, or change between readings.
        AffinityError: several networks for one task, features that are not finite, unknown tasks or kinds, options of
            other measures; losses without labels, or that are not lower for the own network than for a constant answer.
        SplitError: plain networks that cannot be cut.

    >>> def network():
    ...     return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> trained = {"depth": network(), "normals": network()}
    >>> affinity = branchnet.stitch_affinity(trained, torch.randn(60, 6), locations=["1", "3"], bootstrap=10)
    >>> affinity.directed, affinity.values.shape, bool((affinity.values <= 1).all())
    (True, (2, 2, 2), True)
    """
    if unused := {"features", "tensors", "memory_limit"} & set(options):
        raise AffinityError(
            f"stitch_affinity does not take {sorted(unused)}; expected locations, batch_size, device, bootstrap, seed, "
            "cache"
        )
    settings = Options(**options)
    family, fixed = prepare(networks, probe, settings)
    _check(family, kinds or {})
    check_losses(family.tasks, fixed.inputs, losses, labels)
    if world()[1] > 1:
        check_same_probe(fixed)
    warn_of_noise(fixed.example)
    judging = _Judging(kinds or {}, losses or {}, labels or {})
    with ExitStack() as inside:
        for network in {id(member.network): member.network for member in family.members}.values():
            inside.enter_context(untouched(network, settings.place))
        inside.enter_context(blaming_inputs(fixed, family.members[0].network))
        found = _measured(family, fixed, judging, settings)
    values = np.ones((1 + settings.bootstrap, len(family.locations), len(family.tasks), len(family.tasks)))
    for (d, i, j), loss in found.items():
        values[:, d, i, j] = 1 - loss[:-1]
    drawn = values[1:] if settings.bootstrap else None
    errors = None if drawn is None else drawn.std(axis=0, ddof=1)
    return Affinity(
        family.tasks,
        family.locations,
        values[0],
        "stitch",
        errors,
        fixed.content,
        drawn,
        directed=True,
        depths=family.depths,
        task_weights=_weights(family.tasks, {family.tasks[j]: float(loss[-1]) for (_, _, j), loss in found.items()}),
    )


@dataclass(frozen=True)
class _Judging:
    """How outputs are compared: by kind, or by losses and labels where the user gives them."""

    kinds: Mapping[str, OutputKind]
    losses: Mapping[str, Loss]
    labels: Mapping[str, Any]

    def told_apart(self, task: str) -> Any:
        """What a task's losses depend on."""
        if task not in self.losses:
            return self.kinds.get(task, "regression")
        found = [leaf.detach().cpu().numpy() for leaf in leaves(as_labels(self.labels[task], CallForm()))]
        content = [(leaf.dtype.str, leaf.shape, hashlib.sha256(leaf.tobytes()).hexdigest()) for leaf in found]
        return code_of(self.losses[task], f"losses[{task!r}]"), content, self.kinds.get(task)

    def distances(self, labelled: Mapping[str, LabelledTask], rows: Sequence[int]) -> Callable[[str], Distance]:
        """Empty distances over some of the inputs that judge, by task."""
        subsets = {task: judge.subset(rows) for task, judge in labelled.items()}

        def empty(task: str) -> Distance:
            if task in subsets:
                return LabelledDistance(subsets[task])
            return OutputDistance(self.kinds.get(task, "regression"))

        return empty


def _measured(family: Family, probe: Probe, judging: _Judging, settings: Options) -> Losses:
    """The loss of every pair at every location, the resampled ones, and the task's nats: (2 + bootstrap,)."""
    device = settings.place or device_of(family.members[0].network)
    division, dimensions = prepare_fits(family, probe, device)
    pairs = list(permutations(range(len(family.tasks)), 2))
    depths = [family.depths.get(task, len(family.locations)) for task in family.tasks]
    keys = [(d, i, j) for d in range(len(family.locations)) for i, j in pairs if d < min(depths[i], depths[j])]
    cache = LossCache(
        None if settings.cache is None else Path(settings.cache),
        family,
        keys,
        [probe.content, division, settings.bootstrap, settings.seed],
        {} if settings.cache is None else {task: judging.told_apart(task) for task in family.tasks},
        2 + settings.bootstrap,
    )
    found = cache.read()
    missing = [key for key in keys if key not in found]
    logger.info("stitching losses of %d tasks: %s", len(family.tasks), _cost(family, division, missing))
    if missing:
        new = _losses(family, probe, judging, division, dimensions, missing, device, settings)
        cache.write(new)
        found |= new
    return found


def _cost(family: Family, division: ProbeDivision, missing: Sequence[Key]) -> str:
    depth, members = len(family.locations), len({number for _, i, j in missing for number in (i, j)})
    # The rest after location d is (D - d) of D stages and the head.
    passes = sum(depth - d for d, _, _ in missing) / (depth + 1)
    return (
        f"{members} networks run on {len(division.fitted)} inputs for the fits, and {len(missing)} rests (about "
        f"{passes:.0f} networks) on {len(division.judged)} inputs, 1.5 times over"
    )


@keeping_freed_memory()
def _losses(
    family: Family,
    probe: Probe,
    judging: _Judging,
    division: ProbeDivision,
    dimensions: Sequence[dict[int, int]],
    missing: Sequence[Key],
    device: torch.device,
    settings: Options,
) -> Losses:
    judged = division.judged
    choosing = list(range(len(judged)))[::CHOOSING]
    measuring = [row for row in range(len(judged)) if row % CHOOSING] or choosing
    targets = {family.tasks[j] for _, _, j in missing}
    losses = {task: loss for task, loss in judging.losses.items() if task in targets}
    labelled = labelled_tasks(family, probe, judged, losses, judging.labels, judging.kinds, device)
    with progress_bar("stitch", 3 * len(probe.sizes), shown=sys.stderr.isatty() and world()[0] == 0) as shown:

        def advance() -> None:
            shown("")

        def judge(candidates: Candidates, rows: Sequence[int]) -> Distances:
            numbers = [judged[row] for row in rows]
            distance_of = judging.distances(labelled, rows)
            return judge_stitches(family, probe, numbers, candidates, distance_of, device, advance)

        fits = fit_pairs(family, probe, division.fitted, dimensions, missing, device, advance)
        distances = judge(best_stitches(fits, judge(fits, choosing)), measuring)
    weights = draw_weights(len(measuring), settings.bootstrap, settings.seed) if settings.bootstrap else ()
    return {
        key: np.array([*(_loss(of_key, row) for row in (None, *weights)), _nats(of_key)])
        for key, of_key in distances.items()
    }


def _loss(distances: Sequence[Distance], weights: Any) -> float:
    return min(distances[0].value(weights), LARGEST_LOSS) if distances else 0.0


def _nats(distances: Sequence[Distance]) -> float:
    """What a classifier's output says of its input, in nats, as far as it is compared by kind; else 0."""
    if distances and isinstance(distances[0], OutputDistance) and distances[0].kind == "classification":
        return distances[0].constant()
    return 0.0


def _weights(tasks: Sequence[str], nats: Mapping[str, float]) -> dict[str, float] | None:
    """What losses of classifiers count where they are added up: shares of what each output says, their mean 1.

    A loss of 1 means that all of it is lost: 8 nats of 1,000 classes, half a nat where nearly always one class is
    answered. Divergences in nats may be added up, shares may not.
    """
    known = {task: found for task, found in nats.items() if found > 0}
    if len(known) < 2:
        return None
    mean = sum(known.values()) / len(known)
    return {task: known[task] / mean if task in known else 1.0 for task in tasks}


def _check(family: Family, kinds: Mapping[str, OutputKind]) -> None:
    if len(family.members) > len(family.tasks):
        several = next(member.task for member in family.members if member.seed)
        raise AffinityError(f"task {several!r} has several networks; expected one for each task")
    for task, kind in kinds.items():
        if task not in family.tasks:
            raise AffinityError(f"kinds names the unknown task {task!r}; expected some of {list(family.tasks)}")
        if kind not in get_args(OutputKind):
            raise AffinityError(f"the kind of {task!r} is {kind!r}; expected one of {', '.join(get_args(OutputKind))}")
