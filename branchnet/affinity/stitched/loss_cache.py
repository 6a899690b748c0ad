"""Stitching losses kept on disk: an entry for each pair at a location holds its loss and the resampled ones.

An entry depends on the donor up to the location, on the other network as a whole, on the inputs that fit and judge, and
on how the outputs are compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from branchnet.affinity.features.distributed import broadcast, world
from branchnet.affinity.features.feature_cache import Cache, running_keys
from branchnet.affinity.networks import Family
from branchnet.affinity.stitched.pair_fits import Key

Losses = dict[Key, npt.NDArray[np.float64]]
_KEPT_AS = "stitch"


class LossCache:
    """The entries of all pairs.

    Args:
        folder: where they are kept; None to keep none.
        family: the networks.
        keys: the pairs at their locations.
        settings: what all losses depend on besides; told apart by their `repr`.
        of_task: the same for the losses of each task.
        count: numbers in an entry.
    """

    def __init__(
        self,
        folder: Path | None,
        family: Family,
        keys: Sequence[Key],
        settings: Sequence[Any],
        of_task: Mapping[str, Any],
        count: int,
    ) -> None:
        self._keys, self._shape = list(keys), (count,)
        self._cache = None
        if folder is not None and world()[0] == 0:
            running = [running_keys([*member.stages, member.network.head], settings) for member in family.members]
            names = [
                _joined(running[i][d], running[j][d], running[j][-1], of_task[family.tasks[j]]) for d, i, j in keys
            ]
            self._cache = Cache(folder, tuple(names))
        self._kept = folder is not None

    def read(self) -> Losses:
        """Read the entries that are there; under `torch.distributed` the first process does, for all."""
        found: Losses = {}
        if self._cache is not None:
            for number, key in enumerate(self._keys):
                entry = self._cache.read(number, _KEPT_AS, self._shape)
                if entry is not None:
                    found[key] = entry.astype(np.float64)
        if self._kept and world()[1] > 1:
            found = broadcast(found, 0)
        return found

    def write(self, losses: Losses) -> None:
        """Keep losses; under `torch.distributed` the first process does."""
        if self._cache is not None:
            for key, entry in losses.items():
                self._cache.write(self._keys.index(key), _KEPT_AS, entry)


def _joined(*parts: Any) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=20).hexdigest()
