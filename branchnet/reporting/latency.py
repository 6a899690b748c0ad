"""The builder's latency measurement, under the names that reports are written with."""

from branchnet.builder.timing import Latency as Latency
from branchnet.builder.timing import compare_latency as compare_latency
from branchnet.builder.timing import measure_latency as measure_latency
from branchnet.builder.timing import ratio_interval as ratio_interval
