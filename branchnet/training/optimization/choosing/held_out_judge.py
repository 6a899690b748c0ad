"""What held-out samples say of a network, as far as choosing by it goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Judge:
    """What held-out samples say of the network.

    Attributes:
        tasks: the tasks that are judged.
        measure: computes each task's loss with the network as it is, and the metrics that were asked for.
        constant: the loss of the best constant answer for each task, where it is known.
        judged_on: which samples these are; see `History`.
        tolerance: from a task and its loss before training to how much more counts as equal.
        scale: from a task and its loss before training to the unit in which losses of tasks are added up.
        cause: says why losses are not finite, where the samples show it.
        before: the losses of the network as the user gave it, where it was changed before the first step.
    """

    tasks: tuple[str, ...]
    measure: Callable[[], tuple[Mapping[str, float], Mapping[str, float]]]
    constant: Mapping[str, float] = field(default_factory=dict)
    judged_on: str = "validation samples"
    tolerance: Callable[[str, float], float] = lambda task, before: 0.0
    scale: Callable[[str, float], float] = lambda task, before: 1.0
    cause: Callable[[], str] = str
    before: Mapping[str, float] | None = None
