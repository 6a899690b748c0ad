from .exporting import Exported as Exported
from .exporting import export as export
from .fastest_runtime import Runtime as Runtime
from .fastest_runtime import runtime as runtime
from .saving import load as load
from .saving import save as save
from .weight_files import load_weights as load_weights
from .weight_files import read_weights as read_weights
from .weight_files import save_weights as save_weights

__all__ = [
    "Exported",
    "Runtime",
    "export",
    "load",
    "load_weights",
    "read_weights",
    "runtime",
    "save",
    "save_weights",
]
