"""Centred kernel alignment (CKA) of networks, layer by layer.

All estimators are cosines between centred kernel matrices. Biased: centred rows and columns (Kornblith et al. 2019,
"Similarity of Neural Network Representations Revisited", equations 2 to 4). Unbiased: U-centred matrices without
diagonal, whose inner product is n (n - 3) times the HSIC_1 of Song et al. (2012, equation 5). Minibatch: HSIC_1 of
every batch, averaged (Nguyen, Raghu and Kornblith 2021, "Do Wide and Deep Networks Learn the Same Things?",
equations 2 and 3).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from branchnet.affinity.bootstrap import half_samples
from branchnet.affinity.features.distributed import check_same_probe, gathered, share_of, world
from branchnet.affinity.features.extraction import read_batches
from branchnet.affinity.features.signatures import gram_kind
from branchnet.affinity.measure_options import Options, ProbeArguments
from branchnet.affinity.measurement import assemble, labels, measure_pairs, prepare
from branchnet.affinity.measures.grams import Centring, double_centred, gram
from branchnet.affinity.measures.rdm_comparison import unit_diagonal
from branchnet.affinity.networks import Family, Member, Networks
from branchnet.affinity.probes import Probe, blaming_inputs
from branchnet.affinity.tensor import Affinity
from branchnet.errors import AffinityError
from branchnet.utils.progress import progress_bar

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it from Python 3.11 on

Kernel: TypeAlias = Literal["linear", "rbf"]
Estimator: TypeAlias = Literal["biased", "unbiased", "minibatch"]
Matrix: TypeAlias = npt.NDArray[np.float64]

# The factor n (n - 3) of the U-statistic: it is 0 at three inputs.
_UNBIASED_INPUTS = 4

logger = logging.getLogger(__name__)


def cka(
    networks: Networks,
    probe: Any,
    *,
    kernel: Kernel = "linear",
    estimator: Estimator = "biased",
    bandwidth: float = 1.0,
    **options: Unpack[ProbeArguments],
) -> Affinity:
    """Affinity by centred kernel alignment; feature widths may differ between networks.

    Args:
        networks: as `rsa` takes them.
        probe: as `rsa` takes it.
        kernel: `"linear"`, or `"rbf"` with `bandwidth` times the median distance as its width.
        estimator: `"biased"` over all inputs; `"unbiased"`, which wide features and few inputs do not inflate; or
            `"minibatch"`, the unbiased one averaged over the probe's batches, which keeps no features. Unbiased values
            can be slightly negative.
        bandwidth: of the rbf kernel.
        **options: as `rsa` takes them.

    Returns:
        Affinities (D, N, N), symmetric, at most 1, ones on the diagonal. Standard errors of the first two estimators
        come from random halves of the inputs, those of the third from resampled batches.

    Raises:
        AffinityError: as `rsa`; fewer than four inputs (unbiased) or four inputs per batch (minibatch).

    >>> def network():
    ...     return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> trained = {"depth": network(), "edges": network()}
    >>> affinity = branchnet.cka(trained, torch.randn(20, 6), locations=["1"], estimator="unbiased", bootstrap=0)
    >>> affinity.measure, affinity.values.shape
    ('cka linear unbiased', (1, 2, 2))
    >>> twins = {"depth": trained["depth"], "twin": trained["depth"]}
    >>> round(float(branchnet.cka(twins, torch.randn(20, 6), locations=["1"], bootstrap=0).values[0, 0, 1]), 6)
    1.0
    """
    _check(kernel, estimator, bandwidth)
    settings = Options(**options)
    if estimator == "minibatch":
        return _minibatch_cka(networks, probe, kernel, bandwidth, settings)

    def compare(grams: Sequence[npt.NDArray[np.floating]], names: Sequence[str] | None = None) -> Matrix:
        vectors = [_centred(_kernel(one.astype(np.float64), kernel, bandwidth), estimator).ravel() for one in grams]
        return _cosines(vectors, names or [f"network {index}" for index in range(len(grams))])

    return measure_pairs(
        f"cka {kernel} {estimator}",
        networks,
        probe,
        settings,
        gram_kind(),
        compare,
        lambda grams, choice: half_samples(grams, compare, choice.bootstrap, choice.seed),
    )


def _check(kernel: Kernel, estimator: Estimator, bandwidth: float) -> None:
    if kernel not in get_args(Kernel):
        raise AffinityError(f"kernel is {kernel!r}; expected one of {get_args(Kernel)}")
    if estimator not in get_args(Estimator):
        raise AffinityError(f"estimator is {estimator!r}; expected one of {get_args(Estimator)}")
    if not bandwidth > 0:
        raise AffinityError(f"bandwidth is {bandwidth}; expected a positive multiple of the median distance")


def _kernel(gram: Matrix, kernel: Kernel, bandwidth: float) -> Matrix:
    if kernel == "linear":
        return gram
    squares = gram.diagonal()
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0)
    np.fill_diagonal(distances, 0.0)
    # The median heuristic of Kornblith et al. 2019, section 3. Where most inputs coincide it is 0, and the largest
    # distance serves.
    median = np.median(np.sqrt(distances[np.triu_indices(len(gram), 1)]))
    scale = median**2 if median > 0 else distances.max()
    matrix: Matrix = np.exp(-distances / (2 * bandwidth**2 * scale)) if scale > 0 else np.ones_like(gram)
    return matrix


def _centred(matrix: Matrix, estimator: Estimator) -> Matrix:
    return double_centred(matrix) if estimator == "biased" else _u_centred(matrix)


def _u_centred(matrix: Matrix) -> Matrix:
    """Zero diagonal, rows that sum to zero (Szekely and Rizzo 2014, definition 2)."""
    count = len(matrix)
    if count < _UNBIASED_INPUTS:
        raise AffinityError(f"the probe has {count} inputs; expected at least {_UNBIASED_INPUTS} (unbiased estimator)")
    empty = matrix - np.diag(matrix.diagonal())
    rows = empty.sum(axis=1) / (count - 2)
    centred: Matrix = empty - rows[:, None] - rows[None, :] + empty.sum() / ((count - 1) * (count - 2))
    np.fill_diagonal(centred, 0.0)
    return centred


def _cosines(vectors: Sequence[Matrix], names: Sequence[str]) -> Matrix:
    lengths = [float(np.linalg.norm(vector)) for vector in vectors]
    for length, name in zip(lengths, names, strict=True):
        if not length > 0:
            raise AffinityError(f"{name}: the kernel is the same for all pairs of inputs; expected inputs that differ")
    stacked = np.stack([vector / length for vector, length in zip(vectors, lengths, strict=True)])
    return unit_diagonal(np.clip(stacked @ stacked.T, -1.0, 1.0))


def _minibatch_cka(networks: Networks, probe: Any, kernel: Kernel, bandwidth: float, options: Options) -> Affinity:
    family, fixed = prepare(networks, probe, options)
    used = sum(size >= _UNBIASED_INPUTS for size in fixed.sizes)
    if not used:
        raise AffinityError(
            f"no batch of the probe has {_UNBIASED_INPUTS} inputs; expected a batch_size of at least {_UNBIASED_INPUTS}"
        )
    if used < len(fixed.sizes):
        logger.info("%d batches of fewer than %d inputs are left out", len(fixed.sizes) - used, _UNBIASED_INPUTS)
    with blaming_inputs(fixed, family.members[0].network):
        vectors = _vectors_of_all(family, fixed, kernel, bandwidth, options)
    random = np.random.default_rng(options.seed)
    draws = options.bootstrap if used > 1 else 0
    weights = random.multinomial(used, np.full(used, 1 / used), size=draws)
    between, samples = [], []
    for index, location in enumerate(family.locations):
        products = _batch_products([one[index] for one in vectors])
        names = labels(family, location)
        between.append(_normalised(products.sum(axis=0), names))
        if draws:
            samples.append(np.stack([_normalised(np.tensordot(w, products, 1), names) for w in weights]))
    return assemble(f"cka {kernel} minibatch", family, fixed, between, samples, options)


def _vectors_of_all(
    family: Family, probe: Probe, kernel: Kernel, bandwidth: float, options: Options
) -> list[list[list[Matrix]]]:
    """`[member][location][batch]`; under `torch.distributed` every process runs its share of batches."""
    check_same_probe(probe)
    rank, size = world()
    share = share_of(probe, rank, size)

    def read() -> list[list[list[Matrix]]]:
        shown = sys.stderr.isatty() and rank == 0
        with progress_bar("reading features", len(family.members), shown=shown) as advance:
            found = []
            for member in family.members:
                found.append(_batch_vectors(member, probe, share, family.locations, kernel, bandwidth, options))
                advance(member.label)
        return found

    shares = gathered(read)
    return [
        [
            [vector for found in shares for vector in found[member][location]]
            for location in range(len(family.locations))
        ]
        for member in range(len(family.members))
    ]


def _batch_vectors(
    member: Member,
    probe: Probe,
    share: range,
    locations: Sequence[str],
    kernel: Kernel,
    bandwidth: float,
    options: Options,
) -> list[list[Matrix]]:
    """For every location and batch, the U-centred kernel scaled so that inner products are HSIC_1."""
    result: list[list[Matrix]] = [[] for _ in locations]

    def consume(location: int, tensors: Sequence[Tensor]) -> None:
        count = len(tensors[0])
        if count >= _UNBIASED_INPUTS:
            products = _batch_gram(tensors, options.tensors)
            if not np.isfinite(products).all():
                raise AffinityError(
                    f"{member.label} at {locations[location]!r}: the features are not all finite; expected no NaN and "
                    "no infinity"
                )
            centred = _u_centred(_kernel(products, kernel, bandwidth))
            result[location].append(centred.ravel() / np.sqrt(count * (count - 3)))

    read_batches(member, probe, locations, consume, device=options.place, transform=options.features, share=share)
    return result


def _batch_gram(tensors: Sequence[Tensor], together: str) -> Matrix:
    """Inner products of one batch, over all features or as the mean over tensors of trace 1."""
    grams = [gram(tensor, Centring(inputs=True)) for tensor in tensors]
    varying = [one.products for one in grams if not (one.products.diagonal() <= one.floor).all()]
    products = varying or [one.products for one in grams]
    if len(varying) > 1 and together == "mean":
        products = [one / one.trace() for one in varying]
    summed: Matrix = torch.stack(products).sum(dim=0).cpu().numpy()
    return summed


def _batch_products(vectors: Sequence[Sequence[Matrix]]) -> Matrix:
    """HSIC_1 of every pair of networks in every batch: (batches, M, M)."""
    result = []
    for batch in zip(*vectors, strict=True):
        stacked = np.stack(batch)
        result.append(stacked @ stacked.T)
    return np.stack(result)


def _normalised(products: Matrix, names: Sequence[str]) -> Matrix:
    lengths = np.sqrt(products.diagonal())
    for length, name in zip(lengths, names, strict=True):
        if not length > 0:
            raise AffinityError(
                f"{name}: the kernel is the same for all pairs of inputs of a batch; expected inputs that differ"
            )
    return unit_diagonal(np.clip(products / lengths[:, None] / lengths[None, :], -1.0, 1.0))
