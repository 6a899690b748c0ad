"""Record the module calls of a forward pass and find a chain among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.errors import SplitError
from branchnet.stages.interface import Example, call
from branchnet.utils.installed_torch.torch_internals import tree_flatten, tree_leaves, tree_map


@dataclass(eq=False)
class ModuleCall:
    """One call of a module below the root: what went in, what came out and the call that it was made from."""

    path: str
    module: nn.Module
    parent: ModuleCall | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any = None

    @property
    def enclosing(self) -> tuple[ModuleCall, ...]:
        """The calls that this one lies in, outermost first."""
        return () if self.parent is None else (*self.parent.enclosing, self.parent)

    @property
    def other_arguments(self) -> tuple[Any, ...]:
        """All arguments but the first."""
        return (self.args[1:], self.kwargs)


@dataclass(frozen=True)
class Chain:
    """Calls of which each takes the result of the one before, and the outermost calls that ended before them."""

    links: tuple[ModuleCall, ...]
    before: tuple[ModuleCall, ...]


def find_chain(root: nn.Module, example: Example) -> Chain:
    """Find the chain with the most parameters.

    Raises:
        SplitError: no module takes what another one returned.
    """
    calls = _recorded(root, example)
    siblings: dict[ModuleCall | None, list[ModuleCall]] = {}
    for made in calls:
        siblings.setdefault(made.parent, []).append(made)
    runs = [run for group in siblings.values() for run in _runs(group)]
    if not runs:
        raise SplitError(
            f"{type(root).__name__} has no two modules of which one takes what the other returns; expected a run of "
            "layers, each called with the result of the one before"
        )
    links = max(runs, key=lambda run: sum(p.numel() for made in run for p in made.module.parameters()))
    around = links[0].enclosing
    ended = [made for made in calls[: calls.index(links[0])] if made not in around]
    return Chain(tuple(links), tuple(made for made in ended if made.parent not in ended))


def _recorded(root: nn.Module, example: Example) -> list[ModuleCall]:
    calls: list[ModuleCall] = []
    stack: list[ModuleCall] = []
    paths = {module: name for name, module in root.named_modules() if name}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stack.append(ModuleCall(paths[module], module, stack[-1] if stack else None, args, kwargs))
        calls.append(stack[-1])

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        stack.pop().output = output

    handles = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in paths]
    handles += [module.register_forward_hook(leave, with_kwargs=True) for module in paths]
    try:
        run_apart(root, lambda: call(root, copied(example)))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _runs(siblings: Sequence[ModuleCall]) -> list[list[ModuleCall]]:
    """Maximal runs of two calls or more, of different modules, in which each takes the result of the one before."""
    uses = Counter(key for made in siblings for key in {id(tensor) for tensor in tensors_of(made.other_arguments)})
    reused = {key for key, count in uses.items() if count > 1}
    runs = [[siblings[0]]]
    for before, after in pairwise(siblings):
        if _linked(before, after, reused) and all(made.module is not after.module for made in runs[-1]):
            runs[-1].append(after)
        else:
            runs.append([after])
    return [run for run in runs if len(run) > 1]


def _linked(before: ModuleCall, after: ModuleCall, reused: Collection[int]) -> bool:
    """Whether the second call takes the first one's result, and otherwise what the first one took.

    Tensors made again for each call are compared by value. Of two tensors of which one goes to several calls, as masks
    of layers of two kinds do, equal values are chance: they differ for another input.
    """
    if not (before.args and after.args) or after.args[0] is not _first(before.output):
        return False
    leaves, form = tree_flatten(before.other_arguments)
    other_leaves, other_form = tree_flatten(after.other_arguments)
    if form != other_form or not isinstance(after.args[0], Tensor):
        return False
    return all(_same(a, b, reused) for a, b in zip(leaves, other_leaves, strict=True))


def _same(a: Any, b: Any, reused: Collection[int]) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        apart = id(a) in reused or id(b) in reused
        return a is b or (not apart and a.dtype == b.dtype and torch.equal(a, b))
    return type(a) is type(b) and bool(a == b)


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) and output else output


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def run_apart(root: nn.Module, run: Callable[[], Any]) -> Any:
    """Run without gradients from a fixed random state; the buffers get their values back."""
    before = [(buffer, buffer.clone()) for buffer in root.buffers()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return run()
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def copied(example: Example) -> Example:
    """The example with tensors of its own."""
    return tree_map(Tensor.clone, example)  # type: ignore[no-any-return]
