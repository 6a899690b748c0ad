"""Parameters and FLOPs by stage of ready specifications and of named constructors, as branchnet counts them."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console

from branchnet import Architecture, Tree, create, split
from branchnet.clustering import tree_size
from branchnet.reporting.tables import Cell, Column, Table
from branchnet.reporting.units import si
from branchnet.stages.costs import StageCost


def of_specification(path: Path) -> Table:
    """Stages of a specification: cost of one copy, copies in the tree, and the tree beside separate networks."""
    spec = Architecture.load(path)
    costs, heads = spec.stage_costs, spec.head_costs or None
    if costs is None:
        return Table(f"{path.stem}: no costs are known", (Column("stage"), Column("copies")), _widths(spec))
    rows: list[tuple[Cell, ...]] = [
        (cost.name, cost.params, cost.flops, width) for cost, width in zip(costs, spec.tree.widths, strict=True)
    ]
    for name, tree in (("the tree", spec.tree), ("separate networks", Tree.separate(spec.tasks, spec.tree.depth))):
        params, flops = (int(tree_size(tree, costs, head_costs=heads, unit=unit)) for unit in ("params", "flops"))
        rows.append((name, params, flops, sum(tree.widths)))
    columns = (Column("stage"), Column("parameters", si), Column("FLOPs", si), Column("copies"))
    return Table(path.stem, columns, tuple(rows), frozenset({len(rows) - 2, len(rows) - 1}))


def of_constructor(name: str, locations: int | None, size: int) -> Table:
    """Stages of one network, cut at so many places."""
    staged = split(create(name).eval(), torch.zeros(1, 3, size, size), locations=locations)
    costs: list[StageCost] = [*staged.costs, staged.head_cost]
    rows: list[tuple[Cell, ...]] = [(cost.name, cost.params, cost.flops) for cost in costs]
    rows.append(("in all", sum(cost.params for cost in costs), sum(cost.flops for cost in costs)))
    columns = (Column("stage"), Column("parameters", si), Column("FLOPs", si))
    return Table(f"{name}, {size} x {size}", columns, tuple(rows), frozenset({len(rows) - 1}))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=f"{__doc__} One multiply-add counts as one FLOP.",
        epilog="example: python tools/cost_report.py architectures/resnet18.yaml torchvision:resnet50 --locations 4",
    )
    parser.add_argument("what", nargs="+", help="specification (.yaml) or named constructor, e.g. torchvision:resnet50")
    parser.add_argument("--locations", type=int, help="at how many places a constructor's network is cut")
    parser.add_argument("--size", type=int, default=224, help="height and width of its input (default: 224)")
    parser.add_argument("--csv", action="store_true", help="print comma-separated values instead of tables")
    options = parser.parse_args(arguments)
    for what in options.what:
        is_file = what.endswith((".yaml", ".yml"))
        table = of_specification(Path(what)) if is_file else of_constructor(what, options.locations, options.size)
        if options.csv:
            print(table.to_csv(), end="")
        else:
            Console().print(table.to_rich())


def _widths(spec: Architecture) -> tuple[tuple[Cell, ...], ...]:
    return tuple(zip(spec.locations, spec.tree.widths, strict=True))


if __name__ == "__main__":
    main()
