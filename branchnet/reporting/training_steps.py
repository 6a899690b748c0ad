"""What each step of a run does for every task: from constant answers to the distilled network."""

from __future__ import annotations

from branchnet.reporting.comparison import (
    BEFORE_TRAINING,
    CONSTANT,
    WITHOUT_STITCHES,
    ComparedNetwork,
    Comparison,
)
from branchnet.reporting.tables import Cell, Column, Table


def step_table(comparison: Comparison) -> Table | None:
    """Tabulate every task's metrics: its own network, constant answers, donors' weights alone, stitched, trained.

    Args:
        comparison: the separate networks first, the branched one second, and references.

    Returns:
        one row for each metric of each task, its first one first; None without references.
    """
    shown: dict[str, ComparedNetwork] = {"own network": comparison.networks[0]}
    for name in (CONSTANT, WITHOUT_STITCHES, BEFORE_TRAINING):
        if found := comparison.reference(name):
            shown[name] = found
    if len(shown) == 1:
        return None
    shown["after training" if BEFORE_TRAINING in shown else "stitched"] = comparison.networks[1]
    rows: list[tuple[Cell, ...]] = []
    for task, metric in comparison.metric_names.items():
        rows.append((task, metric, *(network.metrics[task] for network in shown.values())))
        for other, values in comparison.further.get(task, {}).items():
            rows.append(("", other, *(values[network.name] for network in shown.values())))
    columns = (Column("task"), Column("metric"), *(Column(name, "{:.4g}".format) for name in shown))
    return Table("What each step gives", columns, tuple(rows))
