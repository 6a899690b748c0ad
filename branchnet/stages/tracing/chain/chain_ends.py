"""What a network's own forward pass computes before and after a chain of its modules.

Either end is the forward pass of a copy without values, in which some modules are exchanged: it is a function of
parameters, buffers and inputs.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from branchnet.errors import SplitError
from branchnet.stages.graph.propagation import tensors_by_name
from branchnet.stages.graph.settings import module_signature
from branchnet.stages.interface import Example, flat_example
from branchnet.stages.tracing.chain.module_calls import Chain, copied, run_apart, tensors_of
from branchnet.stages.tracing.trial import borrow
from branchnet.utils.installed_torch.torch_internals import tree_flatten, tree_unflatten

_PLAIN = (bool, int, float, str, type(None))


class _FREE:
    """Stands for an argument that may differ from call to call."""


class _Reached(Exception):
    """Carries the arguments of the chain's first call out of the network's forward pass."""


class PartialForward:
    """The network's forward pass with some modules exchanged, as a function of parameters, buffers and inputs.

    Attributes:
        state: names of the parameters and buffers that it needs.
    """

    state: tuple[str, ...] = ()

    def __init__(self, root: nn.Module, chain: Chain, example: Example, exchanged: Mapping[str, nn.Module]) -> None:
        self._skeleton = _without_tensors(root, exchanged)
        self._keywords = tuple(example) if isinstance(example, Mapping) else ()
        signature = repr([entry for entry in module_signature(self._skeleton) if entry[0] in self._scope(root, chain)])
        # Nodes of two networks are the same where their functions have one name, so it stands for the settings.
        self.__name__ = self.__qualname__ = f"{type(self).__name__}_{zlib.crc32(signature.encode()):08x}"
        self.__module__ = __name__

    def _scope(self, root: nn.Module, chain: Chain) -> set[str]:
        """Names of the modules whose settings decide what this end computes."""
        return {name for name, _ in root.named_modules()}

    def _run(self, values: Mapping[str, Tensor], inputs: Sequence[Tensor]) -> Any:
        keywords = dict(zip(self._keywords, inputs, strict=True)) if self._keywords else {}
        args = () if keywords else tuple(inputs)
        return functional_call(self._skeleton, dict(values), args, keywords, tie_weights=False)

    def _find_state(self, root: nn.Module, run: Callable[[dict[str, Tensor]], Any]) -> None:
        """Keep the tensors that the pass reads."""
        own = tensors_by_name(self._skeleton)
        given = {name: tensor for name, tensor in tensors_by_name(root).items() if name in own}

        def watched() -> set[int]:
            reads = _Reads()
            with reads:
                run(given)
            return reads.seen

        seen = run_apart(root, watched)
        self.state = tuple(name for name, tensor in given.items() if id(tensor) in seen)


class _Reads(TorchFunctionMode):
    """While active, notes which tensors are arguments of torch's functions and methods."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the arguments and run the function."""
        self.seen |= set(map(id, tensors_of((args, kwargs))))
        return func(*args, **(kwargs or {}))


class Beginning(PartialForward):
    """From the inputs to the arguments of the chain's first call and the results of the modules called before it."""

    def __init__(self, root: nn.Module, chain: Chain, example: Example) -> None:
        super().__init__(root, chain, example, {made.path: _Stop() for made in chain.links})
        recorded = chain.links[0].other_arguments
        leaves, self.form = tree_flatten(recorded)
        self._fixed = [leaf if isinstance(leaf, _PLAIN) else _FREE for leaf in leaves]
        self.arguments = 1 + len(tensors_of(recorded))
        self.count = self.arguments + sum(len(tensors_of(made.output)) for made in chain.before)
        self._before = tuple(made.path for made in chain.before)
        self._first = chain.links[0].path
        self._find_state(root, lambda state: self(state, *flat_example(copied(example))))

    def _scope(self, root: nn.Module, chain: Chain) -> set[str]:
        called = [f"{made.path}." for made in chain.before]
        inside = {name for name, _ in root.named_modules() if f"{name}.".startswith(tuple(called))}
        return {"", *(made.path for made in chain.links[0].enclosing), *inside}

    def __call__(self, state: Mapping[str, Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        """The tensors among the arguments, then those of the results."""
        results: list[Tensor] = []
        paths = dict.fromkeys(self._before)
        handles = [
            self._skeleton.get_submodule(path).register_forward_hook(lambda _, __, out: results.extend(tensors_of(out)))
            for path in paths
        ]
        try:
            self._run(state, inputs)
        except _Reached as reached:
            first, *others = reached.args[0]
            self._check_fixed((tuple(others), reached.args[1]))
            found = (first, *tensors_of((tuple(others), reached.args[1])), *results)
        else:
            raise SplitError(
                f"for these inputs the network did not call {self._first!r}, which it called when it was split; "
                "expected inputs that take the same way through its code as the example"
            )
        finally:
            for handle in handles:
                handle.remove()
        return found

    def _check_fixed(self, given: tuple[Any, ...]) -> None:
        """The graph keeps what is not a tensor as it was recorded, so another input must not change it."""
        leaves, form = tree_flatten(given)
        pairs = [pair for pair in zip(self._fixed, leaves, strict=False) if pair[0] is not _FREE]
        if form != self.form or any(isinstance(now, Tensor) or was != now for was, now in pairs):
            raise SplitError(
                "for these inputs the chain's modules are called with other arguments than for the example "
                f"({[now for _, now in pairs]}; expected {[was for was, _ in pairs]}); split the network with an "
                "example of their size"
            )


class End(PartialForward):
    """From the chain's result to the network's: modules called before the chain's end give what they gave before."""

    def __init__(self, root: nn.Module, chain: Chain, example: Example) -> None:
        replays: dict[str, _Replay] = {}
        for made in (*chain.before, *chain.links):
            replays.setdefault(made.path, _Replay()).add(made.output)
        super().__init__(root, chain, example, replays)
        self._results = [(made.path, len(tensors_of(made.output))) for made in chain.before]
        self._links = tuple(made.path for made in chain.links)
        carried = [tensor for made in chain.before for tensor in tensors_of(made.output)]
        link = tensors_of(chain.links[-1].output)[0]
        self._find_state(root, lambda state: self(state, link, carried, *flat_example(copied(example))))

    def __call__(self, state: Mapping[str, Tensor], link: Tensor, carried: Sequence[Tensor], *inputs: Tensor) -> Any:
        """What the network returns."""
        values, remaining = dict(state), iter(carried)
        calls: Counter[str] = Counter()
        for path, count in self._results:
            for tensor in islice(remaining, count):
                values[f"{path}.value_{calls[path]}"] = tensor
                calls[path] += 1
        values |= {f"{path}.value_0": link for path in self._links}
        for path in {*calls, *self._links}:
            self._skeleton.get_submodule(path).rewind()  # type: ignore[operator]
        return self._run(values, inputs)


class _Stop(nn.Module):
    """Ends the forward pass with the arguments that it is called with."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raise them."""
        raise _Reached(args, kwargs)


class _Replay(nn.Module):
    """Gives, call by call, recorded results whose tensors are its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self._results: list[Any] = []
        self._next = 0

    def add(self, result: Any) -> None:
        """Record one more call's result; only its form stays."""
        tensors = tensors_of(result)
        first = len(self._buffers)
        for k, tensor in enumerate(tensors):
            self.register_buffer(f"value_{first + k}", torch.empty_like(tensor, device="meta"), persistent=False)
        leaves, form = tree_flatten(result)
        names = iter(range(first, first + len(tensors)))
        self._results.append(([_Slot(next(names)) if isinstance(leaf, Tensor) else leaf for leaf in leaves], form))

    def rewind(self) -> None:
        """Begin with the first call again."""
        self._next = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The next call's result."""
        leaves, form = self._results[self._next]
        self._next += 1
        values = [getattr(self, f"value_{leaf.index}") if isinstance(leaf, _Slot) else leaf for leaf in leaves]
        return tree_unflatten(values, form)


@dataclass(frozen=True)
class _Slot:
    """The place of a tensor in a recorded result."""

    index: int


def _without_tensors(root: nn.Module, exchanged: Mapping[str, nn.Module]) -> nn.Module:
    """The network's structure with parameters and buffers that have no values, and with modules exchanged."""
    parameters = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in root.parameters()}
    buffers = {id(b): b.to("meta") for b in root.buffers()}
    skeleton = borrow(root)
    for path, module in exchanged.items():
        skeleton.set_submodule(path, module)
    for module in skeleton.modules():
        module._parameters |= {name: parameters[id(p)] for name, p in module._parameters.items() if p is not None}
        module._buffers |= {name: buffers.get(id(b), b) for name, b in module._buffers.items() if b is not None}
    return skeleton
