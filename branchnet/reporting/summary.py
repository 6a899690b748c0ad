"""`branchnet.report`: what a branched network costs and how fast it is, in every form that a reader may want."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich.console
import rich.text
from torch import nn

from branchnet.builder.network.grouped_networks import GroupedNetworks, as_one_network
from branchnet.builder.network.separate_networks import SeparateNetworks
from branchnet.clustering.trees.text_drawing import tree_text
from branchnet.data.arguments import check_by_task
from branchnet.errors import BranchnetError, BuildError
from branchnet.inference.latency import Latency, compare_latency, measure_latency
from branchnet.reporting.cost_tables import (
    branch_table,
    latency_table,
    node_table,
    stage_table,
    stitch_table,
    summary_table,
    task_table,
)
from branchnet.reporting.costing import CONVENTION, NetworkCosts, capture_inputs, network_costs, uncounted_note
from branchnet.reporting.tables import Table
from branchnet.reporting.units import milliseconds, percent, si
from branchnet.utils.files import write_text
from branchnet.utils.modes import evaluation_mode
from branchnet.utils.visible_text import visible

if TYPE_CHECKING:
    from branchnet.builder import BranchedNetwork
    from branchnet.clustering.trees.tree import Tree
    from branchnet.stages.interface import Example
from branchnet.stages.tracing.trial import saved


@dataclass(frozen=True)
class Report:
    """What a branched network costs.

    Attributes:
        tree: which tasks share which stage.
        costs: parameters, FLOPs and activation memory of every node.
        latencies: end-to-end latency of each network measured, `"branched"` among them, or None.
        node_latencies: latency of each node and head by its id, or None.

    >>> import torch, branchnet
    >>> networks = {task: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)) for task in ("a", "b")}
    >>> x = torch.rand(2, 4)
    >>> tree = branchnet.Tree.shared(["a", "b"], 1)
    >>> branched = branchnet.build(tree, networks, example=x, locations=["0"], init="donor")
    >>> report = branchnet.report(branched, x, latency=False)
    >>> print(report)
    2 tasks, 1 stages, 1 nodes
    stage 0: a, b
    parameters: 58, 59.2 % of 2 separate networks
    multiply-adds: 96, 60.0 % of 2 separate networks
    >>> print(report.to_csv().splitlines()[1])
    nodes.0.0,0,"a, b",a,40,64,64
    """

    tree: Tree
    costs: NetworkCosts
    latencies: Mapping[str, Latency] | None = None
    node_latencies: Mapping[str, Latency] | None = None

    @property
    def baseline(self) -> str:
        """The measurement that latency ratios are relative to: `"separate"` where it was measured."""
        return "separate" if self.latencies and "separate" in self.latencies else "branched"

    def __str__(self) -> str:
        """The tree, and what it costs compared with separate networks, in a few lines."""
        costs = self.costs
        lines = [tree_text(self.tree, costs.stitch_marks())]
        for name, size, alone in (
            ("parameters", costs.params, costs.separate_params),
            ("multiply-adds", costs.flops, costs.separate_flops),
        ):
            lines.append(f"{name}: {si(size)}, {percent(size / alone)} of {len(costs.tasks)} separate networks")
        if costs.limited_by is not None:
            lines.append(str(costs.limited_by))
        if costs.stitches:
            size, flops = (sum(getattr(s, unit) for s in costs.stitches) for unit in ("params", "flops"))
            lines.append(f"of these {len(costs.stitches)} stitches: {si(size)} parameters, {si(flops)} multiply-adds")
        if costs.uncounted:
            lines.append(uncounted_note(costs.uncounted))
        if self.latencies:
            median = self.latencies["branched"].median
            ratio = self.latencies[self.baseline].median / median
            compared = f", {ratio:.2f} times as fast" if self.baseline == "separate" else ""
            lines.append(f"latency: {milliseconds(median)}{compared}")
        return "\n".join(lines)

    def tables(self) -> tuple[Table, ...]:
        """Tabulate everything.

        Returns:
            all tables, the summary first.
        """
        costs = self.costs
        tables = [summary_table(costs), stage_table(costs), task_table(costs), branch_table(costs)]
        tables.append(node_table(costs, self.node_latencies))
        if costs.stitches:
            tables.insert(3, stitch_table(costs))
        if self.latencies:
            tables.insert(1, latency_table(self.latencies, self.baseline))
        return tuple(tables)

    def table(self) -> rich.console.Group:
        """Tabulate for the terminal: `rich.print(report.table())`.

        Returns:
            the summary, stages, tasks and latencies.
        """
        tables = [table for table in self.tables() if not table.title.startswith(("By branch", "By node"))]
        notes = (rich.text.Text(visible(note, lines=True)) for note in self.costs.notes())
        return rich.console.Group(*(table.to_rich() for table in tables), *notes)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values.

        Returns:
            dictionaries, lists, numbers and strings.
        """
        costs = self.costs
        return {
            "convention": CONVENTION,
            "notes": list(costs.notes()),
            "tasks": list(costs.tasks),
            "locations": list(costs.locations),
            "tree": [[list(cluster) for cluster in stage] for stage in self.tree.partitions],
            "params": costs.params,
            "flops": costs.flops,
            "separate_params": costs.separate_params,
            "separate_flops": costs.separate_flops,
            "reference_flops": costs.reference_flops,
            "activation_bytes": costs.activation_bytes,
            "uncounted": list(costs.uncounted),
            "only_here": dict(costs.only_here),
            "nodes": [asdict(node) for node in costs.nodes],
            "stitches": [asdict(stitch) | {"r2": None if isnan(stitch.r2) else stitch.r2} for stitch in costs.stitches],
            "stages": [asdict(total) for total in costs.per_stage()],
            "branches": [asdict(total) for total in costs.per_branch()],
            "by_task": [asdict(total) for total in costs.per_task()],
            "latency": _seconds(self.latencies),
            "node_latency": _seconds(self.node_latencies),
        }

    def to_json(self) -> str:
        """Write `to_dict` as JSON.

        Returns:
            the text.
        """
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def to_csv(self) -> str:
        """Write the table by node as comma-separated values.

        Returns:
            the text; numbers are not rounded, latencies in seconds.
        """
        return node_table(self.costs, self.node_latencies).to_csv()

    def to_markdown(self) -> str:
        """Write all tables and notes as Markdown.

        Returns:
            the text.
        """
        notes = "".join(f"- {note}\n" for note in self.costs.notes())
        return "\n".join(table.to_markdown() for table in self.tables()) + "\n" + notes

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the form that the suffix of `path` names: .csv, .json, .md or .html.

        Args:
            path: the file, written atomically.

        Raises:
            BranchnetError: another suffix.
        """
        suffix = Path(path).suffix.lower()
        if suffix == ".html":
            self.save_html(path)
            return
        forms = {".csv": self.to_csv, ".json": self.to_json, ".md": self.to_markdown}
        if suffix not in forms:
            raise BranchnetError(
                f"a report cannot be written as {Path(path).name!r}; expected a name in .csv, .json, .md or .html"
            )
        write_text(path, forms[suffix]())

    def save_html(self, path: str | os.PathLike[str], *, title: str = "Branched network") -> None:
        """Write one self-contained page; `branchnet.reporting.Page` holds more than costs.

        Args:
            path: the file, written atomically.
            title: the page's heading.
        """
        from branchnet.reporting.pages.page import Page  # here: tables need no matplotlib

        Page(title=title, report=self).save(path)


def report(
    branched: BranchedNetwork | GroupedNetworks,
    example: Example,
    *,
    networks: Mapping[str, nn.Module] | None = None,
    latency: bool = True,
    repeats: int = 20,
) -> Report:
    """Count what `branched` costs and measure how fast it runs on `example`.

    Args:
        branched: a branched network, which runs in eval mode and is as before afterwards; of `GroupedNetworks` what
            serves, without auxiliary tasks.
        example: what a single-task network takes: a tensor, or a tuple or dict of them; its batch size counts.
        networks: the single-task networks, to be timed against it, in turns, one after another on the same example.
        latency: whether to time at all: each node, and the whole.
        repeats: calls timed of each.

    Returns:
        the report; print it, or write it with `save`.

    Raises:
        BuildError: an example of another form than the network takes; networks of other tasks than the network's.

    >>> import torch, branchnet
    >>> networks = {task: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)) for task in ("a", "b")}
    >>> x = torch.rand(2, 4)
    >>> tree = branchnet.Tree.shared(["a", "b"], 1)
    >>> branched = branchnet.build(tree, networks, example=x, locations=["0"], init="donor")
    >>> report = branchnet.report(branched, x, networks=networks, repeats=3)
    >>> sorted(report.latencies)
    ['branched', 'separate']
    >>> report.costs.params, report.costs.separate_params
    (58, 98)
    """
    branched = as_one_network(branched)
    if networks is not None:
        check_by_task(networks, BuildError)
    if networks is not None and set(networks) != set(branched.tasks):
        raise BuildError(
            f"networks has the tasks {', '.join(map(repr, networks)) or 'none'}; expected one network for each of "
            f"{', '.join(map(repr, branched.tasks))}: the branched network is compared with all of them"
        )
    costs = network_costs(branched, example)
    if not latency:
        return Report(branched.tree, costs)
    measured: dict[str, nn.Module] = {} if networks is None else {"separate": SeparateNetworks(networks)}
    measured["branched"] = branched
    with ExitStack() as kept:
        for network in measured.values():
            kept.enter_context(saved(network))
            kept.enter_context(evaluation_mode(network))
        functions = {name: _bound(network, example) for name, network in measured.items()}
        whole = compare_latency(functions, example, repeats=repeats)
        nodes = node_latency(branched, example, repeats=repeats)
    return Report(branched.tree, costs, whole, nodes)


def node_latency(branched: BranchedNetwork, example: Example, *, repeats: int = 20) -> dict[str, Latency]:
    """Measure every node and head alone, on what it is called with when the network runs on `example`.

    Args:
        branched: the network.
        example: what a single-task network takes.
        repeats: calls timed of each.

    Returns:
        latencies by id.
    """
    inputs = capture_inputs(branched, example)
    return {
        member.id: measure_latency(
            _bound(member.module, *inputs[member.id][0], **inputs[member.id][1]), example, repeats=repeats
        )
        for member in branched.members()
    }


def _bound(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
    # Timed with the example, whose device is the module's too; a branched network takes a dict as one argument.
    return lambda *_, **__: module(*args, **kwargs)


def _seconds(latencies: Mapping[str, Latency] | None) -> dict[str, dict[str, float]] | None:
    if latencies is None:
        return None
    return {
        name: {"median": latency.median, "low": latency.low, "high": latency.high}
        for name, latency in latencies.items()
    }
