from .compilation import CompiledNetwork as CompiledNetwork
from .compilation import compile as compile
from .fusion import FusedNetwork as FusedNetwork
from .fusion import FusedNodes as FusedNodes
from .inference_transforms import prepare as prepare
from .latency import Latency as Latency
from .latency import compare_latency as compare_latency
from .latency import measure_latency as measure_latency
from .latency import ratio_interval as ratio_interval
from .latency_tables import LatencyTable as LatencyTable
from .latency_tables import latency_table as latency_table
from .schedule import Schedule as Schedule
from .schedule import Step as Step
from .schedule import make_schedule as make_schedule
from .torch_compile import CompileOptions as CompileOptions
from .torch_compile import compiler_problem as compiler_problem

__all__ = [
    "CompileOptions",
    "CompiledNetwork",
    "FusedNetwork",
    "FusedNodes",
    "Latency",
    "LatencyTable",
    "Schedule",
    "Step",
    "compare_latency",
    "compile",
    "compiler_problem",
    "latency_table",
    "make_schedule",
    "measure_latency",
    "prepare",
    "ratio_interval",
]
