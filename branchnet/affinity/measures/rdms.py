"""Representational dissimilarity matrices (RDMs): how differently one network sees each pair of inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from branchnet.affinity.measures.grams import Centring, Gram, gram
from branchnet.affinity.probes import MINIMUM_INPUTS
from branchnet.errors import AffinityError

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
    squares = products.diagonal()
    if not torch.isfinite(products).all():
        bad = torch.nonzero(~torch.isfinite(products.sum(dim=1)))[0].item()
        raise AffinityError(f"the features of input {bad} are not all finite; expected no NaN and no infinity")
    if dissimilarity == "euclidean":
        distances = (squares[:, None] + squares[None, :] - 2 * products).clamp_min(0).sqrt()
        if (squares <= inner.floor).all():
            raise AffinityError("the features of all inputs are the same; expected some that differ between inputs")
        return distances.fill_diagonal_(0)
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
    return (1 - correlations.clamp(-1, 1)).fill_diagonal_(0)


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
