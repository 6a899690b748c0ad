"""`branchnet.run`: from trained networks and images to the branched network of a budget, measured."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from branchnet.builder import BranchedNetwork
from branchnet.clustering import Budget
from branchnet.clustering.objectives import DEFAULT_OBJECTIVE
from branchnet.data.arguments import check_by_task
from branchnet.data.samples import Source
from branchnet.errors import SpecError
from branchnet.pipeline.config.run_config import Kind, RunOptions
from branchnet.pipeline.measuring_steps import Results, judge
from branchnet.pipeline.problem import Problem, make_problem
from branchnet.pipeline.run_outputs import write_results
from branchnet.pipeline.run_result import RunResult
from branchnet.pipeline.steps import Trees, find_trees, train_networks
from branchnet.pipeline.workspace import Workspace
from branchnet.reporting import TaskSamples, report
from branchnet.utils.modes import evaluation_mode
from branchnet.utils.progress import silence

if TYPE_CHECKING:
    from branchnet.training import Metric


def run(
    networks: Mapping[str, nn.Module],
    images: Source,
    budget: Budget | str,
    *,
    folder: str | os.PathLike[str] | None = None,
    objective: str = DEFAULT_OBJECTIVE,
    locations: int | Sequence[str] | None = None,
    depth: Literal["common", "auto"] = "common",
    probe: int = 500,
    held_out: float = 0.2,
    measure: str = "auto",
    steps: int = 1000,
    stitch_steps: int = 200,
    batch_size: int = 32,
    learning_rate: float | Literal["auto"] = "auto",
    compare: bool = False,
    baselines: Sequence[str] | None = None,
    distill: Mapping[str, Any] | None = None,
    random_trees: int = 3,
    donor: str | None = None,
    seed: int = 0,
    kinds: Mapping[str, Kind] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    compiled: bool = True,
    command: str = "",
    quiet: bool = False,
) -> RunResult:
    """Find, build, distil and measure the branched network of a budget; no labels are needed.

    The images are divided. The networks are compared (RSA, stitching losses) on a probe; the trees that both propose
    are built with stitching layers and measured on images set aside; the best of them and the baselines are distilled
    on the training part, which holds the probe. Everything is measured on the held-out part, by how well it agrees
    with the single-task networks. `branchnet run` is this function, called with what a config names.

    Args:
        networks: trained single-task networks by task, on the device where they shall run; two or more. They are not
            changed.
        images: K samples that can be read by number, in tensors, a list or a Dataset, as `branchnet.data.read_samples`
            takes them; labels with them are not read.
        budget: the size that the branched network may have: `"60% params"`, `"25e6 params"`, `"4 GMACs"`, `"4 ms"`.
        folder: where the network, the affinities, the measurements and a page are written, and where finished steps
            are kept: the same call goes on where it was interrupted. None writes nothing.
        objective: how trees are judged by the affinity, see `branchnet.clustering.objectives`.
        locations: where to branch: a number of places, their names, or None for branchnet's choice.
        depth: `"auto"` lets networks leave the trunk early where the others have more in common, see `split_all`.
        probe: how many images the networks are compared on.
        held_out: share of the images that the results are measured on and nothing is trained on.
        measure: which affinities propose trees: `"auto"`, RSA and the stitching losses, of which the tree is taken that
            works best before any training; `"rsa"`, RSA alone, as published.
        steps: batches of distillation of each whole network; 0 leaves it as it is built, with stitching layers.
        stitch_steps: batches of distillation of the stitching layers alone, before that; none where `steps` is 0. The
            best state on images held out from the training part is kept.
        batch_size: images in a batch.
        learning_rate: peak learning rate of whole networks, which forget at high ones; `"auto"`: the largest that a
            short range test finds harmless.
        compare: train the fully shared network and random trees in the same way, to compare the chosen tree with.
        baselines: which of `"shared"` and `"random"`, in place of `compare`.
        distill: further settings of `branchnet.distill` for whole networks: `match`, `temperature`, `every`, `keep`,
            `patience`, `schedule`, `weights`, `divide_rate`, `precision`, `accumulate`, `clip`, `compile`, `ema`.
        random_trees: how many random trees of about the chosen one's size, fewer where the budget admits fewer.
        donor: the task whose weights every node that serves it starts from; None for the donors with which the
            stitched tasks lose least.
        seed: decides the division of the images and the order of the batches.
        kinds: for some tasks `"regression"` (measured by the explained variance), `"classification"` (by the share of
            the KL divergence that is explained, and by the agreement, plain and beyond chance) or `"direction"` (by the
            share of the angle that is explained, and by the mean angle); by default `"direction"` where all vectors
            along dimension 1 of the output have length 1, else `"regression"`.
        metrics: metrics (`branchnet.training.Metric`) of some tasks instead of those of their kinds; targets are the
            outputs of the single-task network.
        compiled: measure latencies compiled, too, where torch.compile works.
        command: the shell command or Python line that the page names as the way to make all of this again.
        quiet: no progress and no messages on stderr.

    Returns:
        The tree, the network, the comparison, the report, and what they were found from.

    Raises:
        SpecError: options that are wrong, all of them named; fewer than two networks; unknown tasks.
        DataError: images that cannot be read, or too few; a folder that is a file, that another run writes into, or
            that holds the results of a run on other tasks or data.
        SplitError: networks without a common structure.
        BudgetError: a budget below the smallest tree; `smallest` says its size.
        TrainingError: a loss that diverges.

    Examples:
        >>> from branchnet.data import scenes
        >>> made = branchnet.create("branchnet:scene_network", outputs=1, width=4)
        >>> nets = {"depth": made, "edges": branchnet.create("branchnet:scene_network", outputs=1, width=4)}
        >>> images = scenes(30, size=32).images
        >>> result = branchnet.run(nets, images, "80% params", steps=2, compiled=False, quiet=True)
        >>> list(result.network(images[:2]))
        ['depth', 'edges']
        >>> [network.name for network in result.comparison.networks]
        ['separate', 'branched', 'before training', 'without stitches', 'constant']
    """
    options = RunOptions.checked(
        objective=objective,
        locations=locations,
        depth=depth,
        probe=probe,
        held_out=held_out,
        measure=measure,
        steps=steps,
        stitch_steps=stitch_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        compare=compare,
        baselines=baselines,
        distill=distill,
        random_trees=random_trees,
        donor=donor,
        seed=seed,
    )
    check_by_task(networks, SpecError)
    with Workspace(folder, quiet=quiet) as workspace, ExitStack() as inside:
        for network in networks.values():
            if isinstance(network, nn.Module):
                inside.enter_context(evaluation_mode(network))
        if quiet:
            inside.enter_context(silence())
        problem = make_problem(
            networks,
            images,
            budget,
            options,
            kinds=kinds,
            metrics=metrics,
            compiled=compiled,
            resumable=folder is not None,
        )
        workspace.claim(problem.source)
        trees = find_trees(problem, workspace)
        trained = train_networks(problem, trees, workspace)
        results = judge(problem, trees, trained, workspace)
        return finish(problem, trees, trained["branched"], results, workspace, command=command)


def finish(
    problem: Problem,
    trees: Trees,
    branched: BranchedNetwork,
    results: Results,
    workspace: Workspace,
    *,
    command: str = "",
    samples: Sequence[TaskSamples] = (),
) -> RunResult:
    """Put the results together, and write them where there is a folder.

    Args:
        problem: what was asked.
        trees: what was found.
        branched: the network of the chosen tree.
        results: what was measured.
        workspace: where the results go.
        command: what makes all of this again.
        samples: truth and predictions of the first test images.

    Returns:
        The result.
    """
    result = RunResult(
        tree=trees.chosen.tree,
        network=branched,
        comparison=results.comparison,
        report=report(branched, problem.example, latency=False),
        folder=workspace.directory,
        budget=problem.budget,
        affinity=trees.affinity,
        search=trees.chosen,
        front=tuple(trees.front),
        stability=results.stability,
        trees=trees.compared,
        measured=trees.choice.measured,
        proposer=trees.choice.proposer,
        losses=trees.choice.losses,
    )
    if result.folder is not None:
        write_results(result, problem, trees, result.folder, command=command, samples=samples)
        workspace.finished()
    return result
