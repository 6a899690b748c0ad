"""Representation similarity analysis (RSA) of networks, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from branchnet.affinity.bootstrap import resample_entries
from branchnet.affinity.features.signatures import rdm_kind
from branchnet.affinity.measure_options import Options, ProbeArguments
from branchnet.affinity.measurement import measure_pairs
from branchnet.affinity.measures.rdm_comparison import Comparison, compare_entries
from branchnet.affinity.measures.rdms import Dissimilarity
from branchnet.affinity.networks import Networks
from branchnet.affinity.tensor import Affinity

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it from Python 3.11 on


def rsa(
    networks: Networks,
    probe: Any,
    *,
    dissimilarity: Dissimilarity = "pearson",
    comparison: Comparison = "spearman",
    center: bool = False,
    **options: Unpack[ProbeArguments],
) -> Affinity:
    """Affinity by representation similarity: whether two networks find the same inputs similar.

    At every location the dissimilarity of each pair of the K inputs is computed for every network (`rdm`), and those
    of two networks are compared (`compare_rdms`). The defaults are those of Branched Multi-Task Networks
    (Vandenhende et al. 2020, section 3.1): 1 - Pearson, compared by Spearman correlation; K = 500 there.

    Args:
        networks: {task: network, or several networks of different seeds}; plain ones, or results of `split_all`.
            Networks run in eval mode without gradients and are left exactly as they were.
        probe: the K inputs, in whatever `branchnet.data.read_samples` takes: tensors, arrays, a list, a Dataset, a
            DataLoader, ...; labels with them are dropped. What comes from files is read once and kept, up to 1 GiB;
            larger probes are read again for each network, and compared by content each time.
        dissimilarity: as `rdm` takes it.
        comparison: as `compare_rdms` takes it.
        center: as `rdm` takes it.
        **options: see `branchnet.affinity.Options`: locations, batch_size, device, features, tensors, bootstrap, seed,
            memory_limit, cache. With Kendall's tau, which is slow to resample, bootstrap is 0 unless given.

    Returns:
        Affinities (D, N, N) from -1 to 1, symmetric, ones on the diagonal, with standard errors by bootstrap.

    Raises:
        DataError: inputs that cannot be read, or change between readings, by shuffling or random augmentation.
        AffinityError: fewer than three inputs; features that are constant or not finite, named
            by task and location; staged networks that are cut differently.
        SplitError: plain networks that cannot be cut.

    >>> def network():
    ...     return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> trained = {"depth": network(), "normals": network(), "edges": network()}
    >>> affinity = branchnet.rsa(trained, torch.randn(20, 6), locations=["1", "3"], bootstrap=10)
    >>> affinity.tasks, affinity.locations, affinity.values.shape
    (('depth', 'normals', 'edges'), ('1', '3'), (2, 3, 3))
    >>> np.array_equal(affinity.values, affinity.values.transpose(0, 2, 1))
    True
    >>> affinity.standard_errors.shape
    (2, 3, 3)
    """
    unless_given: ProbeArguments = {"bootstrap": 0, **options} if comparison == "kendall" else options
    settings = Options(**unless_given)
    kind = rdm_kind(dissimilarity, center)
    return measure_pairs(
        "rsa",
        networks,
        probe,
        settings,
        kind,
        lambda entries, names: compare_entries(np.stack(entries), comparison, names),
        lambda entries, choice: resample_entries(np.stack(entries), comparison, choice.bootstrap, choice.seed),
    )
