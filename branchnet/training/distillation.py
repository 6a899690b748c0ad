"""Distilling a branched network from single-task networks, on images without labels.

Each task's loss is 0 for the outputs of its own network and about 1 for the best constant answer, whatever its unit;
see `output_losses`.

A node receives the sum of its tasks' gradients. Plain gradient descent would divide its learning rate by their number;
AdamW's steps do not grow with the gradient, and dividing on top only slows shared nodes down: it is off by default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from branchnet.builder import BranchedNetwork, GroupedNetworks, SharingNetwork
from branchnet.data.arguments import check_by_task
from branchnet.data.collation import placed
from branchnet.data.samples import Samples, Source, read_samples
from branchnet.errors import TrainingError
from branchnet.stages import StagedNetwork
from branchnet.stages.interface import call_form
from branchnet.stages.tracing.trial import trial
from branchnet.stages.transforms import described_transform, holds_transform
from branchnet.training.batchnorm import foreign_modules, reestimate_batchnorm, reestimate_without_harm
from branchnet.training.grouped_training import takes_grouped_and_sharing
from branchnet.training.held_out_samples import HeldOutSamples, given_samples, set_aside
from branchnet.training.matching.distilled_losses import DistilledLosses, Match
from branchnet.training.matching.output_forms import OutputFunctions, applied, check_forms, differing_form
from branchnet.training.matching.output_losses import MatchKind
from branchnet.training.matching.settled_tasks import settled_tasks
from branchnet.training.optimization.batch_order import BatchOrder
from branchnet.training.optimization.choosing.held_out_judge import Judge
from branchnet.training.optimization.groups import Group, Rate, node_groups, trained_tasks
from branchnet.training.optimization.history import History
from branchnet.training.optimization.loop import optimize
from branchnet.training.optimization.objective import Objective
from branchnet.training.optimization.observers import Callback, Logger
from branchnet.training.optimization.run_settings import (
    LARGEST_GRADIENT,
    SECONDS_BETWEEN_CHECKPOINTS,
    Keep,
    OptimizerFactory,
    Precision,
    Settings,
)
from branchnet.training.optimization.schedules import Schedule
from branchnet.training.resuming.code_hash import code_hash
from branchnet.training.resuming.run_identity import content_hash
from branchnet.training.scope import DEFAULT_RATES, Scope, resting, training_scope
from branchnet.training.teachers import Teachers
from branchnet.utils.freed_memory import keeping_freed_memory
from branchnet.utils.modes import mode_of
from branchnet.utils.random_state import seeded

_COMPARED = 2
"""Samples on which outputs are compared first, their forms and values; BatchNorm in training mode needs two."""


@takes_grouped_and_sharing
@keeping_freed_memory()
def distill(
    branched: BranchedNetwork | GroupedNetworks | SharingNetwork,
    networks: Mapping[str, nn.Module] | Teachers,
    images: Source,
    *,
    steps: int = 1000,
    batch_size: int = 64,
    learning_rate: Rate | Literal["auto"] | None = None,
    scope: Scope = "all",
    match: Match = "outputs",
    kinds: Mapping[str, MatchKind] | None = None,
    temperature: float = 1.0,
    outputs: OutputFunctions | None = None,
    validation: Source | None = None,
    every: int | None = None,
    keep: Keep = "best",
    patience: int | None = None,
    divide_rate: bool = False,
    optimizer: OptimizerFactory | None = None,
    schedule: Schedule = "cosine",
    weights: Any = None,
    precision: Precision = "32",
    accumulate: int = 1,
    clip: float | None = LARGEST_GRADIENT,
    compile: bool = False,
    ema: float | None = None,
    callbacks: Sequence[Callback] = (),
    logger: Logger | Sequence[Logger] = (),
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = SECONDS_BETWEEN_CHECKPOINTS,
    checkpoint_every: int | None = None,
    progress: bool = True,
    description: str = "distil",
) -> History:
    """Train `branched` in place to give the outputs of the single-task networks.

    By default the state that is kept is the best one on held-out samples, that before the first step included: a tenth
    of the samples, at most 256, is set aside where no `validation` is given. Where whole networks are trained, the
    learning rate is the largest of a short range test after which no task is worse on them; networks that are trained
    already forget at usual rates. Tasks that share nothing and give their own networks' outputs already, which steps
    could only harm, are left as they are. Before the first step the BatchNorm statistics of nodes that are fed by
    another donor's features are estimated again, where that helps. Outputs may be tensors or nested dicts, tuples and
    dataclasses of them.

    Args:
        branched: the network to train, on the device where it shall be trained. It is left in eval mode. Of
            `GroupedNetworks` each is trained by itself with all of its tasks, see `branchnet.fit`; of a
            `SharingNetwork` every batch goes through each task's own path.
        networks: the single-task networks by task, plain or staged; or `Teachers`, to record their outputs once for
            several runs. Where `split_all` was given transforms, what it returned. Tasks of which everything is frozen
            need none, and are not run.
        images: K samples, in whatever `branchnet.data.read_samples` takes; labels with them are not read. Tensors and
            data sets are drawn from at random; a DataLoader, which may shuffle and use workers and pinned memory, is
            read batch by batch, and brings its own batch size. Teachers and student see the same tensors.
        steps: updates of the weights.
        batch_size: samples a batch, over all processes.
        learning_rate: peak rate, a function from a node (`branchnet.builder.Node`) to its peak rate, or `"auto"`. By
            default `"auto"` where whole networks are trained, 1e-3 for stitches, heads, branches or norms alone.
        scope: what is trained: `"all"`; `"stitches"`, the stitching layers alone, so that a task whose own network is
            its only donor stays exactly as it is; `"heads"`; `"first-private-stage"`, of each task the first node that
            it shares with no other; `"norms"`, the scales and shifts of normalisation layers. What is not trained runs
            in eval mode.
        match: `"outputs"`; `"features"` of the last node that each task shares, through linear adapters that are thrown
            away afterwards; or `"both"`. Features need staged networks.
        kinds: what the outputs of some tasks are, which decides the loss: `"classification"` (logits, dimension 1 being
            the classes), `"direction"` (vectors along dimension 1 whose length says nothing, as normals),
            `"regression"` (all others). By default `"direction"` where all vectors have length 1, else `"regression"`.
        temperature: that logits are divided by.
        outputs: functions of some tasks' outputs, applied to both sides before they are compared: to leave tensors out,
            or to bring two forms into one.
        validation: held-out samples.
        every: steps between two measurements on them; by default a tenth of the run, between 10 and 200.
        keep: `"best"`: the state with the smallest losses on held-out samples, in units of constant answers, where what
            makes a task worse than before counts three times; `"last"`.
        patience: end where the best state is so many measurements ago.
        divide_rate: divide a node's rate by the number of tasks that it serves.
        optimizer: from parameter groups to an optimiser; AdamW by default.
        schedule: `"cosine"` (after a warm-up over 5% of the steps), `"constant"`, or a function of (step, steps) to
            the share of the peak rate.
        weights: of the tasks' losses; see `branchnet.training.weighting_of`.
        precision: `"32"`, or `"bf16"` or `"fp16"` for forward passes under autocast, which need the extra `train`.
        accumulate: batches for each update.
        clip: largest norm of the gradient of all parameters; None for none.
        compile: run the network through torch.compile.
        ema: decay of an exponential moving average of the weights, 0.999, say, which is measured and kept in place of
            the last ones; in short runs it grows to that, see `MovingAverage`. None for none.
        callbacks: functions of an `Event`, told of every step, measurement and the end; True ends training.
        logger: one or more objects with `log_metrics(numbers, step)`, as Lightning's loggers.
        seed: of the order of the samples and of what is drawn in training.
        checkpoint: a file to resume from after an interruption, by the same call with a network as it was before
            training. It stays at the end: remove it once the result is saved. Until then the same call gives the
            result at once, and one with more `steps` goes on from there, at the rates of the longer schedule.
        checkpoint_seconds: time between two savings; 0 saves after each step.
        checkpoint_every: steps between two savings, in place of the time.
        progress: whether to draw a progress bar on stderr.
        description: what it is called.

    Returns:
        each task's loss at every step, in units of a constant answer's, and those on held-out samples before and
        after; `.worse` names the tasks that ended worse than they began, or than a constant answer.

    Raises:
        TrainingError: tasks without a network, networks without the transforms that the branched network has, one that
            cannot be trained or is frozen throughout, outputs of another form than the teacher's (found before
            anything is changed), a constant output, a diverging loss, an extra that is needed and
            not installed.
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
    settings = Settings(
        steps=steps, batch_size=batch_size, seed=seed, every=every, keep=keep, patience=patience, optimizer=optimizer,
        schedule=schedule, precision=precision, accumulate=accumulate, clip=clip, compile=compile, ema=ema,
        callbacks=callbacks, logger=logger, checkpoint=checkpoint, checkpoint_seconds=checkpoint_seconds,
        checkpoint_every=checkpoint_every, progress=progress, description=description,
    )  # fmt: skip
    if match not in get_args(Match):
        raise TrainingError(f"match={match!r}; expected one of {', '.join(get_args(Match))}")
    if branched.eval_only and scope != "stitches":
        raise TrainingError(
            f"this network can only be evaluated ({branched.eval_only}); expected one that can be trained"
        )
    samples = read_samples(images, call_form(branched))
    teachers = _teachers(branched, networks, images, samples, kinds, temperature, outputs, settings)
    _check_teachers(branched, teachers, samples)
    held = _held_out(branched, samples, validation, settings)
    inputs, wanted = _first_outputs(branched, teachers, samples)
    settled = frozenset[str]()
    if scope == "all" and not isinstance(weights, nn.Module):  # a weighting was made for all tasks
        settled = _settled_tasks(branched, teachers, inputs, wanted)
    if isinstance(weights, Mapping):
        weights = {task: weight for task, weight in weights.items() if task not in settled}
    with resting(branched, settled), training_scope(branched, scope):
        tasks = trained_tasks(branched)
        functions = teachers.output_functions
        of_these = {task: wanted[task] for task in tasks}
        check_forms(branched, lambda network: applied(functions, network(inputs, tuple(tasks))), of_these)
        run = DistilledLosses(branched, teachers, tasks, settings, held, match)
        rate = DEFAULT_RATES[scope] if learning_rate is None else learning_rate
        judge = None if held is None else run.judge()
        identity = run.identity(samples, scope, validation) if checkpoint is not None else {}
        if checkpoint is not None and weights is not None:
            identity["weighting"] = str(weights) if isinstance(weights, str | Mapping) else code_hash(weights)
        if checkpoint is not None and divide_rate:
            identity["divided rates"] = "yes"
        if scope == "all":
            judge = _reestimated(branched, samples, judge, resumed=checkpoint is not None and Path(checkpoint).exists())
        return _optimized(run, samples, rate, judge, identity, divide_rate=divide_rate, weights=weights)


def _optimized(
    run: DistilledLosses,
    samples: Samples,
    rate: Rate | Literal["auto"],
    judge: Judge | None,
    identity: Mapping[str, str],
    *,
    divide_rate: bool,
    weights: Any,
) -> History:
    settings, branched = run.settings, run.branched
    numbers = None if run.held is None else run.held.numbers
    groups = node_groups(branched, 1.0 if rate == "auto" else rate, divided=divide_rate)
    further_modules: list[nn.Module] = []
    if run.features is not None:
        further_modules.append(run.features)
        # An adapter begins as the identity or at random, and must not hold the network up.
        groups.append(Group(list(run.features.adapters.parameters()), 1e-3, scaled=False))
    weighting = None
    if weights is not None:
        from branchnet.training.weighting.named_weightings import weighting_of

        with seeded(settings.seed):
            weighting = weighting_of(weights, run.tasks, branched)
        groups.append(Group(list(weighting.parameters()), 1e-3, weight_decay=0.0, scaled=False))
    return optimize(
        branched,
        Objective(run.losses, lambda batch: dict.fromkeys(run.tasks, len(batch)), run.tasks),
        groups,
        settings,
        draws=lambda: BatchOrder(samples, settings.batch_size, settings.seed, numbers),
        rate="auto" if rate == "auto" else 1.0,
        weighting=weighting,
        further_modules=further_modules,
        judge=judge,
        identity=identity,
        legacy_content=lambda: content_hash(branched, samples, branched.frozen),
        samples=samples.count if numbers is None else len(numbers),
    )


def _teachers(
    branched: BranchedNetwork,
    networks: Mapping[str, nn.Module] | Teachers,
    images: Source,
    samples: Samples,
    kinds: Mapping[str, MatchKind] | None,
    temperature: float,
    outputs: OutputFunctions | None,
    settings: Settings,
) -> Teachers:
    if not isinstance(networks, Teachers):
        return Teachers(
            networks,
            samples,
            progress=settings.progress,
            kinds=kinds,
            temperature=temperature,
            interface=branched.interface,
            outputs=outputs,
        )
    if networks.images is not images:
        raise TrainingError("the teachers are of other images; expected branchnet.Teachers(networks, images) of these")
    if kinds is not None and dict(kinds) != networks.kinds:
        raise TrainingError(
            f"kinds are {dict(kinds)} and the teachers were made with {networks.kinds}; expected Teachers(..., kinds=)"
        )
    if outputs is not None and dict(outputs) != networks.output_functions:
        raise TrainingError("outputs are given next to Teachers; expected them in Teachers(..., outputs=)")
    return networks


def _first_outputs(branched: BranchedNetwork, teachers: Teachers, samples: Samples) -> tuple[Any, dict[str, Any]]:
    """The first samples, and what the teachers of all tasks make of them."""
    batch = next(iter(samples.first(_COMPARED, _COMPARED, seed=0)))
    device = next(branched.parameters()).device
    with torch.no_grad(), seeded(0, device):
        return placed(batch.inputs, device), teachers.outputs(batch, trained_tasks(branched), device)


def _settled_tasks(
    branched: BranchedNetwork, teachers: Teachers, inputs: Any, wanted: Mapping[str, Any]
) -> frozenset[str]:
    with torch.no_grad(), trial(branched) as copy, mode_of(copy, training=False):
        found = applied(teachers.output_functions, copy(inputs, tuple(wanted)))
    if any(differing_form(found[task], output) for task, output in wanted.items()):
        return frozenset()
    return settled_tasks(branched, found, wanted)


def _held_out(
    branched: BranchedNetwork, samples: Samples, validation: Source | None, settings: Settings
) -> HeldOutSamples | None:
    if validation is not None:
        return given_samples(validation, call_form(branched), settings.batch_size, labels=False)
    return set_aside(samples, settings.batch_size) if settings.keep == "best" else None


def _reestimated(branched: BranchedNetwork, samples: Samples, judge: Judge | None, *, resumed: bool) -> Judge | None:
    """Estimate BatchNorm statistics again; the judge knows of the network as it was given.

    A checkpoint holds the statistics of its step; estimated again, the resumed run would not be the same.
    """
    if judge is not None:
        if not foreign_modules(branched):
            return judge
        given = replace(judge, before=judge.measure()[0])
        if not resumed:
            reestimate_without_harm(branched, samples, judge)
        return given
    if not resumed:
        reestimate_batchnorm(branched, samples)
    return None


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
