"""A tree drawn: stages from left to right, one pipe for each node, as thick as the node has parameters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from branchnet.reporting.plots.figures import bare, shorten, styled
from branchnet.reporting.plots.palette import GRID, INK, MUTED, SHARED, task_marks
from branchnet.reporting.units import si
from branchnet.utils.visible_text import visible

if TYPE_CHECKING:
    from branchnet.clustering.trees.tree import Tree

_BODY = 0.7
"""Length of a node, where stages are 1 apart: the rest is for the curves."""
_THICKEST, _THINNEST = 0.72, 0.07
"""In rows: below 1, so that neighbours do not touch, and above 0, so that a node without parameters is seen."""


@dataclass(frozen=True)
class TreeNode:
    """One node: its stage, its tasks in leaf order, the row of its centre, its thickness in rows."""

    stage: int
    tasks: tuple[str, ...]
    row: float
    thickness: float


@dataclass(frozen=True)
class TreeLink:
    """An edge between two nodes, as indices into `TreePlot.nodes`; `chain` where both serve the same tasks.

    It is `stitched` where a stitching layer lies on it.
    """

    parent: int
    child: int
    chain: bool
    stitched: bool = False


@dataclass(frozen=True)
class TreePlot:
    """What a drawn tree shows.

    Attributes:
        tasks: task names from the top row down, each cluster's tasks together.
        task_order: the same names in the order that decides their colours.
        locations: one name per stage.
        stage_params: parameters of one node of each stage, or None where unknown.
        widths: nodes per stage.
        nodes, links: as drawn; a row is one task high.
        stitched_heads: tasks with a stitching layer in front of their heads.
    """

    tasks: tuple[str, ...]
    task_order: tuple[str, ...]
    locations: tuple[str, ...]
    stage_params: tuple[float, ...] | None
    widths: tuple[int, ...]
    nodes: tuple[TreeNode, ...]
    links: tuple[TreeLink, ...]
    stitched_heads: tuple[str, ...] = ()


def leaf_order(tree: Tree) -> tuple[str, ...]:
    """Return the tasks in an order that keeps every cluster of every stage together; earlier clusters first.

    Args:
        tree: the tree.
    """
    # Sorted by the clusters on the path: tasks of one cluster agree in all numbers up to that stage.
    path = {task: [tree.cluster_of(task, stage) for stage in range(tree.depth)] for task in tree.tasks}
    return tuple(sorted(tree.tasks, key=path.__getitem__))


def tree_plot_data(
    tree: Tree,
    *,
    locations: Sequence[str] | None = None,
    stage_params: Sequence[float] | None = None,
    stitched: Collection[tuple[int, int]] = (),
) -> TreePlot:
    """Place everything in the drawing of `tree`.

    Args:
        tree: the tree.
        locations: one name per stage; by default their numbers.
        stage_params: parameters of one node of each stage, which make its thickness; by default all are equal.
        stitched: stages and numbers of the nodes with a stitching layer in front; (D, i) for the head of task i.

    Returns:
        what is drawn where.
    """
    tasks = leaf_order(tree)
    row = {task: float(i) for i, task in enumerate(tasks)}
    largest = max(stage_params or (0,)) or 1.0
    nodes: list[TreeNode] = []
    links: list[TreeLink] = []
    above: dict[str, int] = {}
    for stage, clusters in enumerate(tree.partitions):
        share = stage_params[stage] / largest if stage_params else 0.5
        for number, cluster in enumerate(clusters):
            if not tree.is_node(stage, number):
                continue  # the head hangs off the last node of the task
            members = tuple(sorted(cluster, key=row.__getitem__))
            centre = (row[members[0]] + row[members[-1]]) / 2
            nodes.append(TreeNode(stage, members, centre, _THINNEST + (_THICKEST - _THINNEST) * share))
            if stage:
                parent = above[members[0]]
                links.append(
                    TreeLink(
                        parent,
                        len(nodes) - 1,
                        chain=nodes[parent].tasks == members,
                        stitched=(stage, number) in stitched,
                    )
                )
            above.update(dict.fromkeys(members, len(nodes) - 1))
    return TreePlot(
        tasks=tasks,
        task_order=tuple(tree.tasks),
        locations=tuple(locations) if locations else tuple(str(d) for d in range(len(tree.partitions))),
        stage_params=tuple(map(float, stage_params)) if stage_params else None,
        widths=tuple(tree.copies),
        nodes=tuple(nodes),
        links=tuple(links),
        stitched_heads=tuple(task for i, task in enumerate(tree.tasks) if (tree.depth, i) in stitched),
    )


@styled
def draw_tree(plot: TreePlot) -> Figure:
    """Draw shared nodes grey, nodes of one task in its colour, and the task's mark and name at the end.

    Args:
        plot: what to show.

    Returns:
        a matplotlib figure.
    """
    rows, depth = len(plot.tasks), len(plot.locations)
    row_height = 0.5 if rows <= 8 else 0.36 if rows <= 16 else 0.25
    figure = Figure(figsize=(1.5 + 1.05 * depth, 0.9 + row_height * rows))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.75, depth + 0.2), ylim=(rows - 0.4, -1.0))
    bare(axes)
    _draw_stages(axes, plot)
    _draw_links(axes, plot)
    _draw_nodes(axes, plot)
    _draw_tasks(axes, plot)
    _draw_stitches(axes, plot)
    return figure


def _draw_stages(axes: Axes, plot: TreePlot) -> None:
    depth = len(plot.locations)
    longest = 11 if plot.stage_params else 12
    labels = [shorten(name, longest) for name in plot.locations]
    if plot.stage_params:
        labels = [
            f"{label}\n{si(params)} \N{MULTIPLICATION SIGN} {width}"
            for label, params, width in zip(labels, plot.stage_params, plot.widths, strict=True)
        ]
    axes.set_xticks([d + _BODY / 2 for d in range(depth)], labels)
    axes.set_yticks([])
    for d in range(depth):
        axes.axvline(d + _BODY / 2, color=GRID, linewidth=0.6, linestyle=(0, (1, 3)), zorder=0)


def _draw_links(axes: Axes, plot: TreePlot) -> None:
    entry = (len(plot.tasks) - 1) / 2
    for node in plot.nodes:
        if node.stage == 0:
            _curve(axes, (-0.3, entry), (0.0, node.row), GRID)
    axes.plot(-0.3, entry, marker="s", markersize=5, color=MUTED)
    axes.text(-0.36, entry, "input", ha="right", va="center", fontsize=7.5, color=MUTED)
    for link in plot.links:
        parent, child = plot.nodes[link.parent], plot.nodes[link.child]
        colour = _colour(plot, child)
        left, right = parent.stage + _BODY, float(child.stage)
        if link.chain:
            _band(axes, (left, parent.row, parent.thickness), (right, child.row, child.thickness), colour)
        else:
            _curve(axes, (left, parent.row), (right, child.row), colour)


def _draw_nodes(axes: Axes, plot: TreePlot) -> None:
    starts = {i for i, node in enumerate(plot.nodes) if node.stage == 0}
    starts |= {link.child for link in plot.links if not link.chain}
    for i, node in enumerate(plot.nodes):
        end = node.stage + _BODY
        _band(axes, (node.stage, node.row, node.thickness), (end, node.row, node.thickness), _colour(plot, node))
        if i in starts and len(node.tasks) > 1:
            axes.annotate(
                f"{len(node.tasks)} tasks",
                (node.stage + _BODY / 2, node.row - node.thickness / 2),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=7,
                color=INK,
            )


def _draw_tasks(axes: Axes, plot: TreePlot) -> None:
    depth = len(plot.locations)
    marks = task_marks(plot.task_order)
    leaf = _leaves(plot)
    for row, task in enumerate(plot.tasks):
        mark = marks[task]
        _curve(axes, (leaf[task].stage + _BODY, leaf[task].row), (depth, row), mark.colour)
        axes.plot(depth + 0.02, row, marker=mark.marker, markersize=8, color=mark.colour, markeredgewidth=0)
        axes.annotate(visible(task), (depth + 0.02, row), xytext=(9, 0), textcoords="offset points", va="center")


def _leaves(plot: TreePlot) -> dict[str, TreeNode]:
    """The last node of each task; nodes stand in the order of the stages."""
    return {task: node for node in plot.nodes for task in node.tasks}


def _draw_stitches(axes: Axes, plot: TreePlot) -> None:
    children = [plot.nodes[link.child] for link in plot.links if link.stitched]
    places = [(float(node.stage), node.row) for node in children]
    depth = len(plot.locations)
    for task in plot.stitched_heads:  # half the way from its last node to its mark
        last = _leaves(plot)[task]
        places.append(((last.stage + _BODY + depth) / 2, (last.row + plot.tasks.index(task)) / 2))
    for x, y in places:
        axes.plot(x, y, marker="D", markersize=5.5, color="white", markeredgecolor=INK, markeredgewidth=1.2, zorder=3)


def _curve(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    middle = (start[0] + end[0]) / 2
    path = Path([start, (middle, start[1]), (middle, end[1]), end], [Path.MOVETO, *[Path.CURVE4] * 3])
    axes.add_patch(PathPatch(path, fill=False, edgecolor=colour, linewidth=2, zorder=0.9, capstyle="butt"))


def _band(axes: Axes, left: tuple[float, float, float], right: tuple[float, float, float], colour: str) -> None:
    """Fill the smooth band between two vertical edges, each (x, row of its middle, thickness)."""
    (x0, y0, h0), (x1, y1, h1) = left, right
    middle = (x0 + x1) / 2
    upper = [(x0, y0 - h0 / 2), (middle, y0 - h0 / 2), (middle, y1 - h1 / 2), (x1, y1 - h1 / 2)]
    lower = [(x1, y1 + h1 / 2), (middle, y1 + h1 / 2), (middle, y0 + h0 / 2), (x0, y0 + h0 / 2)]
    codes = [Path.MOVETO, *[Path.CURVE4] * 3, Path.LINETO, *[Path.CURVE4] * 3, Path.CLOSEPOLY]
    path = Path([*upper, *lower, upper[0]], codes)
    axes.add_patch(PathPatch(path, facecolor=colour, edgecolor=colour, linewidth=0.3))


def _colour(plot: TreePlot, node: TreeNode) -> str:
    return task_marks(plot.task_order)[node.tasks[0]].colour if len(node.tasks) == 1 else SHARED
