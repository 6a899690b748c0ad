"""Training with labels: branched networks, or the single-task networks that everything starts from."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from branchnet.builder import BranchedNetwork
from branchnet.data.arguments import check_whole
from branchnet.data.collation import moved, placed
from branchnet.data.samples import Batch, Source, read_samples
from branchnet.errors import TrainingError
from branchnet.stages import call
from branchnet.stages.interface import call_form
from branchnet.training.batch_order import BatchOrder
from branchnet.training.grouped_training import trains_each_network
from branchnet.training.groups import Rate, check_rate, node_groups, trained_tasks
from branchnet.training.labels import labels_of
from branchnet.training.loop import SECONDS_BETWEEN_CHECKPOINTS, Group, History, optimize
from branchnet.training.loss_parameters import check_losses, loss_modules, loss_parameters
from branchnet.training.resuming.run_identity import content_hash, labels_hash, losses_hash, network_hash, samples_hash

Loss = Callable[[Any, Tensor], Tensor]


@trains_each_network
def fit(
    network: nn.Module,
    images: Source,
    labels: Tensor | Mapping[str, Tensor] | None,
    losses: Loss | Mapping[str, Loss],
    *,
    steps: int = 1000,
    batch_size: int = 64,
    learning_rate: Rate = 1e-3,
    divide_rate: bool = False,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = SECONDS_BETWEEN_CHECKPOINTS,
    progress: bool = True,
    description: str = "fit",
) -> History:
    """Train `network` in place on labels.

    Args:
        network: a `BranchedNetwork` with labels and losses by task, or any network with one tensor of labels and one
            loss. It is trained on the device where it is, and left in eval mode. Of `GroupedNetworks` each is trained
            by itself with all of its tasks, as they share nothing: one after the other, by the same seed, with a
            checkpoint of its own; an auxiliary task's losses stand under `<task> in network <k>`.
        images: K samples, in whatever `branchnet.data.read_samples` takes. Tensors and data sets are drawn from at
            random; a DataLoader, which may shuffle and use workers and pinned memory, is read batch by batch, and
            brings its own batch size.
        labels: K labels, or `{task: K labels}`; tasks of which everything is frozen need none, and are not run. None
            where the samples come with them: (inputs, label), or (inputs, {task: label}).
        losses: a function of (output, labels of a batch) to a scalar, or one for each task; their sum is minimised. The
            parameters of losses that are modules, as learned uncertainties, are trained, too, without weight decay.
        steps: batches to train on.
        batch_size: samples a batch.
        learning_rate: peak rate; for a branched network also a function from a node (`branchnet.builder.Node`) to its
            peak rate, and a loss's parameters get that of its task's head.
        divide_rate: in a branched network, divide a node's rate by the number of tasks that it serves.
        seed: of the order of the samples and of what is drawn in training.
        checkpoint: a file to resume from after an interruption, by the same call with a network and losses as they were
            before training. It stays at the end: remove it once the result is saved. Until then the same call gives the
            result at once, and one with more `steps` goes on from there, at the rates of the longer schedule.
        checkpoint_seconds: time between two savings; 0 saves after each step.
        progress: whether to draw a progress bar on stderr.
        description: what it is called.

    Returns:
        the loss at every step, by task; of a single network under the name `loss`.

    Raises:
        TrainingError: labels or losses missing or of the wrong length, a network that cannot be trained, a loss with
            parameters that nothing would train, divergence.
        CheckpointError: a checkpoint of another run (what differs is named), a damaged one, or one that cannot be
            written.
        DataError: samples that cannot be read, or cannot be matched with the labels.

    >>> import torch, branchnet
    >>> network = torch.nn.Linear(4, 1)
    >>> x = torch.rand(32, 4)
    >>> history = branchnet.fit(network, x, x.sum(1, keepdim=True), torch.nn.MSELoss(), steps=20, progress=False)
    >>> len(history.losses["loss"])
    20
    >>> history.losses["loss"][-1] < history.losses["loss"][0]
    True
    """
    check_whole(TrainingError, steps=steps, batch_size=batch_size)
    check_whole(TrainingError, None, seed=seed)
    samples = read_samples(images, call_form(network), labels=labels is None, lists="samples")
    by_task = isinstance(network, BranchedNetwork)
    if by_task != isinstance(losses, Mapping) or (labels is not None and by_task != isinstance(labels, Mapping)):
        expected = "dictionaries by task, as the network is branched" if by_task else "one tensor and one function"
        given = f"{type(labels).__name__} and {type(losses).__name__}"
        raise TrainingError(f"labels and losses are {given}; expected {expected}")
    tasks = trained_tasks(network) if isinstance(network, BranchedNetwork) else ("loss",)
    targets = labels if isinstance(labels, Mapping) or labels is None else {"loss": labels}
    functions = losses if isinstance(losses, Mapping) else {"loss": losses}
    check_losses(functions)
    for task in tasks:
        if task not in functions or (targets is not None and task not in targets):
            raise TrainingError(f"task {task!r} lacks labels or a loss; expected both, or the task frozen throughout")
        if targets is not None and samples.count not in (None, len(targets[task])):
            of_task = f" of {task!r}" if by_task else ""
            raise TrainingError(
                f"{len(targets[task])} labels{of_task} were given; expected {samples.count}, one for each sample"
            )
    if reason := getattr(network, "eval_only", ""):
        raise TrainingError(f"this network can only be evaluated ({reason}); expected one that can be trained")
    device = next(network.parameters()).device

    def task_losses(batch: Batch) -> dict[str, Tensor]:
        wanted, inputs = labels_of(batch, targets, tasks), placed(batch.inputs, device)
        outputs = network(inputs, tasks) if by_task else {"loss": call(network, inputs)}
        return {task: functions[task](outputs[task], moved(wanted[task], device)) for task in tasks}

    modules = loss_modules({task: functions[task] for task in tasks})
    groups = _groups(network, learning_rate, divide_rate)
    groups += _loss_groups(network, modules, learning_rate, groups)
    frozen = network.frozen if isinstance(network, BranchedNetwork) else frozenset()
    identity = {}
    if checkpoint is not None:
        identity = {"weights": network_hash(network, frozen), "samples": samples_hash(samples)}
        identity["losses"] = losses_hash({task: functions[task] for task in tasks})
        if targets is not None:
            identity["labels"] = labels_hash({task: targets[task] for task in tasks})
    network.train()
    try:
        return optimize(
            network,
            task_losses,
            groups,
            samples=samples.count,
            draw=BatchOrder(samples, batch_size, seed),
            beside=[module for held in modules.values() for module in held],
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            description=description,
            progress=progress,
            checkpoint=checkpoint,
            checkpoint_seconds=checkpoint_seconds,
            identity=identity,
            legacy_content=lambda: content_hash(network, samples, frozen),
        )
    finally:
        network.eval()


def _groups(network: nn.Module, learning_rate: Rate, divided: bool) -> list[Group]:
    if isinstance(network, BranchedNetwork):
        return node_groups(network, learning_rate, divided=divided)
    if callable(learning_rate):
        raise TrainingError("learning_rate is a function of a node and the network is not branched; expected a number")
    check_rate(learning_rate)
    return [Group([p for p in network.parameters() if p.requires_grad], learning_rate)]


def _loss_groups(
    network: nn.Module,
    modules: Mapping[str, Collection[nn.Module]],
    learning_rate: Rate,
    groups: Sequence[Group],
) -> list[Group]:
    trained = [parameter for group in groups for parameter in group.parameters]
    own = loss_parameters(modules, next(network.parameters()).device, trained)
    rates = dict.fromkeys(own, learning_rate) if not callable(learning_rate) else {}
    if isinstance(network, BranchedNetwork) and callable(learning_rate):
        rates = {node.tasks[0]: learning_rate(node) for node in network.members() if node.is_head}
    return [Group(parameters, rates[task], weight_decay=0.0) for task, parameters in own.items()]
