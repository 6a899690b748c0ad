"""`branchnet.plot`: the picture of whatever the library returns."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from branchnet.affinity.tensor import Affinity
from branchnet.clustering.grouping.sharing_comparison import SharingComparison
from branchnet.clustering.search_result import SearchResult
from branchnet.clustering.trees.tree import Tree
from branchnet.errors import BranchnetError
from branchnet.inference.latency_tables import LatencyTable
from branchnet.reporting.measured_tree import MeasuredTree
from branchnet.reporting.plots.affinity_plot import affinity_plot_data, draw_affinity
from branchnet.reporting.plots.front_plot import draw_front, front_plot_data
from branchnet.reporting.plots.fronts.surface_plot import draw_surface, surface_plot_data
from branchnet.reporting.plots.history_plot import draw_history, history_plot_data
from branchnet.reporting.plots.latency_plot import draw_latency_table
from branchnet.reporting.plots.measured_plot import draw_measured, measured_plot_data
from branchnet.reporting.plots.sharing_plot import draw_sharing
from branchnet.reporting.plots.studies.study_plot import draw_study, study_plot_data
from branchnet.reporting.plots.tree_plot import draw_tree, tree_plot_data
from branchnet.reporting.summary import Report
from branchnet.training.optimization.history import History
from branchnet.training.studies.study import Study

_KINDS = (
    "an Affinity, a Tree, SearchResults (as pareto_front returns them), MeasuredTrees (as RunResult.measured holds "
    "them), a LatencyTable, a Report, a History or a Study"
)


def plot(x: Any, **options: Any) -> Figure:
    """Draw what the library returned.

    Args:
        x: what to draw:

            - an `Affinity`: a heat map for each location. Tasks are ordered by average linkage, or with `tree=` as its
              leaves, and each cluster is framed.
            - a `Tree`: stages from left to right. `locations=` names them, `stage_params=` makes nodes as thick as they
              have parameters.
            - `SearchResult`s, as `pareto_front` returns them: cost against size, or by colour over two sizes.
              `separate_size=` is what sizes are a share of, `chosen=` a result to mark. One result alone: its tree.
            - trees that were measured before training, as `RunResult.measured` holds them: measured against predicted
              losses.
            - a `LatencyTable`: milliseconds against the number of copies, for each stage.
            - a `Report`: the tree, its nodes as thick as they have parameters.
            - a `History` of training: losses over steps.
            - a `Study`: differences of every arm to the separate networks, with their intervals.
            - a `SharingComparison`: the fronts of groups and of trees.
        options: as named above.

    Returns:
        a matplotlib figure, not registered with pyplot; `figure.savefig(path)` writes it.

    Raises:
        BranchnetError: something else, or something empty.

    >>> import branchnet
    >>> tree = branchnet.Tree(["depth", "edges"], [[["depth", "edges"]], [["depth"], ["edges"]]])
    >>> figure = branchnet.plot(tree, locations=["layer1", "layer2"])
    >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
    ['layer1', 'layer2']
    """
    return _figure(x, **options)


@functools.singledispatch
def _figure(x: Any, **options: Any) -> Figure:
    raise BranchnetError(f"an object of type {type(x).__name__} cannot be drawn; expected {_KINDS}")


@_figure.register
def _(x: Affinity, *, tree: Tree | None = None) -> Figure:
    return draw_affinity(affinity_plot_data(x, tree=tree))


@_figure.register
def _(x: Tree, *, locations: Sequence[str] | None = None, stage_params: Sequence[float] | None = None) -> Figure:
    return draw_tree(tree_plot_data(x, locations=locations, stage_params=stage_params))


@_figure.register(list)
@_figure.register(tuple)
def _(
    x: Sequence[SearchResult] | Sequence[MeasuredTree],
    *,
    separate_size: float | None = None,
    chosen: SearchResult | None = None,
) -> Figure:
    trees = [item for item in x if isinstance(item, MeasuredTree)]
    if trees and len(trees) == len(x):
        return draw_measured(measured_plot_data(trees))
    results = [item for item in x if isinstance(item, SearchResult)]
    if others := sorted({type(item).__name__ for item in x if not isinstance(item, SearchResult)}):
        raise BranchnetError(f"a {type(x).__name__} of {', '.join(others)} cannot be drawn; expected {_KINDS}")
    if any(result.also for result in results):
        return draw_surface(surface_plot_data(results, chosen))
    objective = f"clustering cost ({results[0].objective})" if results else "clustering cost"
    resource = {"params": "parameters", "flops": "FLOPs"}.get(results[0].unit, results[0].unit) if results else ""
    return draw_front(front_plot_data(results, separate_size, chosen=chosen, resource=resource, objective=objective))


@_figure.register
def _(x: SearchResult) -> Figure:
    return draw_tree(tree_plot_data(x.tree))


@_figure.register
def _(x: LatencyTable) -> Figure:
    return draw_latency_table(x)


@_figure.register
def _(x: Report) -> Figure:
    costs = x.costs
    data = tree_plot_data(
        x.tree, locations=costs.locations, stage_params=costs.node_params(), stitched=costs.stitch_marks()
    )
    return draw_tree(data)


@_figure.register
def _(x: History) -> Figure:
    return draw_history(history_plot_data(x))


@_figure.register
def _(x: Study) -> Figure:
    return draw_study(study_plot_data(x))


@_figure.register
def _(x: SharingComparison) -> Figure:
    return draw_sharing(x)
