from .comparison import Change as Change
from .comparison import ComparedNetwork as ComparedNetwork
from .comparison import Comparison as Comparison
from .costing import NetworkCosts as NetworkCosts
from .costing import NodeCost as NodeCost
from .costing import network_costs as network_costs
from .measured_tree import MeasuredTree as MeasuredTree
from .pages.page import Page as Page
from .plots.affinity_plot import AffinityPlot as AffinityPlot
from .plots.affinity_plot import affinity_plot_data as affinity_plot_data
from .plots.affinity_plot import draw_affinity as draw_affinity
from .plots.depth_plot import plot_depth as plot_depth
from .plots.figures import save_figure as save_figure
from .plots.front_plot import FrontPlot as FrontPlot
from .plots.front_plot import draw_front as draw_front
from .plots.front_plot import front_plot_data as front_plot_data
from .plots.history_plot import HistoryPlot as HistoryPlot
from .plots.history_plot import draw_history as draw_history
from .plots.history_plot import history_plot_data as history_plot_data
from .plots.latency_plot import LatencyPlot as LatencyPlot
from .plots.latency_plot import draw_latency as draw_latency
from .plots.latency_plot import draw_latency_table as draw_latency_table
from .plots.latency_plot import latency_plot_data as latency_plot_data
from .plots.measured_plot import MeasuredPlot as MeasuredPlot
from .plots.measured_plot import draw_measured as draw_measured
from .plots.measured_plot import measured_plot_data as measured_plot_data
from .plots.metric_plot import MetricPlot as MetricPlot
from .plots.metric_plot import draw_metrics as draw_metrics
from .plots.metric_plot import metric_plot_data as metric_plot_data
from .plotting import plot as plot
from .plots.samples_plot import SamplesPlot as SamplesPlot
from .plots.samples_plot import TaskSamples as TaskSamples
from .plots.samples_plot import draw_samples as draw_samples
from .plots.samples_plot import samples_plot_data as samples_plot_data
from .plots.sharing_plot import draw_sharing as draw_sharing
from .plots.tree_plot import TreePlot as TreePlot
from .plots.tree_plot import draw_tree as draw_tree
from .plots.tree_plot import tree_plot_data as tree_plot_data
from .training_steps import step_table as step_table
from .summary import Report as Report
from .summary import node_latency as node_latency
from .summary import report as report

__all__ = [
    "AffinityPlot",
    "Change",
    "ComparedNetwork",
    "Comparison",
    "FrontPlot",
    "HistoryPlot",
    "LatencyPlot",
    "MeasuredPlot",
    "MeasuredTree",
    "MetricPlot",
    "NetworkCosts",
    "NodeCost",
    "Page",
    "Report",
    "SamplesPlot",
    "TaskSamples",
    "TreePlot",
    "affinity_plot_data",
    "draw_affinity",
    "draw_front",
    "draw_history",
    "draw_latency",
    "draw_latency_table",
    "draw_measured",
    "draw_metrics",
    "draw_samples",
    "draw_sharing",
    "draw_tree",
    "front_plot_data",
    "history_plot_data",
    "latency_plot_data",
    "measured_plot_data",
    "metric_plot_data",
    "network_costs",
    "node_latency",
    "plot",
    "plot_depth",
    "report",
    "samples_plot_data",
    "save_figure",
    "step_table",
    "tree_plot_data",
]
