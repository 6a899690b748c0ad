from .executorch_methods import ExecutorchProgram as ExecutorchProgram
from .executorch_methods import executorch_program as executorch_program
from .exporting import Exported as Exported
from .exporting import export as export
from .fastest_runtime import Runtime as Runtime
from .fastest_runtime import runtime as runtime
from .hub.hub_card import CardFields as CardFields
from .hub.publishing import from_pretrained as from_pretrained
from .hub.publishing import push_to_hub as push_to_hub
from .hub.publishing import save_pretrained as save_pretrained
from .hub.source_models import SourceModel as SourceModel
from .onnx_files.onnx_network import OnnxNetwork as OnnxNetwork
from .onnx_files.onnx_network import load_onnx as load_onnx
from .onnx_files.task_files import onnx_task_files as onnx_task_files
from .onnx_files.triton_repository import triton_repository as triton_repository
from .quantization.quantized import NodeCost as NodeCost
from .quantization.quantized import Quantized as Quantized
from .quantization.quantizing import quantize as quantize
from .saving import load as load
from .saving import save as save
from .weight_files import load_weights as load_weights
from .weight_files import read_weights as read_weights
from .weight_files import save_weights as save_weights

__all__ = [
    "CardFields",
    "ExecutorchProgram",
    "Exported",
    "NodeCost",
    "OnnxNetwork",
    "Quantized",
    "Runtime",
    "SourceModel",
    "executorch_program",
    "export",
    "from_pretrained",
    "load",
    "load_onnx",
    "load_weights",
    "onnx_task_files",
    "push_to_hub",
    "quantize",
    "read_weights",
    "runtime",
    "save",
    "save_pretrained",
    "save_weights",
    "triton_repository",
]
