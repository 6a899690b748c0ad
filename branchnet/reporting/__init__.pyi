from .affinity_plot import AffinityPlot as AffinityPlot
from .affinity_plot import affinity_plot_data as affinity_plot_data
from .affinity_plot import draw_affinity as draw_affinity
from .comparison import ComparedNetwork as ComparedNetwork
from .comparison import Comparison as Comparison
from .costing import NetworkCosts as NetworkCosts
from .costing import NodeCost as NodeCost
from .costing import network_costs as network_costs
from .figures import save_figure as save_figure
from .front_plot import FrontPlot as FrontPlot
from .front_plot import draw_front as draw_front
from .front_plot import front_plot_data as front_plot_data
from .latency import Latency as Latency
from .latency import compare_latency as compare_latency
from .latency import measure_latency as measure_latency
from .latency import ratio_interval as ratio_interval
from .latency_plot import LatencyPlot as LatencyPlot
from .latency_plot import draw_latency as draw_latency
from .latency_plot import latency_plot_data as latency_plot_data
from .metric_plot import MetricPlot as MetricPlot
from .metric_plot import draw_metrics as draw_metrics
from .metric_plot import metric_plot_data as metric_plot_data
from .page import Page as Page
from .samples_plot import SamplesPlot as SamplesPlot
from .samples_plot import TaskSamples as TaskSamples
from .samples_plot import draw_samples as draw_samples
from .samples_plot import samples_plot_data as samples_plot_data
from .summary import Report as Report
from .summary import node_latency as node_latency
from .summary import report as report
from .tree_plot import TreePlot as TreePlot
from .tree_plot import draw_tree as draw_tree
from .tree_plot import tree_plot_data as tree_plot_data

__all__ = [
    "AffinityPlot",
    "ComparedNetwork",
    "Comparison",
    "FrontPlot",
    "Latency",
    "LatencyPlot",
    "MetricPlot",
    "NetworkCosts",
    "NodeCost",
    "Page",
    "Report",
    "SamplesPlot",
    "TaskSamples",
    "TreePlot",
    "affinity_plot_data",
    "compare_latency",
    "draw_affinity",
    "draw_front",
    "draw_latency",
    "draw_metrics",
    "draw_samples",
    "draw_tree",
    "front_plot_data",
    "latency_plot_data",
    "measure_latency",
    "metric_plot_data",
    "network_costs",
    "node_latency",
    "ratio_interval",
    "report",
    "samples_plot_data",
    "save_figure",
    "tree_plot_data",
]
