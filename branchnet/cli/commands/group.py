"""`branchnet group`: whole networks for groups of tasks, without a tree inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from branchnet.cli.options import AsJson, DryRun, Quiet

if TYPE_CHECKING:
    from branchnet.clustering import Grouping, Tree
    from branchnet.specification import Architecture, GroupedArchitecture

Affinities = Annotated[
    Path,
    Parameter(
        help="What `branchnet affinity` or `branchnet.gradient_affinity` wrote; or a CSV file of measured groups, see "
        "`branchnet.clustering.read_groups`."
    ),
]
Split = Annotated[Path, Parameter(help="What `branchnet split` wrote.")]


def group(
    affinity: Affinities,
    split: Split,
    *,
    groups: int = 2,
    location: str | None = None,
    out: Path = Path("architecture.yaml"),
    as_json: AsJson = False,
    quiet: Quiet = False,
    dry_run: DryRun = False,
) -> None:
    """Divide the tasks into at most so many groups, each with a network of its own (TAG, Fifty et al. 2021).

    Every task goes to the group whose other tasks are best for it on average. Up to 12 tasks. A group may have tasks
    that another one serves; its network has them, too, and is trained with them.

    From measured groups of tasks, each trained as one network, the losses of all others are estimated by ridge
    regression; more than 12 tasks are divided then, without overlaps. From about 10 tasks on, single tasks and random
    groups take far fewer trainings than pairs.

    Example: `branchnet group affinity.npz split.yaml --groups 3 --out groups.yaml`

    Parameters
    ----------
    groups
        Largest number of groups.
    location
        Only the affinities at this location count; by default the mean over all.
    out
        The architecture, YAML, for `branchnet build`: every stage is divided in the same way. Where groups overlap, the
        architectures of their networks.
    """
    from branchnet.cli.loading import read_spec
    from branchnet.cli.printing import print_plan, say
    from branchnet.pipeline.plans.dry_run import Plan

    spec = read_spec(split)
    divide = _by_measured_groups if affinity.suffix == ".csv" else _by_affinity
    found = divide(affinity, split, spec, location)
    if dry_run:
        plan = Plan("group").step(f"divide {len(spec.tasks)} tasks into at most {groups} groups{found.how}")
        print_plan(plan, [out], as_json=as_json)
        return
    result = found.into(groups)
    _architecture(result, spec, found.measure).save(out)
    _print(result, [out], found.score, as_json=as_json)
    say(f"wrote {out}", quiet=quiet)


@dataclass(frozen=True)
class _Division:
    """What divides the tasks into at most so many groups, by which measure, and what its score is called."""

    into: Callable[[int], Grouping]
    measure: str
    score: str
    how: str = ", exactly"


def _by_affinity(file: Path, split: Path, spec: Architecture, location: str | None) -> _Division:
    from branchnet.cli.loading import read_affinity
    from branchnet.clustering import group_by_affinity
    from branchnet.errors import SpecError

    found = read_affinity(file)
    if tuple(found.tasks) != tuple(spec.tasks):
        raise SpecError(f"{split}: tasks are {', '.join(spec.tasks)}; those of {file} {', '.join(found.tasks)}")
    if location is not None and location not in found.locations:
        raise SpecError(f"--location: unknown location {location!r}; expected one of {', '.join(found.locations)}")
    matrix = found.values.mean(0) if location is None else found.values[list(found.locations).index(location)]
    return _Division(
        lambda groups: group_by_affinity(matrix, groups, tasks=found.tasks),
        found.measure,
        "mean affinity of a task to the others of its group",
    )


def _by_measured_groups(file: Path, split: Path, spec: Architecture, location: str | None) -> _Division:
    from branchnet.clustering import estimate_groups, group_by_estimates, read_groups
    from branchnet.errors import DataError, SpecError

    if location is not None:
        raise SpecError("--location: measured groups share all stages; expected an affinity, or no location")
    if not file.is_file():
        raise DataError(f"{file} is not a file; expected a table of measured groups")
    found = estimate_groups(read_groups(file))
    if set(found.tasks) != set(spec.tasks):
        raise SpecError(f"{split}: tasks are {', '.join(spec.tasks)}; those of {file} {', '.join(found.tasks)}")
    return _Division(
        lambda groups: group_by_estimates(found, groups),
        f"losses of {len(found.measured)} measured groups",
        f"the estimates explain {max(found.explained, 0):.0%} of what groups that are left out lose; mean gain of a "
        "task by its group",
        "" if len(found.tasks) > 12 else ", exactly",
    )


def _architecture(result: Grouping, spec: Architecture, measure: str) -> Architecture | GroupedArchitecture:
    """One architecture of all groups, or one of each in one file where groups have auxiliary tasks."""
    from branchnet.pipeline.search_inputs import with_networks_of
    from branchnet.specification import Architecture, GroupedArchitecture

    def described(tree: Tree, description: str) -> Architecture:
        heads = {task: cost for task, cost in spec.head_costs.items() if task in tree.tasks}
        chosen = Architecture.from_tree(
            tree, locations=spec.locations, costs=spec.stage_costs, head_costs=heads, description=description
        )
        return with_networks_of(spec, chosen)

    depth, count = len(spec.locations), len(result.groups)
    if all(set(own) == one for one, own in zip(result.groups, result.served, strict=True)):
        return described(result.tree(depth), f"Whole networks for groups of tasks, by {measure}.")
    texts = (f"The network of group {number} of {count}, by {measure}." for number in range(1, count + 1))
    return GroupedArchitecture.of(list(map(described, result.trees(depth), texts)), result.served)


def _print(result: Grouping, written: list[Path], score: str, *, as_json: bool) -> None:
    from branchnet.cli.printing import print_json, print_text

    if as_json:
        assignment = {task: sorted(result.groups[index]) for task, index in result.assignment.items()}
        groups = [sorted(one) for one in result.groups]
        files = [str(path) for path in written]
        print_json({"groups": groups, "served_by": assignment, "score": result.score, "files": files})
    else:
        print_text(
            *(
                f"group {number}: {', '.join(sorted(one))}" + ("" if set(own) == one else f" (serves {', '.join(own)})")
                for number, (one, own) in enumerate(zip(result.groups, result.served, strict=True), start=1)
            ),
            f"{score}: {result.score:.4g}",
        )
