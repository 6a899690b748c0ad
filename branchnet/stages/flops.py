"""Count multiply-adds as operators are dispatched, by fvcore's formulas, on real or on fake tensors.

fvcore traces a network with torch.jit, which needs real tensors and one trace per stage. Here its formulas are applied
to the operators that one ordinary run dispatches, so a single run under fake tensors gives every stage's count. One
multiply-add counts as one FLOP. Scaled dot-product attention, which fvcore does not know, counts its two matrix
products. Where fvcore is not installed, as on a machine that only measures, the same formula stands here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from branchnet.stages.tracing.trial import trial

Formula = Callable[[Sequence[Any], Any], float]


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
        self.flops = 0
        self.bytes = 0
        self.unsupported: Counter[str] = Counter()
        self._pooling = _AdaptivePooling(self)

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
        if formula := _FORMULAS.get(name):
            self.flops += int(formula(args, out))
        elif not (func.is_view or torch.Tag.pointwise in func.tags or name in _FREE):
            self.unsupported[name] += 1
        if not func.is_view:
            self.bytes += _new_bytes(args, out)
        return out


_ADAPTIVE_POOLING = (nn.functional.adaptive_avg_pool2d, torch._C._nn.adaptive_avg_pool2d)


class _AdaptivePooling(TorchFunctionMode):
    """Counts adaptive average pooling, which is dispatched as a plain mean where its result is one value."""

    def __init__(self, counter: OperatorCounter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function; count one operation per input value of a two-dimensional adaptive pooling."""
        before = self._counter.flops
        out = func(*args, **(kwargs or {}))
        if func in _ADAPTIVE_POOLING:
            self._counter.flops = before + args[0].numel()
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


def _convolution(args: Sequence[Any], out: Any) -> float:
    x, weight, transposed = list(args[0].shape), list(args[1].shape), args[6]
    try:
        from fvcore.nn.jit_handles import conv_flop_count
    except ModuleNotFoundError:
        return convolution_flops(x, weight, list(out.shape), transposed=transposed)
    return float(conv_flop_count(x, weight, list(out.shape), transposed=transposed))


def convolution_flops(x: Sequence[int], weight: Sequence[int], out: Sequence[int], *, transposed: bool) -> float:
    """Multiply-adds of a convolution, by the shapes of input, weight and output.

    Every weight is used once for each place of the output, or of the input where the convolution is transposed.
    """
    return float(x[0] * prod(weight) * prod((x if transposed else out)[2:]))


def _matrix_product(left: int) -> Formula:
    """Formula of a product whose operands stand at `left` and `left + 1`."""
    return lambda args, out: prod(args[left].shape) * (args[left + 1].shape[-1] if args[left + 1].dim() > 1 else 1)


# fvcore's norm_flop_counter: four operations a value to subtract the mean and divide by the deviation, one for the
# affine map; batch normalisation with fixed statistics is one multiply-add that folds into it.
def _normalisation(affine: int) -> Formula:
    return lambda args, out: prod(args[0].shape) * (4 if args[affine] is None else 5)


def _batch_norm(args: Sequence[Any], out: Any) -> float:
    training = len(args) > 5 and args[5] is True
    affine = args[1] is not None
    return float(prod(args[0].shape)) * ((5 if affine else 4) if training else (2 if affine else 1))


def _batch_norm_without_training(args: Sequence[Any], out: Any) -> float:
    return float(prod(args[0].shape)) * (2 if args[1] is not None else 1)


def _elementwise(input_scale: int, output_scale: int) -> Formula:
    return lambda args, out: input_scale * prod(args[0].shape) + output_scale * prod(tree_leaves(out)[0].shape)


def _attention(args: Sequence[Any], out: Any) -> float:
    query, key, value = args[:3]
    # Q K^T and the product of its softmax with V; query and key share their last dimension, value may have another.
    pairs = prod(query.shape[:-1]) * key.shape[-2]
    return float(pairs * (query.shape[-1] + value.shape[-1]))


_FORMULAS: dict[str, Formula] = {
    "convolution": _convolution,
    "_convolution": _convolution,
    "addmm": _matrix_product(1),
    "_addmm_activation": _matrix_product(1),
    "baddbmm": _matrix_product(1),
    "addmv": _matrix_product(1),
    "mm": _matrix_product(0),
    "bmm": _matrix_product(0),
    "mv": _matrix_product(0),
    "dot": _matrix_product(0),
    "native_batch_norm": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm_without_training,
    "_batch_norm_no_update": _batch_norm_without_training,
    "native_layer_norm": _normalisation(2),
    "native_group_norm": _normalisation(1),
    "upsample_nearest2d": _elementwise(0, 1),
    "upsample_bilinear2d": _elementwise(0, 4),
    "grid_sampler_2d": _elementwise(0, 4),
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
}

_FREE = frozenset(
    (
        "_adaptive_avg_pool2d",
        "_local_scalar_dense",
        "_log_softmax",
        "_reshape_alias",
        "_softmax",
        "_to_copy",
        "_unsafe_view",
        "all",
        "amax",
        "any",
        "arange",
        "argmax",
        "as_strided_",
        "bernoulli_",
        "cat",
        "clone",
        "constant_pad_nd",
        "contiguous",
        "copy_",
        "cumsum",
        "detach",
        "device",
        "embedding",
        "empty",
        "empty_like",
        "empty_strided",
        "eye",
        "fill_",
        "flip",
        "full",
        "full_like",
        "gather",
        "hardswish_",
        "index",
        "index_put",
        "index_select",
        "is_same_size",
        "lift_fresh",
        "lift_fresh_copy",
        "linalg_vector_norm",
        "linspace",
        "masked_fill",
        "max",
        "max_pool2d_with_indices",
        "mean",
        "min",
        "native_dropout",
        "new_empty",
        "new_empty_strided",
        "new_full",
        "new_ones",
        "new_zeros",
        "normal_",
        "ones",
        "ones_like",
        "pixel_shuffle",
        "rand",
        "rand_like",
        "randn",
        "randn_like",
        "repeat",
        "resize_",
        "roll",
        "scalar_tensor",
        "scatter",
        "select_scatter",
        "set_",
        "slice_scatter",
        "sort",
        "split_with_sizes_copy",
        "stack",
        "sum",
        "topk",
        "tril",
        "triu",
        "unbind_copy",
        "uniform_",
        "view_copy",
        "zeros",
        "zeros_like",
    )
)
"""Operators that move, make or reduce values: fvcore's convention counts nothing for them."""
