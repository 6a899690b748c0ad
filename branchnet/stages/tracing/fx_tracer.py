"""Trace a network's forward pass with torch.fx, keeping modules without children whole.

A module without children is kept as one node, so dropout, drop-path and batch normalisation keep their behaviour in
both modes and every parameter keeps its name. A module whose code fx cannot trace (it looks at values, say) is kept
whole too, and the network is traced again around it.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from branchnet.errors import SplitError
from branchnet.stages.codegen.in_place_ops import InPlaceProxy
from branchnet.stages.graph.shape_queries import settle_queries
from branchnet.stages.interface import Example, call_arguments
from branchnet.stages.tracing.allowed_sizes import AllowedSizes
from branchnet.stages.tracing.constants import constant_name
from branchnet.stages.tracing.state_proxies import StateProxy, assignments_recorded
from branchnet.stages.tracing.trial import trial
from branchnet.utils.installed_torch import torch_internals
from branchnet.utils.installed_torch.torch_internals import TreeSpec

PREPROCESSING = "preprocessing_of_branchnet"
"""Name below which a network's root holds the transform that its first input passes first."""

# Each try finds one more type of module to keep whole. A network has a few such types: at 40, something else is wrong.
_MOST_RETRIES = 40
# Containers of torch.nn that are entered; all other modules of torch.nn stay one node.
_ENTERED = (
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.Transformer,
)


@dataclass
class Trace:
    """One mode of one network as a graph.

    Attributes:
        root: the module that the graph's names refer to.
        graph: the dataflow; placeholders are the example's tensors in order.
        method: `"fx"`, `"export"` or `"chain"`.
        kept_whole: types of modules with children that had to be kept as one node.
        output: form of what the network returns; None where the graph's output already has it.
        difference: largest difference from the network's outputs that was seen, relative to the largest output.
        dynamic: what an exported graph left free: `"sizes"`, `"batch"` or `"none"`.
        sizes: for which sizes an exported graph is the network's; None for any.
    """

    root: nn.Module
    graph: fx.Graph
    method: str
    kept_whole: frozenset[type] = frozenset()
    output: TreeSpec | None = None
    difference: float = 0.0
    dynamic: str = "sizes"
    sizes: AllowedSizes | None = None


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside DataParallel, DistributedDataParallel and torch.compile wrappers."""
    while True:
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            network = network.module
        elif isinstance(network, torch_internals.OptimizedModule):
            network = network._orig_mod
        else:
            return network


def trace_fx(network: nn.Module, example: Example, kept_whole: Iterable[type] = ()) -> Trace:
    """Trace the network in the mode that it is in.

    Args:
        network: a borrowed structure; it gets the constants that its code makes, and is not changed otherwise.
        example: what it takes.
        kept_whole: types of modules that are kept as one node from the start.

    Returns:
        A trace whose graph has modules without children as nodes.

    Raises:
        SplitError: the network's own forward cannot be traced; the cause is chained.
    """
    whole = set(kept_whole)
    for _ in range(_MOST_RETRIES):
        tracer = _Tracer(example, whole)
        try:
            with trial(network) as structure, assignments_recorded():
                graph = tracer.trace(structure)
        except Exception as error:
            if tracer.culprit is None or tracer.culprit in whole:
                raise SplitError(f"torch.fx cannot trace {type(network).__name__}: {where(error)}") from error
            whole.add(tracer.culprit)
            continue
        if tracer.asked:
            raise SplitError(f"torch.fx cannot trace {type(network).__name__}: its code hides that {tracer.asked}")
        for name, value in tracer.constants.items():
            setattr(network, name, value)
        settle_queries(graph)
        return Trace(network, graph, "fx", frozenset(whole))
    raise SplitError(f"torch.fx cannot trace {type(network).__name__}: too many modules that it cannot enter")


def transformed(root: nn.Module, example: Example) -> Example:
    """The example as the network gets it: its first tensor has passed the root's transform, if there is one."""
    if PREPROCESSING not in root._modules:
        return example
    transform = root.get_submodule(PREPROCESSING)
    if isinstance(example, Tensor):
        return transform(example)  # type: ignore[no-any-return]
    if isinstance(example, Mapping):
        first = next(iter(example))
        return {**example, first: transform(example[first])}
    return (transform(example[0]), *example[1:])


def module_calls(node: fx.Node) -> tuple[str, ...]:
    """The module calls that a node lies in, outermost first: `path`, or `path@2` within the second call."""
    names = []
    for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
        # Sequences that code cuts from the first module on, `self.model[:-1]`, keep the names in them.
        name = re.sub(r"\.slice\((None|0), [^)]*\)", "", str(path)).partition("@")[0]
        call = max(_call_number(str(key)), _call_number(str(path)))
        if name and not name.startswith("_empty_nn_module_stack"):
            names.append(f"{name}@{call + 1}" if call else name)
    return tuple(names)


def _call_number(key: str) -> int:
    number = key.rpartition("@")[2]
    return int(number) if "@" in key and number.isdigit() else 0


class _Tracer(fx.Tracer):
    """torch.fx's tracer with childless modules as leaves, and arguments passed as the example passes them."""

    def __init__(self, example: Example, whole: set[type]) -> None:
        modules, functions, leaves, self._entered = _library_lists()
        super().__init__((math, *modules), functions)
        self._example = example
        self._whole = whole | leaves
        self._names: dict[int, str] = {}
        self._made: dict[tuple[int, str], tuple[Tensor, fx.Node]] = {}
        self.constants: dict[str, Tensor] = {}
        self.culprit: type | None = None
        self.asked = ""

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Refuse a decision by values or sizes, and remember it: the code may catch the error and go another way."""
        self.asked = "it could not decide by values or sizes"
        return super().to_bool(obj)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Refuse a loop over a value, in the same way."""
        self.asked = "it could not loop over a value"
        return super().iter(obj)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A traced value that knows what was written in place."""
        return InPlaceProxy(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """Read parameters and buffers when the graph runs: what is computed from them alone is no constant."""
        name = self._state_name(attr_val)
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy(
                "get_attr", name, (), {}, proxy_factory_fn=lambda node: StateProxy(node, self, attr_val)
            )
        return parameter_proxy_cache[name]

    def create_arg(self, a: Any) -> Any:
        """Keep a tensor that the code has made as a constant named by its content."""
        if not isinstance(a, Tensor) or a in self.tensor_attrs or self._state_name(a) is not None:
            return super().create_arg(a)
        name = constant_name(a)
        if (id(a), name) not in self._made:
            self.constants.setdefault(name, a.detach().clone())
            # Held, so that no other tensor gets its id. Two equal tensors have a node each: the code may write to one.
            self._made[id(a), name] = (a, self.create_node("get_attr", name, (), {}))
        return self._made[id(a), name][1]

    def _state_name(self, value: Any) -> str | None:
        if not self._names:
            named = (*self.root.named_parameters(), *self.root.named_buffers())
            self._names = {id(tensor): name for name, tensor in named}
        return self._names.get(id(value)) if isinstance(value, Tensor) else None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the module stays one node."""
        if module_qualified_name == PREPROCESSING:
            return True
        # A parametrised weight is computed from others when it is read, which only the module's own call does.
        if type(m) in self._whole or isinstance(m, torch.jit.ScriptModule) or hasattr(m, "parametrizations"):
            return True
        if isinstance(m, self._entered):
            return False
        if next(m.children(), None) is None:
            return True
        return type(m).__module__.startswith("torch.nn") and not isinstance(m, _ENTERED)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Enter or keep the module; remember the innermost one that could not be traced."""
        if isinstance(m, torch_internals.OptimizedModule):
            return m._orig_mod(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.culprit is None and m is not self.root:
                self.culprit = type(m)
            raise

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """One placeholder per tensor of the example; every other argument keeps its default."""
        args, kwargs = call_arguments(self._example)
        names = [*(f"input_{k}" if k else "input" for k in range(len(args))), *kwargs]
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in names]

        def run(root: nn.Module, *values: Any) -> Any:
            first, *others = values
            values = (root.get_submodule(PREPROCESSING)(first), *others) if PREPROCESSING in root._modules else values
            return root.forward(*values[: len(args)], **dict(zip(kwargs, values[len(args) :], strict=True)))

        return run, [self.root, *proxies]


def _library_lists() -> tuple[tuple[Any, ...], tuple[Any, ...], set[type], tuple[type, ...]]:
    """Modules and functions that torchvision and timm, where they are in use, declare as not to be entered.

    The last are modules that are entered all the same, also without children: of feature pyramids, whose maps would be
    hidden in a list or dict.
    """
    entered: tuple[type, ...] = ()
    modules: tuple[Any, ...] = ()
    functions: tuple[Any, ...] = ()
    leaves: set[type] = set()
    if "timm.models" in sys.modules:
        from timm.models._features_fx import get_notrace_functions, get_notrace_modules

        leaves |= set(get_notrace_modules())  # type: ignore[no-untyped-call]
        functions = tuple(get_notrace_functions())  # type: ignore[no-untyped-call]
    if "torchvision.ops" in sys.modules:
        from torchvision import ops
        from torchvision.models.feature_extraction import _get_leaf_modules_for_ops

        modules = (ops,)
        leaves |= set(_get_leaf_modules_for_ops()) - {ops.FeaturePyramidNetwork}
        entered = (ops.FeaturePyramidNetwork, ops.feature_pyramid_network.ExtraFPNBlock)
    return modules, functions, leaves, entered


def where(error: BaseException) -> str:
    """The first line of an error's message and the line of code outside torch that raised it."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if "/torch/" not in filename and "/branchnet/stages/" not in filename and not filename.startswith("<"):
            frames.append(f"{filename}:{trace.tb_lineno}")
        trace = trace.tb_next
    text = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return f"{text} (at {frames[-1]})" if frames else text
