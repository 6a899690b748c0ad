"""The affinity tensor: how well each pair of tasks could share each stage.

Conventions: `values[d, i, j]` speaks of stage d, the one that ends at location d; larger means better shared.
For directed measures `[i, j]` is the effect of task i's step on task j.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from branchnet.errors import AffinityError


@dataclass(frozen=True, eq=False)
class Affinity:
    """Affinities of N tasks at D locations.

    Attributes:
        tasks: N distinct task names.
        locations: D location names, from input to output.
        values: float64, (D, N, N).
        measure: what the numbers are, e.g. `"rsa"`.
        standard_errors: float64, (D, N, N), or None.
        probe_hash: content hash of the probe inputs, or None.

    Raises:
        AffinityError: shapes that do not fit, names that repeat, or values that are not finite.
    """

    tasks: Sequence[str]
    locations: Sequence[str]
    values: npt.NDArray[np.float64]
    measure: str = "rsa"
    standard_errors: npt.NDArray[np.float64] | None = None
    probe_hash: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        object.__setattr__(self, "locations", tuple(self.locations))
        values = np.array(self.values, dtype=np.float64)
        shape = (len(self.locations), len(self.tasks), len(self.tasks))
        if values.shape != shape:
            raise AffinityError(f"values have shape {values.shape}; {shape} (locations, tasks, tasks) was expected")
        if not np.isfinite(values).all():
            d, i, j = np.argwhere(~np.isfinite(values))[0]
            raise AffinityError(
                f"affinity of {self.tasks[i]!r} and {self.tasks[j]!r} at {self.locations[d]!r} is {values[d, i, j]}"
            )
        values.setflags(write=False)
        object.__setattr__(self, "values", values)
