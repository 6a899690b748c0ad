"""The plan of a whole run: everything that is compared, tried, trained, compiled, timed and searched again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from branchnet.clustering.search_problem import choose_method, make_problem
from branchnet.data.samples import count_samples
from branchnet.pipeline.network_timing import REPEATS
from branchnet.pipeline.plans.dry_run import (
    Plan,
    batch_of,
    forward_seconds,
    memory_of,
    plan_comparison,
    plan_distillation,
)
from branchnet.pipeline.problem import Problem
from branchnet.pipeline.search_inputs import COMPARED_PER_SECOND, REPLICATES
from branchnet.pipeline.steps import check_budget, form_difference, limits_of, nothing_known
from branchnet.pipeline.tree_choice.work import FEWEST_TREES, FITTED, MOST_TREES, work_of
from branchnet.stages import StagedNetwork, split_all
from branchnet.stages.staged import deepest
from branchnet.stitching.probe_division import LEAST_FITTED, MOST_JUDGED


@dataclass(frozen=True)
class Pace:
    """How long the single-task networks take, all of them together.

    Attributes:
        single: seconds for one input alone.
        each: seconds for each input of a batch.
    """

    single: float
    each: float


def plan_run(problem: Problem) -> Plan:
    """The plan of a whole run.

    Args:
        problem: what is asked.

    Returns:
        The plan.

    Raises:
        SplitError: networks without a common structure.
        BudgetError: a budget of parameters or multiply-adds below the smallest tree.
    """
    options = problem.options
    staged = split_all(problem.networks, problem.example, locations=options.locations, depth=options.depth)
    first = deepest(staged)
    if all(one.unit != "latency" for one in problem.budget.each):  # milliseconds would have to be measured
        check_budget(problem, first.locations, limits_of(problem, staged))
    difference = first.first_difference
    notes = [str(difference)] if difference is not None and difference.limits else []
    if forms := form_difference(problem, staged):
        notes.append(f"the run would stop: {forms}")
    plan = plan_comparison(
        Plan("run", notes=tuple(notes)),
        problem.networks,
        problem.example,
        count=count_samples(problem.probe),
        batch_size=options.batch_size,
        cut_bytes=[cost.cut_bytes for cost in first.costs],
    )
    return plan_after_comparison(plan, problem, staged)


def plan_after_comparison(plan: Plan, problem: Problem, staged: Mapping[str, StagedNetwork]) -> Plan:
    """Add what follows the comparison of the networks: everything is done once.

    Args:
        plan: what comes before.
        problem: what is asked.
        staged: the single-task networks.

    Returns:
        The longer plan.
    """
    options = problem.options
    pace = _pace(problem, staged)
    baselines = options.compared_with
    compared = 1 + ("shared" in baselines) + ("random" in baselines) * options.random_trees
    if options.measure == "auto":
        plan = plan_stitching_losses(plan, staged, pace.each)
        held_out = count_samples(problem.validation)
        work = work_of(staged, count_samples(problem.probe), held_out)
        plan = plan.step(
            f"measure {FEWEST_TREES} to {MOST_TREES} proposed trees with stitches on {held_out} held-out inputs",
            seconds=(FITTED + held_out + work.affinities / max(1.0, work.separate)) * pace.each,
            memory=2 * memory_of(problem.networks),
        )
    inputs = 2 * min(count_samples(problem.probe), LEAST_FITTED + MOST_JUDGED)
    plan = plan.step(
        f"fit the stitches of {compared} network{'s' * (compared > 1)}", seconds=compared * inputs * pace.each
    )
    activations = sum(
        cost.activation_bytes for network in staged.values() for cost in (*network.costs, network.head_cost)
    )
    batches = (options.stitch_steps if options.steps or problem.labelled is not None else 0) + options.steps
    if batches:
        plan = plan_distillation(
            plan,
            f"distil {compared} network{'s' * (compared > 1)}: {options.stitch_steps} batches of stitches alone, "
            f"{options.steps} of whole networks (at most: as slow as separate ones)",
            list(problem.networks.values()),
            problem.example,
            steps=batches * options.distillation.get("accumulate", 1) * compared,
            batch_size=options.batch_size,
            activations=activations,
        )
    if problem.labelled is not None:
        settings = problem.labelled.settings
        plan = plan_distillation(
            plan,
            f"train {compared} branched network{'s' * (compared > 1)} on labels, {settings['steps']} batches each (at "
            "most: as slow as separate ones)",
            list(problem.networks.values()),
            problem.example,
            steps=settings["steps"] * settings.get("accumulate", 1) * compared,
            batch_size=settings["batch_size"],
            activations=activations,
        )
    return _plan_measurements(plan, problem, staged, pace, compared)


def plan_stitching_losses(plan: Plan, staged: Mapping[str, StagedNetwork], seconds: float) -> Plan:
    """Add what `stitch_affinity` does: fits on about 96 inputs, and the rest of every network on all others' features.

    Args:
        plan: what comes before.
        staged: the single-task networks.
        seconds: of all networks together for each input.

    Returns:
        The longer plan.
    """
    first = deepest(staged)
    flops = [cost.flops for cost in (*first.costs, first.head_cost)]
    rests = sum(math.fsum(flops[stage + 1 :]) for stage in range(len(first.costs))) / max(1.0, math.fsum(flops))
    count = len(first.costs) * len(staged) * (len(staged) - 1)
    inputs = LEAST_FITTED + MOST_JUDGED + 1.5 * MOST_JUDGED * rests * (len(staged) - 1)
    return plan.step(
        f"stitching losses: {count} rests of networks on at most {MOST_JUDGED} inputs, 1.5 times over",
        seconds=inputs * seconds,
        memory=memory_of(staged),
    )


def _pace(problem: Problem, staged: Mapping[str, StagedNetwork]) -> Pace:
    size = min(problem.options.batch_size, count_samples(problem.probe))
    single, many = (
        math.fsum(forward_seconds(network, batch_of(problem.example, count)) for network in staged.values())
        for count in (1, size)
    )
    return Pace(single, many / size)


def _plan_measurements(
    plan: Plan, problem: Problem, staged: Mapping[str, StagedNetwork], pace: Pace, compared: int
) -> Plan:
    """What is compiled, timed, evaluated and searched again."""
    if problem.compiled:
        plan = plan.step(f"compile {len(staged)} separate networks and the branched one, where torch.compile works")
    plan = plan.step(
        f"time {compared + 1} networks, {REPEATS} calls each", seconds=REPEATS * (compared + 1) * pace.single
    )
    count, judged = count_samples(problem.test), compared + 4
    plan = plan.step(f"measure {judged} networks on {count} held-out inputs", seconds=judged * count * pace.each)
    first = deepest(staged)
    affinity = nothing_known(tuple(staged), first.locations)
    search = make_problem(affinity, first.costs, "params", None, problem.options.objective)
    exact = choose_method(search, "auto")[0] == "exact"
    return plan.step(
        f"search again on {REPLICATES} bootstrap replicates of the probe",
        seconds=REPLICATES * search.work()[0] / COMPARED_PER_SECOND if exact else None,
    )
