"""Trace a network as a chain of module calls, for networks whose own code neither torch.fx nor torch.export can trace.

The chain is a run of calls in which each takes what the one before returned, such as the layers of a transformer. The
code around it stays Python: the graph begins with the network's forward pass up to the chain and ends with the same
pass in which all modules up to the chain's end give what they gave before.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from branchnet.errors import SplitError
from branchnet.stages.interface import Example, Interface, call, flat_example
from branchnet.stages.tracing.chain.chain_ends import Beginning, End, PartialForward
from branchnet.stages.tracing.chain.module_calls import Chain, ModuleCall, copied, find_chain, run_apart
from branchnet.stages.tracing.fx_tracer import PREPROCESSING, Trace, where
from branchnet.utils.installed_torch.torch_internals import tree_leaves, tree_unflatten


def trace_chain(root: nn.Module, example: Example) -> Trace:
    """Trace the network in the mode that it is in, and compare the result with it on two inputs.

    Args:
        root: a borrowed structure, without a transform.
        example: what it takes.

    Returns:
        A trace whose graph is the pass up to the chain, the modules of the chain, and the pass after it.

    Raises:
        SplitError: it has no chain of module calls, or running it as one changes its outputs.
    """
    name = type(root).__name__
    if PREPROCESSING in root._modules:
        raise SplitError(
            f"{name} can only be traced as a chain of modules, and then takes no transform; expected transforms= "
            "without it: put the preprocessing into the network or the data"
        )
    try:
        chain = find_chain(root, example)
        graph = _graph(root, chain, example)
        # The second input shows values that the chain keeps from the example although they depend on the input.
        for inputs in (example, Interface.of(example).random(seed=1)):
            if not _reproduces(root, graph, inputs):
                raise SplitError(f"running {name} as the chain {chain.links[0].path}, ... changes its outputs")
    except SplitError:
        raise
    except Exception as error:
        raise SplitError(f"{name} cannot be run as a chain of modules: {where(error)}") from error
    return Trace(root, graph, "chain")


def _graph(root: nn.Module, chain: Chain, example: Example) -> fx.Graph:
    beginning, end = Beginning(root, chain, example), End(root, chain, example)
    graph = fx.Graph()
    inputs = [graph.placeholder(name) for name in _input_names(example)]
    begun = graph.call_function(beginning, (_state(graph, beginning), *inputs))
    values = [graph.call_function(operator.getitem, (begun, k)) for k in range(beginning.count)]
    link, *others = values[: beginning.arguments]
    args, kwargs = tree_unflatten(_refilled(chain.links[0].other_arguments, others), beginning.form)
    for made in chain.links:
        link = graph.call_module(made.path, (link, *args), kwargs)
        link.meta["nn_module_stack"] = _stack(made)
        if not isinstance(made.output, Tensor):
            link = graph.call_function(operator.getitem, (link, 0))
    graph.output(graph.call_function(end, (_state(graph, end), link, values[beginning.arguments :], *inputs)))
    graph.lint()
    return graph


def _input_names(example: Example) -> list[str]:
    if isinstance(example, Mapping):
        return list(example)
    return [f"input_{k}" if k else "input" for k in range(len(flat_example(example)))]


def _state(graph: fx.Graph, end: PartialForward) -> dict[str, fx.Node]:
    return {name: graph.get_attr(name) for name in end.state}


def _stack(made: ModuleCall) -> dict[str, tuple[str, type]]:
    return {outer.path: (outer.path, type(outer.module)) for outer in (*made.enclosing, made)}


def _refilled(recorded: Any, tensors: Iterable[Any]) -> list[Any]:
    """The leaves of what was recorded, with other values in the places of the tensors."""
    remaining = iter(tensors)
    return [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves(recorded)]


def _reproduces(root: nn.Module, graph: fx.Graph, example: Example) -> bool:
    """Whether the graph gives the network's outputs, and leaves its buffers and the random state as it does."""
    wanted, found = (
        run_apart(root, lambda run=run: (run(), torch.rand(1), [b.clone() for b in root.buffers()]))  # type: ignore[misc]
        for run in (
            lambda: call(root, copied(example)),
            lambda: fx.Interpreter(root, graph=graph).run(*flat_example(copied(example))),
        )
    )
    wanted_leaves, found_leaves = tree_leaves(wanted), tree_leaves(found)
    return len(wanted_leaves) == len(found_leaves) and all(map(_equal, wanted_leaves, found_leaves))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, 0.0, 0.0, equal_nan=True)
    return type(a) is type(b) and bool(a == b)
