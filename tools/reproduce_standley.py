"""Which networks Standley et al. (2020) would train for a budget: optimal, early stopping (ESA), higher order (HOA)."""

from __future__ import annotations

from published import Reproduction, Row, facts_rows, run

from branchnet.clustering import higher_order_estimates, select_networks

Table = dict[tuple[str, float], dict[str, float]]


def losses(name: str, setting: str) -> Table:
    """Losses by (name, cost) of a network and by task."""
    table: Table = {}
    for row in facts_rows(f"standley_{name}.csv"):
        if row["setting"] == setting:
            table.setdefault((row["subset"], float(row["cost"])), {})[row["task"]] = float(row["loss"])
    return table


def estimated(measured: Table) -> list[dict[str, float]]:
    """HOA: networks of three and more tasks are estimated from pairs; half-size networks keep their losses."""
    full = [row for (_, cost), row in measured.items() if cost == 1.0]
    estimates = higher_order_estimates(full, measured.values())
    return [row if key[1] == 0.5 else e for (key, row), e in zip(measured.items(), estimates, strict=True)]


def reproduce() -> Reproduction:
    """The objective of the best selection for every setting, strategy and budget."""
    rows = []
    for published in facts_rows("standley_oracle.csv"):
        setting = published["setting"]
        val = losses("val", setting)
        tables = {
            "optimal": list(val.values()),
            "esa": list(losses("esa", setting).values()),
            "optimal_on_test": list(losses("test", setting).values()),
            "hoa": estimated(val),
        }
        chosen = select_networks(tables[published["strategy"]], [cost for _, cost in val], float(published["budget"]))
        what = f"setting {setting}, {published['strategy']}, budget {published['budget']}: total loss"
        rows.append(Row(what, float(published["selection_objective"]), chosen.total_loss, 1e-9))
    source = "tstandley/taskgrouping, results of their network selection program on their published losses"
    return Reproduction("Which tasks should be learned together (Standley et al. 2020)", source, tuple(rows))


if __name__ == "__main__":
    run(__doc__, reproduce)
