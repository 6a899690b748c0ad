"""Gradient affinities from a config: of a network whose stages all tasks share, which may be trained first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from branchnet.affinity import Affinity, gradient_affinity
from branchnet.affinity.probing_costs import probing_cost
from branchnet.builder import BranchedNetwork, build, choose_donors
from branchnet.clustering import Tree
from branchnet.data.collation import gather, placed
from branchnet.data.samples import count_samples, read_samples
from branchnet.errors import DataError
from branchnet.pipeline.config.config_labels import Labelled
from branchnet.pipeline.config.run_config import RunOptions
from branchnet.pipeline.plans.dry_run import Plan, batch_of, memory_of, plan_distillation, step_seconds
from branchnet.specification import Architecture
from branchnet.stages import split_all
from branchnet.stages.interface import call_form
from branchnet.stages.tracing.input_order import InputOrder, run_tasks
from branchnet.training import fit
from branchnet.utils.installed_torch.torch_internals import pytree

JOINT_RATE = 1e-3
"""Of joint training from donors' weights, where the config says `auto`."""
METHODS: Mapping[str, Any] = {"lookahead": "lookahead", "first-order": "first-order", "gradient-cosine": "cosine"}


def shared_network(
    spec: Architecture, networks: Mapping[str, nn.Module], example: Any, donor: str | None
) -> BranchedNetwork:
    """The network in which all tasks share all stages of `spec`, with donors' weights.

    Args:
        spec: tasks and locations.
        networks: the single-task networks by task.
        example: one input.
        donor: the task whose weights are taken; None for medoids.

    Returns:
        The network.
    """
    depths = spec.tree.depths
    staged = split_all(networks, example, locations=list(spec.locations), depth="auto" if depths else "common")
    tree = Tree.shared(spec.tasks, len(spec.locations), depths)
    return build(tree, staged, init="donor", donors=choose_donors(tree, preferred=donor))


def train_shared(network: BranchedNetwork, data: Labelled, options: RunOptions) -> None:
    """Train it on the labels for as many steps as the options say."""
    if options.steps:
        fit(
            network,
            (data.images, data.labels),
            data.losses,
            steps=options.steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            seed=options.seed,
            description="train the shared network",
        )


def measure_gradients(
    network: BranchedNetwork, data: Labelled, options: RunOptions, *, measure: str, bootstrap: int, seed: int
) -> Affinity:
    """What each task's step does to the others' losses, over the probe in batches.

    Args:
        network: the network that is probed.
        data: images and labels.
        options: size of the probe and of batches, learning rate.
        measure: one of `METHODS`.
        bootstrap: resamplings of the batches.
        seed: of the resampling.

    Returns:
        A directed affinity.
    """
    device = next(network.parameters()).device
    count = min(options.probe, count_samples(data.images))
    order = InputOrder(network, run_tasks)
    found = [
        (order.placed(batch.inputs, device), placed(gather(data.labels, cast(Tensor, batch.index)), device))
        for batch in read_samples(data.images, call_form(network)).first(count, options.batch_size)
    ]
    return gradient_affinity(
        network,
        found,
        data.losses,
        method=METHODS[measure],
        learning_rate=1e-4 if options.learning_rate == "auto" else options.learning_rate,
        bootstrap=bootstrap,
        seed=seed,
    )


def measure_in_training(
    network: BranchedNetwork,
    data: Labelled,
    options: RunOptions,
    *,
    measure: str,
    every: int,
    bootstrap: int,
    seed: int,
) -> Affinity:
    """Train the network on the labels, all tasks jointly, and probe every so many steps, as TAG does.

    Args:
        network: the network that is trained and probed, in training mode.
        data: images and labels.
        options: steps and size of batches; the rate of AdamW, whose next step is what is looked ahead at.
        measure: one of `METHODS`.
        every: steps from one probed batch to the next.
        bootstrap: resamplings of the probed batches.
        seed: of the resampling; the order of batches is the options'.

    Returns:
        A directed affinity.

    Raises:
        DataError: no steps to train.
    """
    if not options.steps:
        raise DataError("steps: 0 leaves nothing to probe in training; expected 1 or more")
    samples = read_samples(data.images, call_form(network))
    generator = torch.Generator().manual_seed(options.seed)

    def batches() -> Iterator[tuple[Any, dict[str, Tensor]]]:
        order: list[int] = []
        for _ in range(options.steps):
            if len(order) < options.batch_size:
                order = torch.randperm(samples.known_count, generator=generator).tolist()
            rows, order = torch.tensor(order[: options.batch_size]), order[options.batch_size :]
            yield samples.take(rows).inputs, gather(data.labels, rows)

    rate = JOINT_RATE if options.learning_rate == "auto" else options.learning_rate
    network.train()
    try:
        return gradient_affinity(
            network,
            batches(),
            data.losses,
            method=METHODS[measure],
            optimizer=torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=rate),
            every=every,
            bootstrap=bootstrap,
            seed=seed,
        )
    finally:
        network.eval()


def plan_gradients(
    network: BranchedNetwork,
    data: Labelled,
    options: RunOptions,
    *,
    measure: str,
    train: bool,
    every: int | None = None,
) -> Plan:
    """The plan: training, and probing as `branchnet.affinity.probing_cost` counts it.

    Args:
        network: the network that is probed.
        data: images and labels.
        options: sizes and steps.
        measure: one of `METHODS`.
        train: whether the network is trained first.
        every: steps between two probes of that training; None: it is probed afterwards.

    Returns:
        The plan.
    """
    device = next(network.parameters()).device
    example = pytree.tree_map(lambda tensor: tensor.to(device), network.interface.random())
    plan = Plan("affinity")
    activations = sum(cost.activation_bytes for cost in (*network.costs, *network.head_costs.values()))
    if train:
        work = {"steps": options.steps, "batch_size": options.batch_size, "activations": activations}
        name = f"train the shared network, {options.steps} batches"
        plan = plan_distillation(plan, name, [network], example, **work)
    inputs = min(options.probe, count_samples(data.images))
    count = -(-inputs // options.batch_size) if every is None else -(-options.steps // every)
    cost = probing_cost(len(network.tasks), network.tree.depth, method=METHODS[measure])
    passes = (cost.backwards + cost.trunk_forwards / 2) * step_seconds([network], batch_of(example, options.batch_size))
    memory = 2 * memory_of({"": network}) + options.batch_size * activations
    return plan.step(f"probe gradients on {count} batches: {cost}", seconds=count * passes, memory=memory)
