"""How long every stage takes on this device at every number of copies: the cost table that makes milliseconds a budget.

`branchnet.search(affinity, table.costs, Budget.parse("4 ms"), head_costs=table.head_costs)` then finds the best tree
that is predicted to run within 4 ms; `stitch_sizes=table.stitch_sizes` counts its stitches. The prediction adds the
times of stages, heads and stitches that were measured alone.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from branchnet.clustering.budgets.tree_sizes import tree_size
from branchnet.clustering.trees.tree import Tree
from branchnet.data.arguments import check_by_task
from branchnet.data.samples import Source, as_example
from branchnet.errors import BuildError
from branchnet.inference.latency import Latency
from branchnet.inference.measuring.stage_runs import measure_runs, stage_runs
from branchnet.inference.torch_compile import compiled_apart, compiler_problem, device_of, map_input
from branchnet.stages import StagedNetwork, flat_example, split_all
from branchnet.stages.staged import deepest
from branchnet.utils.visible_text import visible

if TYPE_CHECKING:
    from branchnet.stages import Example

_EVERY_WIDTH = 8
"""Every width is measured up to here, then each half as large again: 14 in all for 64 tasks."""


@dataclass(frozen=True)
class LatencyTable:
    """Measured latencies of stages and heads.

    Attributes:
        tasks: the N task names.
        locations: the D names of the stages' ends.
        widths: the numbers of copies that were measured; between them costs are interpolated.
        unfused: `unfused[stage][i]`, `widths[i]` copies run one after another.
        fused: the same copies run as one batched computation; None where that was not measured or cannot be.
        heads: the head of each task.
        setting: how and on what it was measured, in words.
        stitches: one stitch at each location, as large as it may be there and unfolded; none where they were not
            measured.
        depths: how many stages the tasks pass that leave the trunk early.

    >>> import torch, branchnet
    >>> networks = {task: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)) for task in ("a", "b")}
    >>> table = branchnet.latency_table(networks, torch.rand(2, 4), locations=["0"], compiled=False, repeats=3)
    >>> isinstance(table, branchnet.LatencyTable)
    True
    >>> table.widths
    (1, 2)
    >>> table.predict(branchnet.Tree(["a", "b"], [[["a", "b"]]])) > 0  # milliseconds
    True
    """

    tasks: tuple[str, ...]
    locations: tuple[str, ...]
    widths: tuple[int, ...]
    unfused: tuple[tuple[Latency, ...], ...]
    fused: tuple[tuple[Latency | None, ...], ...]
    heads: Mapping[str, Latency]
    setting: str
    stitches: tuple[Latency, ...] = ()
    depths: Mapping[str, int] = field(default_factory=dict)

    @property
    def costs(self) -> tuple[tuple[float, ...], ...]:
        """Milliseconds `costs[stage][width]` for widths 0..N, the faster of unfused and fused: costs for `search`."""
        rows = []
        for apart, together in zip(self.unfused, self.fused, strict=True):
            best = [min(a.median, math.inf if t is None else t.median) for a, t in zip(apart, together, strict=True)]
            row = np.interp(range(len(self.tasks) + 1), (0, *self.widths), (0.0, *best))
            rows.append(tuple(1e3 * float(value) for value in row))
        return tuple(rows)

    @property
    def head_costs(self) -> dict[str, float]:
        """Milliseconds of each head: head costs for `search`."""
        return {task: 1e3 * latency.median for task, latency in self.heads.items()}

    @property
    def stitch_sizes(self) -> tuple[float, ...] | None:
        """Milliseconds of one stitch at each location: stitch sizes for `search`; None where they were not measured."""
        return tuple(1e3 * latency.median for latency in self.stitches) or None

    def predict(self, tree: Tree, *, stitched: bool = False) -> float:
        """Predict how long the branched network of `tree` takes for all tasks.

        Args:
            tree: a tree over these tasks and stages.
            stitched: whether it has stitches, wherever the donor changes.

        Returns:
            milliseconds, heads included.

        Raises:
            BuildError: stitches that were not measured.
        """
        tree = Tree(tree.tasks, tree.partitions, self.depths)
        sizes = [1e3 * latency.median for latency in self._measured_stitches()] if stitched else None
        return tree_size(tree, self.costs, head_costs=self.head_costs, unit="latency", stitch_sizes=sizes)

    def _measured_stitches(self) -> tuple[Latency, ...]:
        if not self.stitches:
            raise BuildError("the latency table holds no times of stitches; expected one that this version measured")
        return self.stitches

    def __str__(self) -> str:
        rows = [["stage", *map(str, self.widths)]]
        for name, apart, together in zip(self.locations, self.unfused, self.fused, strict=True):
            rows.append([visible(name), *map(_spread, apart)])
            if any(together):
                rows.append(["  fused", *map(_spread, together)])
        rows += [
            [f"stitch at {visible(name)}", _spread(latency)]
            for name, latency in zip(self.locations, self.stitches, strict=False)
        ]
        rows += [[f"head of {visible(task)}", _spread(latency)] for task, latency in self.heads.items()]
        return "\n".join([f"milliseconds by copies of a stage ({self.setting})", *_aligned(rows)])

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, for a JSON file.

        Returns:
            dictionaries, lists and numbers; latencies are lists of seconds.
        """
        return {
            "tasks": list(self.tasks),
            "locations": list(self.locations),
            "widths": list(self.widths),
            "unfused": [[list(latency.samples) for latency in row] for row in self.unfused],
            "fused": [[None if latency is None else list(latency.samples) for latency in row] for row in self.fused],
            "heads": {task: list(latency.samples) for task, latency in self.heads.items()},
            "setting": self.setting,
            "stitches": [list(latency.samples) for latency in self.stitches],
            "depths": dict(self.depths),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> LatencyTable:
        """Read what `to_dict` wrote.

        Args:
            plain: what it wrote.

        Returns:
            the table.

        Raises:
            BuildError: something else than `to_dict` writes.
        """
        try:
            table = cls(
                tuple(plain["tasks"]),
                tuple(plain["locations"]),
                tuple(plain["widths"]),
                tuple(tuple(_latency(samples) for samples in row) for row in plain["unfused"]),
                tuple(
                    tuple(None if samples is None else _latency(samples) for samples in row) for row in plain["fused"]
                ),
                {task: _latency(samples) for task, samples in plain["heads"].items()},
                plain["setting"],
                tuple(_latency(samples) for samples in plain.get("stitches", ())),  # files of 0.1 have none
                dict(plain.get("depths", {})),
            )
            whole = _is_whole(table)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise BuildError(
                f"this is no latency table: {error!r}; expected what LatencyTable.to_dict wrote"
            ) from error
        if not whole:
            raise BuildError(
                "names, widths and samples do not fit each other; expected what LatencyTable.to_dict wrote"
            )
        return table


def _latency(samples: Any) -> Latency:
    if not samples or not all(type(seconds) in (int, float) and 0 <= seconds < math.inf for seconds in samples):
        raise ValueError(f"{samples!r:.60} are no seconds")
    return Latency(tuple(samples))


def _is_whole(table: LatencyTable) -> bool:
    """Whether there are as many rows as locations, as many entries as widths, and a head for each task."""
    rows = [*table.unfused, *table.fused]
    return (
        all(isinstance(name, str) for name in (*table.tasks, *table.locations, table.setting))
        and all(type(width) is int for width in table.widths)
        and list(table.widths) == sorted(set(table.widths))
        and len(table.tasks) >= table.widths[-1] >= table.widths[0] > 0
        and len(table.unfused) == len(table.fused) == len(table.locations)
        and all(len(row) == len(table.widths) for row in rows)
        and set(table.heads) == set(table.tasks)
        and len(set(table.tasks)) == len(table.tasks)
        and len(table.stitches) in (0, len(table.locations))
        and set(table.depths) <= set(table.tasks)
        and all(type(depth) is int and 0 < depth < len(table.locations) for depth in table.depths.values())
    )


def latency_table(
    networks: Mapping[str, nn.Module],
    example: Source,
    device: str | torch.device | None = None,
    *,
    locations: Sequence[str] | int | None = None,
    compiled: bool = True,
    mode: str | None = None,
    fused: bool = False,
    widths: Sequence[int] | None = None,
    repeats: int = 15,
    progress: bool = False,
) -> LatencyTable:
    """Measure stages at widths 1..N, heads, and a stitch at each location, in turns, after a warm-up, synchronised.

    Stages and heads of one structure share one compiled graph, so this takes a compilation for each stage, stitch and
    kind of head, and with `fused` one more for each stage and width, and not one for each tree.

    Args:
        networks: the result of `split_all`, or plain networks, which are split first. They are not changed.
        example: inputs of the size to expect; the batch size counts.
        device: where to measure; by default where the networks are.
        locations: where to split plain networks.
        compiled: compile each stage, as `branchnet.compile` does; otherwise it runs eager.
        mode: torch.compile's mode.
        fused: also measure the copies as one batched computation; costs take the faster way.
        widths: the numbers of copies to measure; by default all up to 8, then each half as large again.
        repeats: calls of each kind.
        progress: whether to draw a progress bar on stderr.

    Returns:
        the latencies, whose `costs` and `head_costs` are milliseconds for `branchnet.search`.

    Raises:
        BuildError: widths that do not lie between 1 and N, or a device on which torch.compile does not work.
        SplitError: plain networks without a common structure.

    >>> import torch, branchnet
    >>> networks = {task: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)) for task in ("a", "b")}
    >>> table = branchnet.latency_table(networks, torch.rand(2, 4), locations=["0"], compiled=False, repeats=3)
    >>> [len(row) for row in table.costs]  # milliseconds at widths 0, 1 and 2
    [3]
    """
    return table_and_others(
        networks,
        example,
        {},
        device=device,
        locations=locations,
        compiled=compiled,
        mode=mode,
        fused=fused,
        widths=widths,
        repeats=repeats,
        progress=progress,
    )[0]


def table_and_others(
    networks: Mapping[str, nn.Module],
    example: Source,
    others: Mapping[str, Callable[[Any], Any]],
    *,
    device: str | torch.device | None = None,
    locations: Sequence[str] | int | None = None,
    compiled: bool = True,
    mode: str | None = None,
    fused: bool = False,
    widths: Sequence[int] | None = None,
    repeats: int = 15,
    progress: bool = False,
) -> tuple[LatencyTable, dict[str, Latency]]:
    """Measure the latency table, and other functions of the example in turns with it.

    Sample r of every entry and of every function is of the same round: what `predicted_rounds` needs to compare a
    prediction with what it predicts. The other arguments and errors are those of `latency_table`.

    Args:
        others: functions of the example, by name.

    Returns:
        the table, and the latencies of `others` by name.
    """
    check_by_task(networks, BuildError)
    wanted = _checked_widths(widths, len(networks))
    example = as_example(example)
    staged = _staged(networks, example, locations)
    first = deepest(staged)
    place = torch.device(device_of(first) if device is None else device)
    if compiled and (problem := compiler_problem(place.type)):
        raise BuildError(f"torch.compile does not work here: {problem}; use compiled=False to measure without it")
    x = map_input(lambda tensor: tensor.to(place), example)
    as_graph = functools.partial(compiled_apart, mode=mode, dynamic=False, module_guards=False)
    prepare: Callable[[Callable[..., Any]], Callable[..., Any]] = as_graph if compiled else lambda f: f
    with torch.no_grad():
        runs = stage_runs(staged, x, wanted, place, prepare, fused)
        runs |= {("other", name): functools.partial(other, x) for name, other in others.items()}
        times = measure_runs(runs, x, repeats, progress, compiled)
    rows = range(len(first.stages))
    table = LatencyTable(
        tasks=tuple(staged),
        locations=first.locations,
        widths=wanted,
        unfused=tuple(tuple(times["apart", number, width] for width in wanted) for number in rows),
        fused=tuple(tuple(times.get(("fused", number, width)) for width in wanted) for number in rows),
        heads={task: times["head", task] for task in staged},
        setting=_setting(x, place, compiled, mode),
        stitches=tuple(times.get(("stitch", number), Latency((0.0,) * repeats)) for number in rows),
        depths={task: network.depth for task, network in staged.items() if network.depth < len(first.stages)},
    )
    return table, {name: times["other", name] for name in others}


def predicted_rounds(table: LatencyTable, tree: Tree, *, stitched: bool = False) -> Latency:
    """Add up the unfused entries of each round for `tree`.

    Args:
        table: measured with its entries in turns.
        tree: a tree over its tasks and stages.
        stitched: whether the donor changes through stitches.

    Returns:
        seconds, one sample for each round.

    Raises:
        BuildError: a width that was not measured.
    """
    copies = Tree(tree.tasks, tree.partitions, table.depths).copies
    if missing := set(copies) - {0} - set(table.widths):
        raise BuildError(
            f"widths {sorted(missing)} of the tree were not measured; expected some of {list(table.widths)}; "
            "measure them with widths="
        )
    entries = [row[table.widths.index(width)] for row, width in zip(table.unfused, copies, strict=True) if width]
    entries += [table.heads[task] for task in tree.tasks]
    if stitched:
        widths = [*tree.widths, len(tree.tasks)]
        for latency, width, following in zip(table._measured_stitches(), widths, widths[1:], strict=False):
            entries += [latency] * (following - width)
    return Latency(tuple(sum(samples) for samples in zip(*(entry.samples for entry in entries), strict=True)))


def _checked_widths(widths: Sequence[int] | None, n_tasks: int) -> tuple[int, ...]:
    if widths is None:
        found = [*range(1, min(n_tasks, _EVERY_WIDTH) + 1)]
        while found[-1] < n_tasks:
            found.append(min(n_tasks, found[-1] * 3 // 2))
        return tuple(found)
    if not widths or min(widths) < 1 or max(widths) > n_tasks:
        raise BuildError(f"widths={list(widths)}; expected numbers from 1 to {n_tasks}, the number of tasks")
    # 1 and N are the ends of every interpolation.
    return tuple(sorted({1, *widths, n_tasks}))


def _staged(
    networks: Mapping[str, nn.Module], example: Example, locations: Sequence[str] | int | None
) -> Mapping[str, StagedNetwork]:
    staged = {task: network for task, network in networks.items() if isinstance(network, StagedNetwork)}
    return staged if len(staged) == len(networks) else split_all(networks, example, locations=locations)


def _setting(x: Any, place: torch.device, compiled: bool, mode: str | None) -> str:
    shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in flat_example(x))
    how = f"compiled{f' in mode {mode}' if mode else ''}" if compiled else "eager"
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else f"{place}, {torch.get_num_threads()} threads"
    return f"{how} on {name}, inputs {shapes}"


def _spread(latency: Latency | None) -> str:
    if latency is None:
        return "-"
    return f"{1e3 * latency.median:.2f} ({1e3 * latency.low:.2f}-{1e3 * latency.high:.2f})"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines: the first column to the left, the others to the right, two spaces apart."""
    columns = itertools.zip_longest(*rows, fillvalue="")
    first, *others = [max(map(len, column)) for column in columns]
    return [
        row[0].ljust(first) + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], others, strict=False))
        for row in rows
    ]
