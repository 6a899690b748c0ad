"""Count multiply-adds as operators are dispatched, by fvcore's formulas, on real or on fake tensors.

fvcore traces a network with torch.jit, which needs real tensors and one trace per stage. Here its formulas are applied
to the operators that one ordinary run dispatches, so a single run under fake tensors gives every stage's count. One
multiply-add counts as one FLOP; of complex numbers it counts as the four of real ones that it takes (a convolution as
the three real convolutions that torch runs for it).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from branchnet.stages.flop_formulas import FORMULAS, FREE
from branchnet.stages.tracing.trial import trial
from branchnet.utils.installed_torch.torch_internals import TorchDispatchMode, pooling_function, tree_leaves


def count_flops(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None
) -> tuple[int, tuple[str, ...]]:
    """Count the multiply-adds of one forward pass.

    The module runs without gradients in the mode that it is in, and is as before afterwards. The operators named are
    those that compute something and for which fvcore's convention has no formula (pooling by maximum, softmax and so
    on); element-wise arithmetic and changes of shape count as nothing there and are not named.

    Args:
        module: any module.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Returns:
        Multiply-adds of `module(*args, **kwargs)`, and the names of the operators that were not counted.
    """
    with trial(module) as copy, torch.no_grad(), without_attention_fast_path(), OperatorCounter() as counter:
        copy(*args, **(kwargs or {}))
    return counter.flops, tuple(sorted(counter.unsupported))


class OperatorCounter(TorchDispatchMode):
    """While active, adds up the multiply-adds of every operator and the bytes of every new result."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self.by_operator: Counter[str] = Counter()
        self.unsupported: Counter[str] = Counter()
        self._pooling = _AdaptivePooling(self)

    @property
    def flops(self) -> int:
        """Multiply-adds so far."""
        return self.by_operator.total()

    def __enter__(self) -> OperatorCounter:
        """Start counting."""
        self._pooling.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        """Stop counting."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._pooling.__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operator and record what it cost."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if formula := FORMULAS.get(name):
            self.by_operator[name] += int(formula(args, out))
        elif not (func.is_view or torch.Tag.pointwise in func.tags or name in FREE):
            self.unsupported[name] += 1
        if not func.is_view:
            self.bytes += _new_bytes(args, out)
        return out


_ADAPTIVE_POOLING = (nn.functional.adaptive_avg_pool2d, pooling_function)


class _AdaptivePooling(TorchFunctionMode):
    """Counts adaptive average pooling, which is dispatched as a plain mean where its result is one value."""

    def __init__(self, counter: OperatorCounter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function; count one operation per input value of a two-dimensional adaptive pooling."""
        out = func(*args, **(kwargs or {}))
        if func in _ADAPTIVE_POOLING:
            self._counter.by_operator["adaptive_avg_pool2d"] += args[0].numel()
        return out


@contextmanager
def _fast_path(enabled: bool) -> Any:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def without_attention_fast_path() -> AbstractContextManager[None]:
    """Let MultiheadAttention dispatch its projections as operators of their own, so that they are seen."""
    return _fast_path(False)


def _new_bytes(args: Sequence[Any], out: Any) -> int:
    known = {id(leaf) for leaf in args if isinstance(leaf, Tensor)}
    return sum(t.numel() * t.element_size() for t in tree_leaves(out) if isinstance(t, Tensor) and id(t) not in known)
