"""Networks compared: size, speed, and every task's metric, each against the separate single-task networks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from branchnet.inference.latency import Latency
from branchnet.reporting.plots.latency_plot import LatencyPlot, latency_plot_data
from branchnet.reporting.plots.metric_plot import MetricPlot, metric_plot_data
from branchnet.reporting.tables import Cell, Column, Table
from branchnet.reporting.units import milliseconds, percent, si, signed, significant
from branchnet.training.judging.performance import absolute_changes, mean_of_defined, relative_changes

BEFORE_TRAINING, WITHOUT_STITCHES, CONSTANT = "before training", "without stitches", "constant"
"""What references are called: the branched network before training, its donors' weights alone, constant answers."""


@dataclass(frozen=True)
class Change:
    """How a task's metric differs from the baseline's; better is positive.

    Attributes:
        points: in the metric's own unit.
        percent: relative to the size of the baseline's metric; NaN where that is 0 and the other is not.
    """

    points: float
    percent: float

    def __str__(self) -> str:
        """Both, as in `+0.3, +1.2 %`."""
        relative = "from 0" if math.isnan(self.percent) else f"{signed(self.percent, 1)} %"
        return f"{significant(self.points)}, {relative}"

    def to_dict(self) -> dict[str, float | None]:
        """Both as JSON knows numbers.

        Returns:
            `points` and `percent`, None in place of NaN.
        """
        return {"points": self.points, "percent": None if math.isnan(self.percent) else self.percent}


@dataclass(frozen=True)
class ComparedNetwork:
    """One network of a comparison.

    Attributes:
        name: which network.
        metrics: each task's metric.
        params: its parameters, or None.
        flops: multiply-adds for one input, or None.
        latency: latency by how it is run (`"eager"`, `"compiled"`).
        reference: it is none of the networks to choose from, but what the branched one was before, or constant answers.
    """

    name: str
    metrics: Mapping[str, float]
    params: int | None = None
    flops: int | None = None
    latency: Mapping[str, Latency] = field(default_factory=dict)
    reference: bool = False


@dataclass(frozen=True)
class Comparison:
    """Networks compared on the same tasks.

    Attributes:
        networks: the separate single-task networks first.
        metric_names: what each task's metric is called.
        lower_is_better: whether a smaller metric is better, by task.
        further: further metrics, by task, metric and network.
        samples: how many samples each task's metric is of, where that is known.
    """

    networks: tuple[ComparedNetwork, ...]
    metric_names: Mapping[str, str]
    lower_is_better: Mapping[str, bool]
    further: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    samples: Mapping[str, int] = field(default_factory=dict)

    @property
    def baseline(self) -> ComparedNetwork:
        """The network that the others are compared with."""
        return self.networks[0]

    @property
    def choices(self) -> tuple[ComparedNetwork, ...]:
        """The networks but the references."""
        return tuple(network for network in self.networks if not network.reference)

    def reference(self, name: str) -> ComparedNetwork | None:
        """Look up a reference.

        Args:
            name: what it is called.

        Returns:
            the reference, or None.
        """
        return next((network for network in self.networks if network.reference and network.name == name), None)

    def delta(self, network: ComparedNetwork) -> float:
        """Compute the multi-task performance of one network against the baseline (Maninis et al. 2019).

        Args:
            network: one of `networks`.

        Returns:
            the mean relative change over tasks, in percent; better is positive. Tasks without one do not count.
        """
        return mean_of_defined(relative_changes(self.baseline.metrics, network.metrics, self.lower_is_better))

    def changes(self, network: ComparedNetwork) -> dict[str, Change]:
        """Compute how each task's metric differs from the baseline's.

        Args:
            network: one of `networks`.

        Returns:
            the change of each task, in the metric's unit and in percent; better is positive.
        """
        compared = self.baseline.metrics, network.metrics, self.lower_is_better
        points, relative = absolute_changes(*compared), relative_changes(*compared)
        return {task: Change(points[task], relative[task]) for task in points}

    def size_table(self) -> Table:
        """Tabulate parameters, FLOPs, latencies and Delta.

        Returns:
            one row for each network but the references.
        """
        ways = list(dict.fromkeys(way for network in self.choices for way in network.latency))
        columns = [Column("network"), Column("parameters", si), Column("share", percent), Column("FLOPs", si)]
        columns += [Column(f"latency, {way}", milliseconds, "s") for way in ways]
        columns.append(Column("\N{GREEK CAPITAL LETTER DELTA}", _percent_signed, "%"))
        rows = []
        for network in self.choices:
            row: list[Cell] = [network.name, network.params, self._share(network), network.flops]
            row += [network.latency[way].median if way in network.latency else None for way in ways]
            rows.append((*row, None if network is self.baseline else self.delta(network)))
        return Table("Networks compared", tuple(columns), tuple(rows))

    def task_table(self) -> Table:
        """Tabulate every task's metric, of all networks but the first with its change in points and in percent.

        Returns:
            one row for each task, one column for each network but the references; the last row is Delta.
        """
        changes = [self.changes(network) for network in self.choices[1:]]
        columns = [Column("task"), *([Column("samples", str)] if self.samples else []), Column("metric")]
        columns += [Column(network.name, _metric) for network in self.choices]
        rows: list[tuple[Cell, ...]] = []
        for task, name in self.metric_names.items():
            arrow = "\N{DOWNWARDS ARROW}" if self.lower_is_better[task] else "\N{UPWARDS ARROW}"
            pairs = zip(self.choices[1:], changes, strict=True)
            compared = (f"{_metric(network.metrics[task])} ({change[task]})" for network, change in pairs)
            count = [self.samples.get(task)] if self.samples else []
            rows.append((task, *count, f"{name} {arrow}", self.baseline.metrics[task], *compared))
        deltas = [None if network is self.baseline else self.delta(network) for network in self.choices]
        written = [None if delta is None else _percent_signed(delta) for delta in deltas]
        blank = [None] if self.samples else []
        rows.append(("mean change (\N{GREEK CAPITAL LETTER DELTA})", *blank, "%", *written))
        return Table("Metric of each task", tuple(columns), tuple(rows), frozenset({len(rows) - 1}))

    def metric_plot(self) -> MetricPlot:
        """Prepare bars of the change of every task.

        Returns:
            what the bars show, of every network but the first and the references.
        """
        others = {network.name: network.metrics for network in self.choices[1:]}
        return metric_plot_data(self.baseline.metrics, others, self.lower_is_better)

    def latency_plot(self) -> LatencyPlot | None:
        """Prepare bars of all latencies.

        Returns:
            what the bars show, with ratios to the first network; None where nothing was timed.
        """
        measured = {
            f"{network.name}, {way}": latency for network in self.choices for way, latency in network.latency.items()
        }
        return latency_plot_data(measured, baseline=next(iter(measured))) if measured else None

    def _share(self, network: ComparedNetwork) -> float | None:
        return network.params / self.baseline.params if network.params and self.baseline.params else None


def _metric(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _percent_signed(value: float) -> str:
    return f"{signed(value)} %"
