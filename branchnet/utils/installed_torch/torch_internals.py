"""Every private name of torch that branchnet uses: imported from here, found when first used, with what it is for.

A name with a leading underscore may go in any release of torch. So no other file of the package names one (a test reads
them all), and a release that has moved one is met here: the error says which name it is, what it serves, and which
versions of torch are known to have it. `missing()` looks for all of them, as `branchnet checks` does.

The attributes in `INSTANCE_ATTRIBUTES` are read on objects of torch, where they are, and are listed here only.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from branchnet.errors import TorchVersionError

if TYPE_CHECKING:
    from torch._dynamo import OptimizedModule as OptimizedModule
    from torch._dynamo import mark_dynamic as mark_dynamic
    from torch._dynamo import maybe_mark_dynamic as maybe_mark_dynamic
    from torch._dynamo.exc import TorchDynamoException as TorchDynamoException
    from torch._inductor import aoti_compile_and_package as aoti_compile_and_package
    from torch._inductor import aoti_load_package as aoti_load_package
    from torch._inductor import config as inductor_config
    from torch._inductor import list_mode_options as list_mode_options
    from torch._ops import OpOverload as OpOverload
    from torch._ops import OpOverloadPacket as OpOverloadPacket
    from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
    from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
    from torch.fx.node import _get_qualified_name as qualified_name
    from torch.nn.modules.batchnorm import _BatchNorm as BatchNormBase
    from torch.nn.modules.batchnorm import _NormBase as NormBase
    from torch.nn.modules.conv import _ConvNd as ConvBase
    from torch.nn.modules.dropout import _DropoutNd as DropoutBase
    from torch.nn.modules.instancenorm import _InstanceNorm as InstanceNormBase
    from torch.utils import _pytree as pytree
    from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
    from torch.utils._pytree import TreeSpec as TreeSpec
    from torch.utils._pytree import tree_flatten as tree_flatten
    from torch.utils._pytree import tree_leaves as tree_leaves
    from torch.utils._pytree import tree_map as tree_map
    from torch.utils._pytree import tree_map_only as tree_map_only
    from torch.utils._pytree import tree_structure as tree_structure
    from torch.utils._pytree import tree_unflatten as tree_unflatten
    from torch.utils._sympy.functions import Mod as Mod
    from torch.utils._sympy.functions import PythonMod as PythonMod
    from torch.utils._sympy.printers import PythonPrinter as PythonPrinter

    pooling_function: Any
    cpu_attention_operator: Any
    linear_operator: Any
    assert_metadata_operator: Any
    assert_scalar_operator: Any
    assert_async_operator: Any

__all__ = [
    "BatchNormBase",
    "ConvBase",
    "DropoutBase",
    "FakeTensor",
    "FakeTensorMode",
    "InstanceNormBase",
    "Mod",
    "NormBase",
    "OpOverload",
    "OpOverloadPacket",
    "OptimizedModule",
    "PythonMod",
    "PythonPrinter",
    "TorchDispatchMode",
    "TorchDynamoException",
    "TreeSpec",
    "aoti_compile_and_package",
    "aoti_load_package",
    "assert_async_operator",
    "assert_metadata_operator",
    "assert_scalar_operator",
    "cpu_attention_operator",
    "inductor_config",
    "linear_operator",
    "list_mode_options",
    "mark_dynamic",
    "maybe_mark_dynamic",
    "missing",
    "pooling_function",
    "pytree",
    "qualified_name",
    "tree_flatten",
    "tree_leaves",
    "tree_map",
    "tree_map_only",
    "tree_structure",
    "tree_unflatten",
]

TESTED = ("2.10", "2.13")
"""The first and the last minor version of torch that the tests were run with."""


@dataclass(frozen=True)
class Internal:
    """Where torch has a private name, and what it is used for.

    Attributes:
        module: the module to import.
        path: the attributes to follow from there, with dots; empty for the module itself.
        purpose: what does not work without it.
    """

    module: str
    path: str
    purpose: str

    @property
    def name(self) -> str:
        """The name as code would write it."""
        return f"{self.module}.{self.path}".rstrip(".")

    def find(self) -> Any:
        """Look it up.

        Returns:
            What torch has under that name.

        Raises:
            TorchVersionError: this version of torch has no such name.
        """
        try:
            found: Any = importlib.import_module(self.module)
            for part in filter(None, self.path.split(".")):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise TorchVersionError(
                f"torch {torch.__version__} has no {self.name}, which branchnet needs for {self.purpose}; expected "
                f"torch from {TESTED[0]} to {TESTED[1]}: install one of those, or a newer branchnet ({error})"
            ) from error
        return found


_NESTED = "inputs and outputs that are nested"
_COMPILING = "compiling nodes"
_COUNTING = "counting multiply-adds and reading what operators do"
_TRACING = "tracing networks"
_LAYERS = "recognising layers"

INTERNALS = {
    "OptimizedModule": Internal("torch._dynamo", "OptimizedModule", "networks that torch.compile has returned"),
    "mark_dynamic": Internal("torch._dynamo", "mark_dynamic", _COMPILING),
    "maybe_mark_dynamic": Internal("torch._dynamo", "maybe_mark_dynamic", _COMPILING),
    "TorchDynamoException": Internal("torch._dynamo.exc", "TorchDynamoException", _COMPILING),
    "aoti_compile_and_package": Internal("torch._inductor", "aoti_compile_and_package", "AOTInductor packages"),
    "aoti_load_package": Internal("torch._inductor", "aoti_load_package", "AOTInductor packages"),
    "inductor_config": Internal("torch._inductor", "config", _COMPILING),
    "list_mode_options": Internal("torch._inductor", "list_mode_options", _COMPILING),
    "OpOverload": Internal("torch._ops", "OpOverload", _TRACING),
    "OpOverloadPacket": Internal("torch._ops", "OpOverloadPacket", _TRACING),
    "FakeTensor": Internal("torch._subclasses.fake_tensor", "FakeTensor", _TRACING),
    "FakeTensorMode": Internal("torch._subclasses.fake_tensor", "FakeTensorMode", _TRACING),
    "qualified_name": Internal("torch.fx.node", "_get_qualified_name", "pickling traced networks"),
    "BatchNormBase": Internal("torch.nn.modules.batchnorm", "_BatchNorm", _LAYERS),
    "NormBase": Internal("torch.nn.modules.batchnorm", "_NormBase", _LAYERS),
    "ConvBase": Internal("torch.nn.modules.conv", "_ConvNd", _LAYERS),
    "DropoutBase": Internal("torch.nn.modules.dropout", "_DropoutNd", _LAYERS),
    "InstanceNormBase": Internal("torch.nn.modules.instancenorm", "_InstanceNorm", _LAYERS),
    "pytree": Internal("torch.utils._pytree", "", _NESTED),
    "TorchDispatchMode": Internal("torch.utils._python_dispatch", "TorchDispatchMode", _COUNTING),
    "TreeSpec": Internal("torch.utils._pytree", "TreeSpec", _NESTED),
    "tree_flatten": Internal("torch.utils._pytree", "tree_flatten", _NESTED),
    "tree_leaves": Internal("torch.utils._pytree", "tree_leaves", _NESTED),
    "tree_map": Internal("torch.utils._pytree", "tree_map", _NESTED),
    "tree_map_only": Internal("torch.utils._pytree", "tree_map_only", _NESTED),
    "tree_structure": Internal("torch.utils._pytree", "tree_structure", _NESTED),
    "tree_unflatten": Internal("torch.utils._pytree", "tree_unflatten", _NESTED),
    "Mod": Internal("torch.utils._sympy.functions", "Mod", "the sizes that a traced network takes"),
    "PythonMod": Internal("torch.utils._sympy.functions", "PythonMod", "the sizes that a traced network takes"),
    "PythonPrinter": Internal("torch.utils._sympy.printers", "PythonPrinter", "the sizes that a traced network takes"),
    "pooling_function": Internal("torch", "_C._nn.adaptive_avg_pool2d", _COUNTING),
    "cpu_attention_operator": Internal("torch", "ops.aten._scaled_dot_product_flash_attention_for_cpu", _COUNTING),
    "linear_operator": Internal("torch", "ops.mkldnn._linear_pointwise", "half of a symmetric product, on CPUs"),
    "assert_metadata_operator": Internal("torch", "ops.aten._assert_tensor_metadata.default", _TRACING),
    "assert_scalar_operator": Internal("torch", "ops.aten._assert_scalar.default", _TRACING),
    "assert_async_operator": Internal("torch", "ops.aten._assert_async.msg", _TRACING),
}
"""By the name that this module has it under."""

INSTANCE_ATTRIBUTES = {
    "_backward_hooks": "hooks of a tensor",
    "_buffers": "buffers of a module itself",
    "_cdata": "the address of a storage",
    "_forward_hooks": "hooks of a module",
    "_forward_pre_hooks": "hooks of a module",
    "_modules": "children of a module, those that are None too",
    "_non_persistent_buffers_set": "names of buffers that are in no state_dict",
    "_orig_mod": "the network inside an OptimizedModule",
    "_parameters": "parameters of a module itself",
    "_version": "how often a tensor was changed in place",
}
"""Private attributes of modules, tensors and storages that the package reads, and what they hold."""


def missing() -> dict[str, str]:
    """Look for every private name.

    Returns:
        By private name of torch, the error, for those that the installed torch lacks.
    """
    errors = {internal.name: _error_of(internal) for internal in INTERNALS.values()}
    return {name: error for name, error in errors.items() if error}


def _error_of(internal: Internal) -> str:
    try:
        internal.find()
    except TorchVersionError as error:
        return str(error)
    return ""


def __getattr__(name: str) -> Any:
    """Find a private name when it is first used, and keep it."""
    if name not in INTERNALS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = INTERNALS[name].find()
    return found
