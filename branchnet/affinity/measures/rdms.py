"""Representational dissimilarity matrices (RDMs): how differently one network sees each pair of inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from branchnet.affinity.measures.grams import Centring, Gram, gram
from branchnet.affinity.probes import MINIMUM_INPUTS
from branchnet.errors import AffinityError

# Measured on quantised features of 16 to 40,000 numbers: the error of a correlation is within half of the root of the
# Gram's floor over the length, that of a squared distance, which three products share, within two and a half of them.
_DISTANCE_ERRORS = 4.0

Dissimilarity: TypeAlias = Literal["pearson", "cosine", "euclidean"]


def rdm(features: Tensor, *, dissimilarity: Dissimilarity = "pearson", center: bool = False) -> Tensor:
    """Dissimilarity of every pair of inputs in one network at one location.

    Args:
        features: (K, F) or (K, ...), flattened.
        dissimilarity: `"pearson"` is 1 - Pearson correlation over the features (Branched Multi-Task Networks,
            Vandenhende et al. 2020, section 3.1), `"cosine"` the same without subtracting each input's mean,
            `"euclidean"` the distance.
        center: whether to subtract every feature's mean over the inputs first.

    Returns:
        (K, K), symmetric, zeros on the diagonal, in the features' float dtype, at least float32; sums are kept in
        float64.

    Raises:
        AffinityError: fewer than three inputs, features that are not finite, or an input whose features are constant
            (pearson) or zero (cosine), for which the dissimilarity is undefined.
    """
    if not features.dim() or len(features) < MINIMUM_INPUTS:
        raise AffinityError(f"features has shape {tuple(features.shape)}; expected at least {MINIMUM_INPUTS} inputs")
    if not features.is_floating_point():
        features = features.to(torch.float64)
    rows = features.detach().flatten(1) if features.dim() > 1 else features.detach()[:, None]
    return rdm_of_gram(gram(rows, centring_for(dissimilarity, center)), dissimilarity).to(
        torch.promote_types(features.dtype, torch.float32)
    )


def centring_for(dissimilarity: Dissimilarity, center: bool) -> Centring:
    """The means to subtract. Distances do not change with the inputs' mean, but are more exact without it."""
    if dissimilarity not in get_args(Dissimilarity):
        raise AffinityError(f"dissimilarity is {dissimilarity!r}; expected one of {get_args(Dissimilarity)}")
    return Centring(inputs=center or dissimilarity == "euclidean", features=dissimilarity == "pearson")


def rdm_of_gram(inner: Gram, dissimilarity: Dissimilarity) -> Tensor:
    """The RDM, float64, from inner products centred by `centring_for`."""
    products = inner.products
    noise = inner.floor.sqrt()
    squares = products.diagonal()
    if not torch.isfinite(products).all():
        # One bad input makes every product with it NaN; means over the inputs make all of them so.
        bad = torch.nonzero(~torch.isfinite(squares)).flatten().tolist()
        whose = f" of input {bad[0]}" if 0 < len(bad) < len(squares) else ""
        raise AffinityError(f"the features{whose} are not all finite; expected no NaN and no infinity")
    if dissimilarity == "euclidean":
        if (squares <= inner.floor).all():
            raise AffinityError("the features of all inputs are the same; expected some that differ between inputs")
        apart = (squares[:, None] + squares[None, :] - 2 * products).clamp_min(0)
        return without_rounding(apart, _DISTANCE_ERRORS * float((noise * squares.sqrt()).median())).sqrt()
    constant = torch.nonzero(squares <= inner.floor)
    if len(constant):
        kind = "constant" if dissimilarity == "pearson" else "zero"
        raise AffinityError(
            f"the features of input {constant[0].item()} are {kind} ({len(constant)} of {len(squares)} inputs): their "
            f"{dissimilarity} dissimilarity is undefined; expected features that vary (or dissimilarity='euclidean')"
        )
    # Divided by one length after the other: their product may underflow where each of them does not.
    lengths = squares.sqrt()
    correlations = products / lengths[:, None] / lengths[None, :]
    return without_rounding(1 - correlations.clamp(-1, 1), float((noise / lengths).median()))


def without_rounding(matrix: Tensor, tolerance: float) -> Tensor:
    """Dissimilarities that are equal in exact arithmetic, as those of quantised features often are, made equal.

    Entries above the diagonal that rounding alone may set apart take one value, else noise would rank them. Values so
    dense that their neighbours touch are cut into steps of that width, which changes no order by more than a step.

    Args:
        matrix: (K, K), symmetric.
        tolerance: entries that differ by no more than this may be equal.

    Returns:
        The symmetric matrix, zeros on the diagonal.
    """
    row, column = torch.triu_indices(len(matrix), len(matrix), offset=1, device=matrix.device)
    ordered, order = matrix[row, column].sort()
    ordered = torch.where(ordered <= tolerance, torch.zeros_like(ordered), ordered)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered.diff() > tolerance
    first = ordered[starts][starts.cumsum(0) - 1]
    step = ((ordered - first) / max(tolerance, torch.finfo(ordered.dtype).tiny)).floor()
    starts[1:] |= step.diff() != 0
    entries = torch.empty_like(ordered)
    entries[order] = ordered[starts][starts.cumsum(0) - 1]
    result = torch.zeros_like(matrix)
    result[row, column] = entries
    return result + result.T


def upper_triangle(matrix: Tensor) -> Tensor:
    """The K (K - 1) / 2 entries above the diagonal, row by row."""
    row, column = torch.triu_indices(len(matrix), len(matrix), offset=1, device=matrix.device)
    return matrix[row, column]


def mean_rdm(rdms: Sequence[Tensor], dissimilarity: Dissimilarity) -> Tensor:
    """One RDM for several tensors, each with the same weight; distances are first divided by their mean."""
    # Correlations are on one scale; distances grow with a tensor's values and its number of features.
    if dissimilarity == "euclidean" and len(rdms) > 1:
        rdms = [one / one.mean() for one in rdms]
    return torch.stack(list(rdms)).mean(dim=0)
