"""How many multiply-adds an operator takes, from its arguments and its result; counting them is the job of `flops`.

The formulas are fvcore's. What it does not know counts as its matrix products would: scaled dot-product attention,
recurrent layers that run as one operator, bilinear layers and distances. Where fvcore is not installed, as on a machine
that only measures, its formula of convolutions stands here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any, cast

from torch import Tensor

from branchnet.utils.installed_torch.torch_internals import tree_leaves

Formula = Callable[[Sequence[Any], Any], float]


def _convolution(args: Sequence[Any], out: Any) -> float:
    x, weight, transposed = list(args[0].shape), list(args[1].shape), args[6]
    count = _fvcore_convolution() or convolution_flops
    return _real_products(args[0]) * float(count(x, weight, list(out.shape), transposed=transposed))


@cache
def _fvcore_convolution() -> Callable[..., float] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fvcore scripts functions while it is imported; torch deprecates that
            from fvcore.nn.jit_handles import conv_flop_count
    except ModuleNotFoundError:
        return None
    return cast(Callable[..., float], conv_flop_count)


def convolution_flops(x: Sequence[int], weight: Sequence[int], out: Sequence[int], *, transposed: bool) -> float:
    """Multiply-adds of a convolution, by the shapes of input, weight and output.

    Every weight is used once for each place of the output, or of the input where the convolution is transposed.
    """
    return float(x[0] * prod(weight) * prod((x if transposed else out)[2:]))


def _real_products(factor: Tensor) -> int:
    """Products of real numbers that one product takes."""
    return 4 if factor.is_complex() else 1


def _matrix_product(left: int) -> Formula:
    """Formula of a product whose operands stand at `left` and `left + 1`."""

    def formula(args: Sequence[Any], out: Any) -> float:
        first, second = args[left], args[left + 1]
        return float(_real_products(first) * prod(first.shape) * (second.shape[-1] if second.dim() > 1 else 1))

    return formula


def _outer_product(args: Sequence[Any], out: Any) -> float:
    return float(_real_products(args[1]) * prod(out.shape))


def _recurrent(weights: Callable[[Sequence[Any]], Sequence[Tensor]]) -> Formula:
    """Formula of a recurrent layer that runs as one operator: each step of each sequence meets every weight once.

    The input is (length, batch, features), or packed (steps, features). Biases and gates are element-wise.
    """
    return lambda args, out: prod(args[0].shape[:-1]) * sum(w.numel() for w in weights(args) if w.dim() == 2)


def _trilinear(args: Sequence[Any], out: Any) -> float:
    """The two contractions that torch runs: the first two factors, then their product with the third."""
    first, second, third = (
        _with_ones(args[k].shape, expanded) for k, expanded in enumerate(args[3:6])
    )  # the shapes that broadcast against each other
    pairs = list(map(max, first, second))
    # What the third factor does not have is summed before it is met.
    left = [1 if dim in args[6] and dim in args[5] else length for dim, length in enumerate(pairs)]
    return float(_real_products(args[0]) * (prod(pairs) + prod(map(max, left, third))))


def _with_ones(shape: Sequence[int], dims: Sequence[int]) -> list[int]:
    lengths = list(shape)
    for dim in sorted(dims):
        lengths.insert(dim, 1)
    return lengths


def _distances(args: Sequence[Any], out: Any) -> float:
    """One operation for each pair of points and each of their features."""
    return float(prod(out.shape) * args[0].shape[-1])


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


_PRODUCTS: dict[str, Formula] = {
    "convolution": _convolution,
    "_convolution": _convolution,
    "addmm": _matrix_product(1),
    "_addmm_activation": _matrix_product(1),
    "addbmm": _matrix_product(1),
    "baddbmm": _matrix_product(1),
    "addmv": _matrix_product(1),
    "mm": _matrix_product(0),
    "bmm": _matrix_product(0),
    "mv": _matrix_product(0),
    "dot": _matrix_product(0),
    "vdot": _matrix_product(0),
    "addr": _outer_product,
    "mkldnn_rnn_layer": _recurrent(lambda args: args[1:3]),
    "_cudnn_rnn": _recurrent(lambda args: args[1]),
    "_trilinear": _trilinear,
    "_cdist_forward": _distances,
    "_euclidean_dist": _distances,
    "_pdist_forward": _distances,
}

PRODUCTS = frozenset(_PRODUCTS)
"""Operators that are products of tensors or made of such."""

FORMULAS: dict[str, Formula] = {
    **_PRODUCTS,
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
"""By the operator's name."""

FREE = frozenset(
    (
        "_adaptive_avg_pool2d",
        "_adaptive_avg_pool3d",
        "_embedding_bag",
        "_linalg_check_errors",
        "_local_scalar_dense",
        "_log_softmax",
        "_pack_padded_sequence",
        "_reshape_alias",
        "_softmax",
        "_thnn_fused_gru_cell",
        "_thnn_fused_lstm_cell",
        "_to_copy",
        "_unsafe_view",
        "adaptive_max_pool2d",
        "adaptive_max_pool3d",
        "all",
        "amax",
        "aminmax",
        "any",
        "arange",
        "argmax",
        "argmin",
        "as_strided_",
        "avg_pool2d",
        "avg_pool3d",
        "bernoulli_",
        "bincount",
        "cat",
        "channel_shuffle",
        "clone",
        "col2im",
        "constant_pad_nd",
        "contiguous",
        "copy_",
        "cummax",
        "cummin",
        "cumprod",
        "cumsum",
        "detach",
        "device",
        "diag_embed",
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
        "im2col",
        "index",
        "index_add",
        "index_copy",
        "index_put",
        "index_reduce",
        "index_select",
        "is_same_size",
        "lift_fresh",
        "lift_fresh_copy",
        "linalg_vector_norm",
        "linspace",
        "logsumexp",
        "masked_fill",
        "masked_scatter",
        "masked_select",
        "max",
        "max_pool2d_with_indices",
        "max_pool3d_with_indices",
        "mean",
        "median",
        "min",
        "multinomial",
        "native_dropout",
        "new_empty",
        "new_empty_strided",
        "new_full",
        "new_ones",
        "new_zeros",
        "nonzero",
        "normal_",
        "ones",
        "ones_like",
        "pixel_shuffle",
        "pixel_unshuffle",
        "prod",
        "rand",
        "rand_like",
        "randint",
        "randn",
        "randn_like",
        "randperm",
        "reflection_pad1d",
        "reflection_pad2d",
        "reflection_pad3d",
        "repeat",
        "repeat_interleave",
        "replication_pad1d",
        "replication_pad2d",
        "replication_pad3d",
        "resize_",
        "roll",
        "scalar_tensor",
        "scatter",
        "scatter_add",
        "scatter_reduce",
        "searchsorted",
        "select_scatter",
        "set_",
        "slice_scatter",
        "sort",
        "split_with_sizes_copy",
        "squeeze_",
        "stack",
        "std",
        "sum",
        "topk",
        "transpose_",
        "tril",
        "triu",
        "unbind_copy",
        "uniform_",
        "unsafe_split",
        "unsafe_split_with_sizes",
        "unsqueeze_",
        "var",
        "var_mean",
        "view_copy",
        "zeros",
        "zeros_like",
    )
)
"""Operators that move, make or reduce values: fvcore's convention counts nothing for them."""
