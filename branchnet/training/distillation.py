"""Distilling a branched network from single-task networks, on images without labels.

Each task's loss is the squared difference between the branched network's output and its donor's, divided by the
variance of the donor's output: 1 means no better than a constant, whatever the task's unit.

A node receives the sum of its tasks' gradients. Plain gradient descent would divide its learning rate by their number;
AdamW's steps do not grow with the gradient, and dividing on top only slows shared nodes down: it is off by default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from branchnet.builder import BranchedNetwork, GroupedNetworks
from branchnet.data.arguments import check_by_task, check_whole
from branchnet.data.collation import placed
from branchnet.data.samples import Batch, Samples, Source, read_samples
from branchnet.errors import TrainingError
from branchnet.stages import StagedNetwork
from branchnet.stages.interface import call_form
from branchnet.stages.transforms import described_transform, holds_transform
from branchnet.training.batch_order import BatchOrder
from branchnet.training.batchnorm import reestimate_batchnorm
from branchnet.training.best_state import BestState
from branchnet.training.grouped_training import trains_each_network
from branchnet.training.groups import Rate, node_groups, trained_tasks
from branchnet.training.loop import SECONDS_BETWEEN_CHECKPOINTS, History, optimize
from branchnet.training.resuming.run_identity import content_hash, network_hash, samples_hash, teachers_hash
from branchnet.training.scope import DEFAULT_RATES, Scope, training_scope
from branchnet.training.teachers import Teachers
from branchnet.utils.modes import evaluation_mode
from branchnet.utils.random_state import seeded


@trains_each_network
def distill(
    branched: BranchedNetwork | GroupedNetworks,
    networks: Mapping[str, nn.Module] | Teachers,
    images: Source,
    *,
    steps: int = 1000,
    batch_size: int = 64,
    learning_rate: Rate | None = None,
    scope: Scope = "all",
    validation: Source | None = None,
    every: int = 50,
    divide_rate: bool = False,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = SECONDS_BETWEEN_CHECKPOINTS,
    progress: bool = True,
    description: str = "distil",
) -> History:
    """Train `branched` in place to give the outputs of the single-task networks.

    Before the first step the BatchNorm statistics of every node that is fed by another donor's features are estimated
    again. Outputs may be tensors or nested dicts, tuples and dataclasses of them.

    Args:
        branched: the network to train, on the device where it shall be trained. It is left in eval mode. Of
            `GroupedNetworks` each is trained by itself with all of its tasks, see `branchnet.fit`.
        networks: the single-task networks by task, plain or staged; or `Teachers`, to record their outputs once for
            several runs. Where `split_all` was given transforms, what it returned. Tasks of which everything is frozen
            need none, and are not run.
        images: K samples, in whatever `branchnet.data.read_samples` takes; labels with them are not read. Tensors and
            data sets are drawn from at random; a DataLoader, which may shuffle and use workers and pinned memory, is
            read batch by batch, and brings its own batch size. Teachers and student see the same tensors.
        steps: batches to train on.
        batch_size: samples a batch.
        learning_rate: peak rate, or a function from a node (`branchnet.builder.Node`) to its peak rate. By default
            1e-4 where whole networks are trained (they forget at higher rates), 1e-3 for stitches or heads alone.
        scope: what is trained: `"all"`; `"stitches"`, the stitching layers alone, so that a task whose own network is
            its only donor stays exactly as it is; or `"heads"`. What is not trained runs in eval mode.
        validation: held-out samples. With them the best state is kept, that before the first step included: the one
            with the smallest mean over the tasks' losses there.
        every: steps between two measurements on them.
        divide_rate: divide a node's rate by the number of tasks that it serves.
        seed: of the order of the samples and of what is drawn in training.
        checkpoint: a file to resume from after an interruption, by the same call with a network as it was before
            training. It stays at the end: remove it once the result is saved. Until then the same call gives the
            result at once, and one with more `steps` goes on from there, at the rates of the longer schedule.
        checkpoint_seconds: time between two savings; 0 saves after each step.
        progress: whether to draw a progress bar on stderr.
        description: what it is called.

    Returns:
        each task's loss at every step: the squared error by the variance of the donor's output.

    Raises:
        TrainingError: tasks without a network, networks without the transforms that the branched network has, one that
            cannot be trained or is frozen throughout, a constant output, a diverging loss.
        CheckpointError: a checkpoint of another run (what differs is named), a damaged one, or one that cannot be
            written.
        DataError: samples that cannot be read, or only once.

    >>> import torch, branchnet
    >>> tree = branchnet.Tree.shared(["depth", "edges"], 1)
    >>> networks = {task: branchnet.create("branchnet:scene_network", outputs=1, width=2) for task in tree.tasks}
    >>> images = torch.rand(8, 3, 16, 16)
    >>> branched = branchnet.build(tree, networks, example=images[:2], locations=["layer2"], init="donor")
    >>> history = branchnet.distill(branched, networks, images, steps=3, batch_size=4, progress=False)
    >>> {task: len(losses) for task, losses in history.losses.items()}
    {'depth': 3, 'edges': 3}
    """
    if not isinstance(branched, BranchedNetwork):
        raise TrainingError(
            f"the network to train is a {type(branched).__name__}; expected distill(branched, networks, images) with a "
            "BranchedNetwork and its single-task networks"
        )
    if not isinstance(networks, Teachers):
        check_by_task(networks, TrainingError)
    check_whole(TrainingError, steps=steps, batch_size=batch_size)
    check_whole(TrainingError, None, seed=seed)
    if branched.eval_only and scope != "stitches":
        raise TrainingError(
            f"this network can only be evaluated ({branched.eval_only}); expected one that can be trained"
        )
    samples = read_samples(images, call_form(branched))
    if isinstance(networks, Teachers) and networks.images is not images:
        raise TrainingError("the teachers are of other images; expected branchnet.Teachers(networks, images) of these")
    teachers = (
        networks
        if isinstance(networks, Teachers)
        else Teachers(networks, samples, progress=progress, interface=branched.interface)
    )
    _check_teachers(branched, teachers, samples)
    device = next(branched.parameters()).device
    scales = {task: teachers.variances(task) for task in teachers.tasks}

    def task_losses(batch: Batch, judges: Teachers, tasks: Sequence[str]) -> dict[str, Tensor]:
        wanted = judges.outputs(batch, tasks, device)
        outputs = branched(placed(batch.inputs, device), tasks)
        return {task: _scaled_error(task, outputs[task], wanted[task], scales[task]) for task in tasks}

    with training_scope(branched, scope):
        tasks = trained_tasks(branched)
        identity = {}
        if checkpoint is not None:
            identity = {"weights": network_hash(branched, branched.frozen), "samples": samples_hash(samples)}
            identity["teachers"] = teachers_hash({task: teachers.networks[task] for task in tasks})
            identity |= {} if scope == "all" else {"scope": scope}
            if validation is not None:
                held_out = read_samples(validation, call_form(branched))
                identity |= {"validation": samples_hash(held_out), "every": str(every)}
        # A checkpoint holds the statistics of its step; estimated again, the resumed run would not be the same.
        if scope == "all" and (checkpoint is None or not Path(checkpoint).exists()):
            reestimate_batchnorm(branched, samples)
        best = None
        if validation is not None:
            judges = Teachers({task: teachers.networks[task] for task in tasks}, validation, progress=False)
            best = BestState(
                branched, partial(_held_out_losses, branched, judges, batch_size, tasks, task_losses), tasks
            )
        rate = DEFAULT_RATES[scope] if learning_rate is None else learning_rate
        return optimize(
            branched,
            partial(task_losses, judges=teachers, tasks=tasks),
            node_groups(branched, rate, divided=divide_rate),
            samples=samples.count,
            draw=BatchOrder(samples, batch_size, seed),
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            description=description,
            best=best,
            every=every,
            progress=progress,
            checkpoint=checkpoint,
            checkpoint_seconds=checkpoint_seconds,
            identity=identity,
            legacy_content=lambda: content_hash(branched, samples, branched.frozen),
        )


def _check_teachers(branched: BranchedNetwork, teachers: Teachers, samples: Samples) -> None:
    """Refuse teachers that lack a task that is trained, or the transforms, or that read the samples otherwise."""
    tasks = trained_tasks(branched)
    if missing := [task for task in tasks if task not in teachers.tasks]:
        raise TrainingError(
            f"tasks {missing} have no single-task network; expected one for each, found {list(teachers.tasks)}"
        )
    _check_transforms(branched, {task: teachers.networks[task] for task in tasks})
    if teachers.samples.kind != samples.kind:
        raise TrainingError(
            f"the teachers read the samples as {teachers.samples.kind}, the branched network as {samples.kind}; "
            "expected Teachers of split networks, whose inputs are known"
        )


def _held_out_losses(
    branched: BranchedNetwork,
    judges: Teachers,
    batch_size: int,
    tasks: Sequence[str],
    task_losses: Callable[[Batch, Teachers, Sequence[str]], Mapping[str, Tensor]],
) -> dict[str, float]:
    """Each task's loss on the held-out samples of the judges, the mean over samples."""
    totals, count = dict.fromkeys(tasks, 0.0), 0
    with torch.no_grad(), evaluation_mode(branched), seeded(0, next(branched.parameters()).device):
        for batch in judges.samples.batches(batch_size):
            for task, loss in task_losses(batch, judges, tasks).items():
                totals[task] += float(loss) * len(batch)
            count += len(batch)
    return {task: total / count for task, total in totals.items()}


def _check_transforms(branched: BranchedNetwork, networks: Mapping[str, nn.Module]) -> None:
    """Plain networks have lost the transforms that they were split with."""
    firsts = [node.module for node in branched.members() if node.stage == 0]
    if not any(map(holds_transform, firsts)):
        return
    plain = [
        task
        for task, network in networks.items()
        if not (isinstance(network, StagedNetwork) and holds_transform(network.stages[0]))
    ]
    if plain:
        texts = dict.fromkeys(filter(None, map(described_transform, firsts)))
        raise TrainingError(
            f"the branched network was split with transforms ({'; '.join(texts) or 'of other tasks'}), and the "
            f"single-task networks of {plain} are given without; expected those that split_all(..., transforms=...) "
            "returned"
        )


def _scaled_error(task: str, output: Any, wanted: Any, variances: Sequence[float]) -> Tensor:
    found = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    targets = [leaf for leaf in pytree.tree_leaves(wanted) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    shapes, expected = ([tuple(tensor.shape) for tensor in tensors] for tensors in (found, targets))
    if shapes != expected:  # otherwise they might broadcast
        raise TrainingError(f"the outputs of {task!r} have shapes {shapes}; expected its network's, {expected}")
    errors = [
        (one.float() - other.float()).square().mean() / variance
        for one, other, variance in zip(found, targets, variances, strict=True)
    ]
    return torch.stack(errors).mean()
