"""Gradient affinities: what a step on the weights of one task does to the losses of the others.

Direction: `[i, j]` is the effect of task i's step on task j's loss, positive where it helps.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from branchnet.affinity.features.isolation import device_of
from branchnet.affinity.measures.multi_task_trunk import Cut, Trunk, trunk_of
from branchnet.affinity.measures.optimizer_step import (
    Gradients,
    joint_step,
    stepped_weights,
    task_gradients,
    zero_gradients,
)
from branchnet.affinity.probing_costs import Method, probing_cost
from branchnet.affinity.tensor import Affinity
from branchnet.data.call_forms import Inputs, described
from branchnet.data.collation import moved
from branchnet.data.samples import Source, read_samples
from branchnet.errors import AffinityError
from branchnet.stages.interface import call_form
from branchnet.utils.freed_memory import keeping_freed_memory
from branchnet.utils.progress import progress_bar

Matrix: TypeAlias = npt.NDArray[np.float64]
Losses: TypeAlias = Mapping[str, Callable[[Any, Any], Tensor]]
Cuts: TypeAlias = dict[tuple[int, int], Cut]

_NAMES = {
    "lookahead": "look-ahead Z: effect of i's step on j's loss",
    "first-order": "first-order Z: effect of i's step on j's loss",
    "cosine": "gradient cosine",
}

logger = logging.getLogger(__name__)


@keeping_freed_memory()
def gradient_affinity(
    model: nn.Module,
    batches: Source,
    losses: Losses,
    *,
    batch_size: int = 32,
    heads: Mapping[str, Callable[..., Any]] | None = None,
    method: Method = "lookahead",
    per_stage: bool = True,
    learning_rate: float | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    control: bool = True,
    autocast: torch.dtype | None = None,
    train_step: Callable[[Any, Mapping[str, Any]], None] | None = None,
    every: int | None = None,
    bootstrap: int = 100,
    seed: int = 0,
) -> Affinity:
    """Affinity by gradients (TAG; Fifty et al. 2021, "Efficiently Identifying Task Groupings", equation 1).

    `Z[i, j] = 1 - L_j(shared weights after task i's step) / L_j(shared weights)`, heads fixed, on one batch, averaged
    over batches. Per stage, only that stage takes the step. Tasks that do not share a node have affinity 0 there.

    Args:
        model: a branched network; or a staged network, or any trunk (one stage), with `heads`. It runs in the mode it
            is in; parameters, gradients, buffers, optimizer and random state are left as they were, but with `every`.
        batches: of (inputs, {task: target}), in a list, a DataLoader, or any iterable, which is read once; or samples
            of that form, in tensors, a Dataset, or an IterableDataset. They are moved to the model's device. A task
            whose target is absent or None is left out of that batch.
        batch_size: of samples that do not come in batches.
        losses: {task: (output, target) -> positive scalar}.
        heads: {task: cut -> output}, modules or plain callables.
        method: `"lookahead"`, exact; `"first-order"`, its linear term, from products of gradients alone; `"cosine"` of
            the tasks' gradients, which has no direction. `probing_cost` says what each costs; it is logged.
        per_stage: one affinity per stage, else one for the whole trunk, at the location `"trunk"`.
        learning_rate: of the plain gradient step, the default.
        optimizer: take its next update instead (SGD, momentum, Adam, ...), computed on a copy.
        control: then subtract what a step with zero gradients does.
        autocast: run under `torch.autocast` with this dtype. The look-ahead is a difference of losses: outputs rounded
            to half precision limit what it can resolve, first-order products less.
        train_step: called with every batch, after it was probed, to average over a training run.
        every: train the tasks jointly on the batches, one step a batch, and probe every so many steps, from the first
            on; the paper probes every tenth. The model and heads that are modules are trained in place, in the mode
            that they are in, on the sum of the losses: with `optimizer`, or with plain steps of `learning_rate`. With
            `train_step` that trains in place of this.
        bootstrap: number of resamplings of the batches.
        seed: of the resampling.

    Returns:
        Affinities (D, N, N), or (1, N, N) for the whole trunk. `[d, i, j]` is the share by which i's step lowers j's
        loss. Directed, except for `"cosine"`; standard errors are over batches.

    Raises:
        DataError: samples that cannot be read.
        AffinityError: a model that can only be evaluated; no batches, or targets that are not by task; losses that are
            not finite or not positive; a pair of tasks never seen together; tasks without losses.

    >>> trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    >>> heads = {"sum": nn.Linear(8, 1), "first": nn.Linear(8, 1)}
    >>> def targets(x):
    ...     return {"sum": x.sum(dim=1, keepdim=True), "first": x[:, :1]}
    >>> batches = [(x, targets(x)) for x in torch.randn(3, 16, 4)]
    >>> losses = {"sum": nn.functional.mse_loss, "first": nn.functional.mse_loss}
    >>> affinity = branchnet.gradient_affinity(trunk, batches, losses, heads=heads, learning_rate=1e-3)
    >>> affinity.values.shape, affinity.directed
    ((1, 2, 2), True)
    >>> bool((affinity.values[0].diagonal() > 0).all())           # a task's own step lowers its loss
    True
    """
    trunk = trunk_of(model, heads)
    if reason := getattr(model, "eval_only", None):
        raise AffinityError(
            f"the model can only be evaluated, and its gradients are not those of the networks: {reason}; expected one "
            "that can be trained"
        )
    _check(trunk, losses, method, every)
    cost = probing_cost(
        len(trunk.tasks), trunk.depth, method=method, per_stage=per_stage, control=control and optimizer is not None
    )
    logger.info("%s gradient affinity of %d tasks: %s", method, len(trunk.tasks), cost)
    device = device_of(trunk.nodes[0][0])
    step = _Step(trunk, losses, method, per_stage, learning_rate, optimizer, control, autocast, seed)
    if every is not None and train_step is None:
        train_step = joint_step(trunk, losses, learning_rate, optimizer, autocast)
    values: list[Matrix] = []
    samples = read_samples(batches, call_form(model), labels=True, lists="batches", once=True)
    with progress_bar("probing gradients", _length(batches), shown=sys.stderr.isatty()) as advance:
        for number, batch in enumerate(samples.batches(batch_size)):
            inputs, targets = moved((batch.inputs, _by_task(batch.labels, number)), device)
            if number % (every or 1) == 0:
                values.append(step.measure(inputs, targets, number))
            if train_step is not None:
                train_step(inputs, targets)
            advance()
    if not values:
        raise AffinityError("batches is empty; expected at least one (inputs, {task: target})")
    locations = trunk.locations if per_stage else ("trunk",)
    return _summarise(np.stack(values), trunk, locations, method, bootstrap, seed)


def _check(trunk: Trunk, losses: Losses, method: Method, every: int | None) -> None:
    if every is not None and every < 1:
        raise AffinityError(f"every is {every}; expected 1 or more: so many steps from one probed batch to the next")
    if method not in get_args(Method):
        raise AffinityError(f"method is {method!r}; expected one of {get_args(Method)}")
    missing = [task for task in trunk.tasks if task not in losses]
    if missing:
        raise AffinityError(f"losses lacks {missing}; expected a loss for each of {list(trunk.tasks)}")


def _length(batches: Source) -> int:
    return len(batches) if isinstance(batches, list | DataLoader) else 0


def _by_task(targets: Any, number: int) -> Mapping[str, Any]:
    if not isinstance(targets, Mapping):
        raise AffinityError(f"batch {number} has {described(targets)} as targets; expected (inputs, {{task: target}})")
    return targets


@dataclass(frozen=True)
class _Step:
    """Probing one batch after another with the same settings."""

    trunk: Trunk
    losses: Losses
    method: Method
    per_stage: bool
    learning_rate: float | None
    optimizer: torch.optim.Optimizer | None
    control: bool
    autocast: torch.dtype | None
    seed: int

    def measure(self, batch: Inputs, targets: Mapping[str, Any], number: int) -> Matrix:
        """(D, N, N), or (1, N, N) for the whole trunk; NaN where a task of the pair has no target."""
        # A large prime apart: nodes add up to a few thousand to it, and no two batches may share a seed.
        seed = (self.seed + number) * 1_000_003
        present = [index for index, task in enumerate(self.trunk.tasks) if targets.get(task) is not None]
        if not present:
            raise AffinityError(f"batch {number} has no target; expected one for some of {list(self.trunk.tasks)}")
        device = device_of(self.trunk.nodes[0][0])
        devices = {device_of(node) for nodes in self.trunk.nodes for node in nodes}
        drawing = [device for device in devices if device.type == "cuda"]
        with torch.random.fork_rng(devices=drawing), self._precision(device):
            with torch.enable_grad():
                cuts = self.trunk.run(batch, present, {}, seed)
                losses = {task: self._loss(task, cuts, targets, seed, number) for task in present}
            if self.method != "cosine":
                _check_positive(losses, self.trunk.tasks, number)
            if self.method == "lookahead":
                return self._lookahead(batch, targets, cuts, losses, seed, number)
            gradients = {task: self._gradients(task, loss) for task, loss in losses.items()}
            if self.method == "cosine":
                return self._products(gradients, gradients, cosine=True)
            return self._first_order(gradients, losses)

    def _gradients(self, task: int, loss: Tensor) -> Gradients:
        return task_gradients(loss, self.trunk.path_parameters(task), self.autocast)

    def _precision(self, device: torch.device) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast(device.type, dtype=self.autocast)

    def _loss(self, task: int, cuts: Cuts, targets: Mapping[str, Any], seed: int, number: int) -> Tensor:
        name = self.trunk.tasks[task]
        loss = self.losses[name](self.trunk.output(task, cuts, seed), targets[name])
        if loss.numel() != 1 or not torch.isfinite(loss).all():
            raise AffinityError(f"the loss of task {name!r} on batch {number} is {loss}; expected a finite scalar")
        return loss.reshape(())

    def _lookahead(
        self,
        batch: Inputs,
        targets: Mapping[str, Any],
        cuts: Cuts,
        losses: dict[int, Tensor],
        seed: int,
        number: int,
    ) -> Matrix:
        """Relative fall of every loss by every task's step, less that of a step without gradients."""
        known = {key: tuple(_detached(item) for item in cut) for key, cut in cuts.items()}
        base = {task: float(loss.detach()) for task, loss in losses.items()}
        result = self._unknown()
        idle_falls: dict[tuple[int, ...], Matrix] = {}
        with torch.no_grad():
            # `pop` lets go of a task's graph as soon as its gradients are known: N graphs share the trunk's
            # activations.
            for task in list(losses):
                gradients = self._gradients(task, losses.pop(task))
                weights = stepped_weights(gradients, self.learning_rate, self.optimizer)
                result[:, task] = self._falls(task, weights, batch, targets, known, base, seed, number)
                if self._has_control:
                    idle = stepped_weights(zero_gradients(list(gradients)), None, self.optimizer)
                    result[:, task] -= self._falls(task, idle, batch, targets, known, base, seed, number, idle_falls)
        return result

    def _first_order(self, gradients: dict[int, Gradients], losses: dict[int, Tensor]) -> Matrix:
        """The linear term of the look-ahead: how far each step moves down the other tasks' gradients."""
        result = self._unknown()
        with torch.no_grad():
            for task, own in gradients.items():
                weights = stepped_weights(own, self.learning_rate, self.optimizer)
                start = stepped_weights(zero_gradients(list(own)), None, self.optimizer) if self._has_control else {}
                moved = {p: weights[p] - start.get(p, p) for p in weights}
                result[:, task] = -self._products({task: moved}, gradients, cosine=False)[:, task]
        for task, loss in losses.items():
            result[:, :, task] /= float(loss.detach())
        return result

    @property
    def _has_control(self) -> bool:
        return self.optimizer is not None and self.control

    def _unknown(self) -> Matrix:
        count = len(self.trunk.tasks)
        return np.full((self.trunk.depth if self.per_stage else 1, count, count), np.nan)

    def _falls(
        self,
        task: int,
        weights: dict[nn.Parameter, Tensor],
        batch: Inputs,
        targets: Mapping[str, Any],
        known: Cuts,
        base: dict[int, float],
        seed: int,
        number: int,
        found: dict[tuple[int, ...], Matrix] | None = None,
    ) -> Matrix:
        """1 - L_j(stepped) / L_j for all j: (D, N) or (1, N).

        Steps that are the same for all tasks of a node are computed for the first of them and kept in `found`.
        """
        result = np.full((self.trunk.depth if self.per_stage else 1, len(self.trunk.tasks)), np.nan)
        for row in range(len(result)):
            stages = [row] if self.per_stage else list(range(self.trunk.depth))
            path = (row, *(self.trunk.clusters[d][task] for d in stages))
            if found is not None and path in found:
                result[row] = found[path]
                continue
            reached = self._sharing(task, stages, list(base))
            chosen = {p: weights[p] for d in stages for p in self._node(d, task) if p in weights}
            moved = self.trunk.run(batch, reached, chosen, seed, first=stages[0], cuts=known)
            for other in base:
                result[row, other] = 0.0
                if other in reached:
                    loss = float(self._loss(other, moved, targets, seed, number))
                    result[row, other] = 1 - loss / base[other]
            if found is not None:
                found[path] = result[row]
        return result

    def _node(self, stage: int, task: int) -> list[nn.Parameter]:
        return self.trunk.parameters(stage, self.trunk.clusters[stage][task])

    def _sharing(self, task: int, stages: Sequence[int], others: Sequence[int]) -> list[int]:
        """The tasks that share a node with `task` in one of the stages."""
        clusters = self.trunk.clusters
        return [other for other in others if any(clusters[d][other] == clusters[d][task] for d in stages)]

    def _products(self, left: dict[int, Gradients], right: dict[int, Gradients], *, cosine: bool) -> Matrix:
        """Inner products (or cosines) of directions and gradients over the parameters that both tasks share."""
        depth = self.trunk.depth
        groups = [[d] for d in range(depth)] if self.per_stage else [list(range(depth))]
        result = self._unknown()
        for row, stages in enumerate(groups):
            for i in left:
                for j in right:
                    shared = [p for d in self._shared_stages(i, j, stages) for p in self._node(d, i)]
                    value = _dot(left[i], right[j], dict.fromkeys(shared))
                    if cosine and value:
                        own = [[p for d in stages for p in self._node(d, task)] for task in (i, j)]
                        norms = [_dot(left[t], left[t], dict.fromkeys(ps)) for t, ps in zip((i, j), own, strict=True)]
                        value = max(-1.0, min(1.0, value / float(np.sqrt(norms[0] * norms[1]))))
                    result[row, i, j] = value
        return result

    def _shared_stages(self, i: int, j: int, stages: Sequence[int]) -> list[int]:
        return [d for d in stages if self.trunk.clusters[d][i] == self.trunk.clusters[d][j]]


def _dot(left: Gradients, right: Gradients, parameters: Iterable[nn.Parameter]) -> float:
    return sum(float((left[p].double() * right[p].double()).sum()) for p in parameters if p in left and p in right)


def _detached(item: Any) -> Any:
    return item.detach() if isinstance(item, Tensor) else item


def _check_positive(losses: Mapping[int, Tensor], tasks: Sequence[str], number: int) -> None:
    for task, loss in losses.items():
        if not loss > 0:
            raise AffinityError(
                f"the loss of task {tasks[task]!r} on batch {number} is {float(loss)}; expected a positive number: the "
                "look-ahead affinity is relative to the loss (method='cosine' is not)"
            )


def _summarise(
    values: Matrix, trunk: Trunk, locations: Sequence[str], method: Method, bootstrap: int, seed: int
) -> Affinity:
    """Mean over the batches in which both tasks had targets, (S, D, N, N) -> (D, N, N), with standard errors."""
    counts = np.isfinite(values).sum(axis=0)
    unseen = np.argwhere(counts[0] == 0)
    if len(unseen):
        i, j = (trunk.tasks[int(index)] for index in unseen[0])
        raise AffinityError(
            f"no batch has targets of both {i!r} and {j!r}, so their affinity is unknown; expected at least one"
        )
    mean = np.nanmean(values, axis=0)
    errors = samples = None
    if counts.min() > 1:
        errors = np.nanstd(values, axis=0, ddof=1) / np.sqrt(counts)
        samples = _resampled_means(values, mean, bootstrap, seed) if bootstrap else None
    return Affinity(
        trunk.tasks,
        locations,
        mean,
        _NAMES[method],
        errors,
        samples=samples,
        directed=method != "cosine",
        depths=trunk.depths if len(locations) == trunk.depth else {},
    )


def _resampled_means(values: Matrix, mean: Matrix, draws: int, seed: int) -> Matrix:
    """Means over batches drawn with replacement; a pair that a draw misses keeps its mean."""
    random = np.random.default_rng(seed)
    seen = np.isfinite(values)
    filled = np.where(seen, values, 0.0)
    result = np.empty((draws, *mean.shape))
    for draw in range(draws):
        weights = random.multinomial(len(values), np.full(len(values), 1 / len(values))).astype(np.float64)
        count = np.tensordot(weights, seen.astype(np.float64), 1)
        result[draw] = np.where(count > 0, np.tensordot(weights, filled, 1) / np.maximum(count, 1.0), mean)
    return result
