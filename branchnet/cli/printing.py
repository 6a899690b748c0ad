"""Results on stdout: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from branchnet.utils.visible_text import visible

if TYPE_CHECKING:
    from branchnet.pipeline import RunResult
    from branchnet.pipeline.plans.dry_run import Plan
    from branchnet.reporting.tables import Table


def print_json(value: Any) -> None:
    """Print `value` as JSON."""
    print(visible(json.dumps(value, indent=2, ensure_ascii=False), lines=True))


def print_text(*lines: object) -> None:
    """Print lines as they are, without markup and without breaking them."""
    console = Console(highlight=False, soft_wrap=True)
    for line in lines:
        console.print(visible(str(line), lines=True), markup=False)


def print_tables(tables: Sequence[Table]) -> None:
    """Print tables."""
    console = Console()
    for table in tables:
        console.print(table.to_rich())


def say(text: str, *, quiet: bool) -> None:
    """Tell on stderr what was done, unless the user wants silence."""
    if not quiet:
        Console(stderr=True, highlight=False, soft_wrap=True).print(visible(text, lines=True), markup=False)


def print_plan(plan: Plan, writes: Sequence[Path], *, as_json: bool) -> None:
    """Print the plan of a verb, and which files it would write.

    Args:
        plan: the plan.
        writes: the files.
        as_json: JSON instead of a table.
    """
    from branchnet.reporting.tables import Column, Table
    from branchnet.reporting.units import binary, duration

    if as_json:
        steps = [{"step": step.name, "seconds": step.seconds, "bytes": step.memory} for step in plan.steps]
        total = {"seconds": plan.seconds, "bytes": plan.memory}
        notes = {"notes": list(plan.notes)} if plan.notes else {}
        print_json({"verb": plan.verb, "steps": steps, **total, "writes": [str(path) for path in writes], **notes})
        return
    columns = (Column("step"), Column("time, about", duration), Column("memory, about", binary))
    rows = tuple((step.name, step.seconds, step.memory) for step in plan.steps)
    total_row = ("in all", plan.seconds or None, plan.memory or None)
    table = Table(f"What `branchnet {plan.verb}` would do", columns, (*rows, total_row), frozenset({len(rows)}))
    print_tables([table])
    print_text(*plan.notes)
    print_text(f"would write: {', '.join(map(str, writes)) or 'nothing'}")


def print_run(result: RunResult, *, as_json: bool) -> None:
    """Print what a run found and measured, and how its network is loaded again.

    Args:
        result: the result.
        as_json: all measurements as JSON instead of tables and sentences.
    """
    from branchnet.pipeline.run_outputs import ways_to_load
    from branchnet.reporting import step_table
    from branchnet.reporting.conclusion import verdict

    if as_json:
        print_json(result.to_dict())
        return
    print_text(result.tree, result.certainty)
    if result.search.first_difference is not None:
        print_text(result.search.first_difference)
    console = Console()
    sizes = "one multiply-add counts as one FLOP; latency: median for one input"
    console.print(result.comparison.size_table().to_rich(sizes))
    if (steps := step_table(result.comparison)) is not None:
        console.print(steps.to_rich())
    console.print(result.comparison.task_table().to_rich())
    print_text(verdict(result.comparison))
    if result.folder is not None:
        shell, python = ways_to_load(result.network, result.folder)
        print_text(
            f"results, with report.html: {result.folder}",
            f"load it again:  {python}",
            f"           or:  {shell}",
        )
