"""How far an affinity says more than which random seed the networks were trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# Below it, less than a quarter of the variance of the pairs' ranks (0.5^2) is shared by two seeds.
NOISE_THRESHOLD = 0.5


@dataclass(frozen=True, eq=False)
class Reliability:
    """How similar networks are that differ in their seed only.

    Attributes:
        ceiling: float64, (D, N): mean affinity between networks of the same task and different seeds; the highest
            value that the affinity with another task can be expected to reach. Of N tasks, those with one network
            have the mean of the others.
        seed_correlation: float64, (D,): Spearman correlation, over all pairs of tasks, of the affinities among
            networks of one seed with those among networks of another, averaged over pairs of seeds. None with fewer
            than three tasks (there is nothing to rank) or where a task has one network.
    """

    ceiling: npt.NDArray[np.float64]
    seed_correlation: npt.NDArray[np.float64] | None

    def noise(self, locations: Sequence[str], threshold: float = NOISE_THRESHOLD) -> tuple[str, ...]:
        """Find the locations at which the order of the pairs hardly survives a change of seed.

        Args:
            locations: the D names.
            threshold: least seed correlation that counts as a signal.

        Returns:
            Their names; none where the seed correlation is unknown.
        """
        if self.seed_correlation is None:
            return ()
        return tuple(
            name
            for name, value in zip(locations, self.seed_correlation, strict=True)
            if not value >= threshold  # NaN is noise, too
        )

    def to_dict(self) -> dict[str, Any]:
        """Write the reliability for a file.

        Returns:
            Plain lists and numbers, as JSON holds them.
        """
        correlation = None if self.seed_correlation is None else self.seed_correlation.tolist()
        return {"ceiling": self.ceiling.tolist(), "seed_correlation": correlation}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Reliability:
        """Read back what `to_dict` wrote.

        Args:
            content: the mapping that `to_dict` returned.

        Returns:
            An equal reliability.
        """
        correlation = content["seed_correlation"]
        return cls(np.array(content["ceiling"]), None if correlation is None else np.array(correlation))
