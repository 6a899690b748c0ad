"""Procrustes similarity, SVCCA and PWCCA of networks, layer by layer.

All work on features X (K, F) less their mean over the inputs, through the singular value decomposition
X = U S V^T, of which U and S follow from the (K, K) inner products. So widths may differ between networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from branchnet.affinity.bootstrap import half_samples
from branchnet.affinity.features.distributed import scattered
from branchnet.affinity.features.feature_buffer import Kept
from branchnet.affinity.features.memory_plan import Chunk
from branchnet.affinity.features.signatures import Signature, gram_kind, read_chunks, read_signatures
from branchnet.affinity.measure_options import Options, ProbeArguments
from branchnet.affinity.measurement import assemble, measure_pairs, prepare
from branchnet.affinity.measures.grams import column_blocks, double_centred, rounding_floor
from branchnet.affinity.measures.rdm_comparison import unit_diagonal
from branchnet.affinity.measures.symmetric_matmul import full_precision
from branchnet.affinity.networks import Family, Member, Networks
from branchnet.affinity.probes import Probe, blaming_inputs
from branchnet.affinity.tensor import Affinity
from branchnet.errors import AffinityError

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it from Python 3.11 on

Matrix: TypeAlias = npt.NDArray[np.float64]


def procrustes(networks: Networks, probe: Any, **options: Unpack[ProbeArguments]) -> Affinity:
    """Affinity by orthogonal Procrustes: 1 - d^2 / 2, where d is the distance left after the best rotation.

    Features are centred and scaled to Frobenius norm 1 (Ding, Denain and Steinhardt 2021, "Grounding Representation
    Similarity with Statistical Testing", section 2), so d^2 = 2 - 2 ||X^T Y||_* and the affinity is the nuclear norm,
    from 0 to 1. The narrower of two networks is padded with zeros.

    Args:
        networks: as `rsa` takes them.
        probe: as `rsa` takes it.
        **options: as `rsa` takes them; `bootstrap` is 0 unless given, as every draw takes a decomposition.

    Returns:
        Affinities (D, N, N) from 0 to 1, symmetric, ones on the diagonal.

    Raises:
        AffinityError: as `rsa`.

    >>> def network():
    ...     return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> trained = {"depth": network(), "edges": network()}
    >>> affinity = branchnet.procrustes(trained, torch.randn(30, 6), locations=["1"])
    >>> affinity.measure, affinity.values.shape
    ('procrustes', (1, 2, 2))
    """
    return _by_decomposition("procrustes", networks, probe, _procrustes, options)


def svcca(networks: Networks, probe: Any, *, variance: float = 0.99, **options: Unpack[ProbeArguments]) -> Affinity:
    """Affinity by SVCCA: mean canonical correlation of the directions that hold `variance` of each network's variance.

    Raghu et al. 2017, "SVCCA: Singular Vector Canonical Correlation Analysis", section 2. The mean is over as many
    correlations as the smaller subspace has dimensions. With fewer inputs than directions every correlation is 1: the
    probe should have several times as many inputs as `variance` keeps directions.

    Args:
        networks: as `rsa` takes them.
        probe: as `rsa` takes it.
        variance: share of each network's variance that its directions hold, above 0 and at most 1.
        **options: as `rsa` takes them; `bootstrap` is 0 unless given.

    Returns:
        Affinities (D, N, N) from 0 to 1, symmetric, ones on the diagonal.

    Raises:
        AffinityError: as `rsa`; `variance` not above 0 and at most 1.

    >>> def network():
    ...     return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> trained = {"depth": network(), "edges": network()}
    >>> affinity = branchnet.svcca(trained, torch.randn(30, 6), locations=["1"])
    >>> affinity.measure, affinity.values.shape
    ('svcca', (1, 2, 2))
    """
    _check_variance(variance)
    return _by_decomposition("svcca", networks, probe, lambda grams: _svcca(grams, variance), options)


def pwcca(networks: Networks, probe: Any, *, variance: float = 0.99, **options: Unpack[ProbeArguments]) -> Affinity:
    """Affinity by PWCCA: canonical correlations weighted by how much of the network each direction accounts for.

    Morcos, Raghu and Bengio 2018, "Insights on representational similarity in neural networks with canonical
    correlation", section 2.2: weights are sums over features of `|h^T x|`, h a canonical variate of the first network.
    The measure has a direction; `[i, j]` is the mean of both. As there, directions beyond `variance` are dropped
    first (SVD). Where two subspaces together have more dimensions than there are inputs, several correlations are
    exactly 1, the directions among those are arbitrary, and so is the third or fourth decimal of the result. The
    weights need the features again: every network reads the probe twice. Nothing is resampled.

    Args:
        networks: as `rsa` takes them.
        probe: as `rsa` takes it.
        variance: share of each network's variance that its directions hold, above 0 and at most 1.
        **options: as `rsa` takes them; `bootstrap` is refused.

    Returns:
        Affinities (D, N, N) from 0 to 1, symmetric, ones on the diagonal.

    Raises:
        AffinityError: as `rsa`; `variance` not above 0 and at most 1; `bootstrap` above 0.

    >>> def network():
    ...     return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> trained = {"depth": network(), "edges": network()}
    >>> affinity = branchnet.pwcca(trained, torch.randn(30, 6), locations=["1"])
    >>> affinity.measure, affinity.values.shape
    ('pwcca', (1, 2, 2))
    """
    _check_variance(variance)
    unless_given: ProbeArguments = {"bootstrap": 0, **options}
    settings = Options(**unless_given)
    if settings.bootstrap:
        raise AffinityError(
            f"bootstrap is {settings.bootstrap}; expected 0: pwcca has no standard errors, since every draw would read "
            "all features again"
        )
    family, fixed = prepare(networks, probe, settings)
    with blaming_inputs(fixed, family.members[0].network):
        signatures = read_signatures(family, fixed, gram_kind(), settings)
    bases = [[_directions(one.astype(np.float64), variance) for one in ones] for ones in signatures]
    between = np.stack([np.eye(len(family.members)) for _ in family.locations])

    def one_way(index: int) -> list[dict[int, float]]:
        """Mean correlation with every other network, weighted for this one, at every location."""
        variates = [_variates(ones, index) for ones in bases]
        weights = _variate_weights(family.members[index], family, fixed, variates, settings)
        return [
            {other: float(w[other] / w[other].sum() @ correlations) for other, (_, correlations) in pairs.items()}
            for pairs, w in zip(variates, weights, strict=True)
        ]

    for index, found in enumerate(scattered(len(family.members), one_way)):
        for location, means in enumerate(found):
            for other, mean in means.items():
                between[location, index, other] = mean
    return assemble("pwcca", family, fixed, [unit_diagonal(one) for one in between], [], settings)


def _by_decomposition(
    measure: str,
    networks: Networks,
    probe: Any,
    compare: Callable[[Sequence[Matrix]], Matrix],
    options: ProbeArguments,
) -> Affinity:
    def full(grams: Sequence[Signature], names: Sequence[str]) -> Matrix:
        return compare([one.astype(np.float64) for one in grams])

    def resample(grams: Sequence[Signature], choice: Options) -> Matrix:
        return half_samples(grams, compare, choice.bootstrap, choice.seed)

    unless_given: ProbeArguments = {"bootstrap": 0, **options}
    settings = Options(**unless_given)
    return measure_pairs(measure, networks, probe, settings, gram_kind(), full, resample)


def _procrustes(grams: Sequence[Matrix]) -> Matrix:
    factors = []
    for one in grams:
        vectors, values = _decompose(one)
        scaled = vectors * np.sqrt(values)
        factors.append(scaled / np.linalg.norm(scaled))
    return _all_pairs(factors, lambda first, second: float(np.linalg.svd(first.T @ second, compute_uv=False).sum()))


def _svcca(grams: Sequence[Matrix], variance: float) -> Matrix:
    bases = [_directions(one, variance) for one in grams]
    return _all_pairs(bases, lambda first, second: float(np.linalg.svd(first.T @ second, compute_uv=False).mean()))


def _all_pairs(items: Sequence[Matrix], similarity: Callable[[Matrix, Matrix], float]) -> Matrix:
    result = np.eye(len(items))
    for i in range(len(items)):
        for j in range(i):
            result[i, j] = result[j, i] = min(similarity(items[i], items[j]), 1.0)
    return result


def _decompose(gram: Matrix) -> tuple[Matrix, Matrix]:
    """U (K, r) and the squared singular values (r,), largest first, of the centred features; rounding is dropped."""
    values, vectors = np.linalg.eigh(double_centred(gram))
    # numpy's rule for the rank of a matrix (largest value times its size times eps), with the eps of the features.
    kept = values > values[-1] * len(gram) * np.finfo(np.float32).eps
    if not kept.any() or values[-1] <= 0:
        raise AffinityError("the features of all inputs are the same; expected some that differ between inputs")
    return vectors[:, kept][:, ::-1], values[kept][::-1]


def _directions(gram: Matrix, variance: float) -> Matrix:
    """The fewest leading columns of U that hold `variance` of the variance."""
    vectors, values = _decompose(gram)
    # At variance = 1 rounding of the running sum must not ask for one direction more than there is.
    shares = np.cumsum(values) / values.sum()
    return vectors[:, : int(np.searchsorted(shares, variance * (1 - 1e-12))) + 1]


def _check_variance(variance: float) -> None:
    if not 0 < variance <= 1:
        raise AffinityError(f"variance is {variance}; expected a share above 0 and at most 1")


def _variates(bases: Sequence[Matrix], index: int) -> dict[int, tuple[Matrix, Matrix]]:
    """Canonical variates (K, c) of one network, and their correlations (c,), with every other network."""
    own = bases[index]
    result = {}
    for other, basis in enumerate(bases):
        if other != index:
            left, correlations, _ = np.linalg.svd(own.T @ basis, full_matrices=False)
            result[other] = (own @ left, np.minimum(correlations, 1.0))
    return result


def _variate_weights(
    member: Member,
    family: Family,
    probe: Probe,
    variates: Sequence[dict[int, tuple[Matrix, Matrix]]],
    options: Options,
) -> list[dict[int, Matrix]]:
    """Sum over features of |h^T x| for every variate h: `[location][other]`, (c,)."""
    sums: dict[tuple[int, int], dict[int, Matrix]] = {}
    traces: dict[tuple[int, int], float] = {}
    floors: dict[tuple[int, int], float] = {}

    def add(chunk: Chunk, features: Kept) -> None:
        key = (chunk.location, chunk.tensor)
        held = sums.setdefault(key, {})
        for block in column_blocks(features):
            floors[key] = floors.get(key, 0.0) + rounding_floor(block)
            block -= block.mean(dim=0)
            traces[key] = traces.get(key, 0.0) + float(block.double().square().sum())
            for other, (vectors, _) in variates[chunk.location].items():
                with full_precision(block.device):
                    onto = torch.from_numpy(vectors).to(block).T @ block
                held[other] = held.get(other, 0.0) + onto.abs().sum(dim=1).double().cpu().numpy()

    read_chunks(member, probe, family.locations, options, add)
    varying = {key: trace for key, trace in traces.items() if trace > floors[key]}
    return [_summed(location, sums, varying, options.tensors) for location in range(len(family.locations))]


def _summed(
    location: int,
    sums: dict[tuple[int, int], dict[int, Matrix]],
    traces: dict[tuple[int, int], float],
    together: str,
) -> dict[int, Matrix]:
    """Weights over all tensors of a location, each first scaled to norm 1 where tensors have equal weight."""
    total: dict[int, Matrix] = {}
    for key, held in sums.items():
        if key[0] == location and key in traces:
            scale = 1 / np.sqrt(traces[key]) if together == "mean" else 1.0
            for other, weights in held.items():
                total[other] = total.get(other, 0.0) + scale * weights
    return total
