"""The tables of a branched network's costs: a summary, and one each by stage, node, branch and task."""

from __future__ import annotations

from collections.abc import Mapping

from branchnet.inference.latency import Latency
from branchnet.reporting.costing import NetworkCosts, Total
from branchnet.reporting.tables import Cell, Column, Table
from branchnet.reporting.units import binary, milliseconds, percent, si

_PARAMS, _FLOPS, _SHARE = Column("parameters", si), Column("FLOPs", si), Column("share", percent)
_ACTIVATIONS, _LATENCY = Column("activations", binary, "bytes"), Column("latency", milliseconds, "s")
_TASKS_NAMED = 6


def summary_table(costs: NetworkCosts) -> Table:
    """Return the branched network against one network per task."""
    rows = (
        ("separate networks", costs.separate_params, 1.0, costs.separate_flops, 1.0),
        (
            "branched network",
            costs.params,
            _ratio(costs.params, costs.separate_params),
            costs.flops,
            _ratio(costs.flops, costs.separate_flops),
        ),
    )
    columns = (Column("network"), _PARAMS, _SHARE, _FLOPS, Column("share of FLOPs", percent))
    return Table("Branched against separate", columns, rows, frozenset({1}))


def stage_table(costs: NetworkCosts) -> Table:
    """Return one row for each stage, one for the heads, and the total."""
    rows: list[tuple[Cell, ...]] = [
        (total.name, total.nodes, total.params, _ratio(total.params, costs.params), total.flops)
        for total in costs.per_stage()
    ]
    rows.append(("total", len(costs.nodes), costs.params, 1.0, costs.flops))
    columns = (Column("stage"), Column("nodes", str), _PARAMS, _SHARE, _FLOPS)
    return Table("By stage", columns, tuple(rows), frozenset({len(rows) - 1}))


def node_table(costs: NetworkCosts, latencies: Mapping[str, Latency] | None = None) -> Table:
    """Return one row for each node and head; with latencies {id: latency} a column of their medians."""
    names = (*costs.locations, "head")
    columns = [Column("node"), Column("stage"), Column("tasks"), Column("donor"), _PARAMS, _FLOPS, _ACTIVATIONS]
    rows: list[tuple[Cell, ...]] = [
        (n.id, names[n.stage], tasks_named(n.tasks), n.donor, n.params, n.flops, n.activation_bytes)
        for n in costs.nodes
    ]
    if latencies is not None:
        columns.append(_LATENCY)
        rows = [(*row, latencies[n.id].median) for row, n in zip(rows, costs.nodes, strict=True)]
    return Table("By node", tuple(columns), tuple(rows))


def branch_table(costs: NetworkCosts) -> Table:
    """Return one row for each branch."""
    rows = tuple(
        (
            tasks_named(total.tasks),
            total.name,
            total.nodes,
            total.params,
            _ratio(total.params, costs.params),
            total.flops,
        )
        for total in costs.per_branch()
    )
    columns = (Column("tasks"), Column("branch"), Column("nodes", str), _PARAMS, _SHARE, _FLOPS)
    return Table("By branch", columns, rows)


def task_table(costs: NetworkCosts) -> Table:
    """Return one row for each task: what it takes alone, and what no other task takes."""

    def row(total: Total) -> tuple[Cell, ...]:
        return (total.name, total.nodes, total.params, total.flops, costs.exclusive_params(total.name))

    columns = (Column("task"), Column("nodes run", str), _PARAMS, _FLOPS, Column("its alone", si))
    return Table("By task (when only this task is asked for)", columns, tuple(map(row, costs.per_task())))


def stitch_table(costs: NetworkCosts) -> Table:
    """Return one row for each stitching layer."""
    rows = tuple(
        (s.child, s.source, s.target, "folded" if s.folded else s.method, s.r2, s.rank, s.params, s.flops)
        for s in costs.stitches
    )
    columns = (
        *(Column("stitch before"), Column("from"), Column("to"), Column("fit")),
        *(Column("R²", "{:.2f}".format), Column("rank", str), _PARAMS, _FLOPS),
    )
    return Table("Stitching layers (counted in the nodes behind them)", columns, rows)


def latency_table(latencies: Mapping[str, Latency], baseline: str) -> Table:
    """Return one row for each measurement, and how many times as fast as the baseline it is."""
    rows = tuple(
        (name, latency.median, latency.low, latency.high, latencies[baseline].median / latency.median)
        for name, latency in latencies.items()
    )
    columns = (
        Column("network"),
        Column("median", milliseconds, "s"),
        Column("10 %", milliseconds, "s"),
        Column("90 %", milliseconds, "s"),
        Column("times as fast", "{:.2f}".format),
    )
    return Table(f"Latency, measured in turns (baseline: {baseline})", columns, rows)


def tasks_named(tasks: tuple[str, ...]) -> str:
    """Return the tasks' names; where there are many, the last ones are only counted."""
    if len(tasks) <= _TASKS_NAMED:
        return ", ".join(tasks)
    return f"{', '.join(tasks[: _TASKS_NAMED - 1])} and {len(tasks) - _TASKS_NAMED + 1} more"


def _ratio(share: float, whole: float) -> float:
    return share / whole if whole else 0.0
