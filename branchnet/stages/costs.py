"""What one stage costs: parameters, multiply-adds, and the memory that its results take.

FLOPs follow fvcore's convention everywhere in branchnet: one multiply-add counts as one FLOP.
All figures are for one example input at the batch size of the example that the network was split with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

from branchnet.utils.visible_text import visible


@dataclass(frozen=True)
class StageCost:
    """Cost of one stage, or of one head.

    Attributes:
        name: the location at which the stage ends; `"head"` for a head.
        params: parameters that the stage holds, each counted once.
        flops: multiply-adds of one forward pass at the example's size.
        activation_bytes: bytes of all intermediate results of one forward pass at the example's size.
        cut_bytes: bytes of the tensors alive at the location that ends the stage.
        uncounted: operators that compute something and whose multiply-adds are counted as nothing.
    """

    name: str
    params: int
    flops: int
    activation_bytes: int = 0
    cut_bytes: int = 0
    uncounted: tuple[str, ...] = ()


@dataclass(frozen=True)
class FirstDifference:
    """Where the structures of networks that were split together part: the first step that they do not have in common.

    Attributes:
        sides: what each network does there, by task.
        shareable: the share of all networks' parameters that lies before, from 0 to 1.
        reason: the difference in words, where it has a name; else empty.

    >>> def network(*last):
    ...     return nn.Sequential(nn.Linear(4, 8), *last).eval()
    >>> networks = {"a": network(nn.Linear(8, 2)), "b": network(nn.Tanh(), nn.Linear(8, 2))}
    >>> print(branchnet.split_all(networks, torch.zeros(1, 4))["a"].first_difference)
    81.6% of the parameters can be shared; then the structures differ:
      a: 1 = Linear(in_features=8, out_features=2, bias=True) -> (1, 2)
      b: 1 = Tanh() -> (1, 8)
    """

    sides: Mapping[str, str]
    shareable: float
    reason: str = ""

    @property
    def limits(self) -> bool:
        """Whether less than half of the parameters can be shared."""
        return self.shareable < 0.5

    def __str__(self) -> str:
        start = f"{100 * self.shareable:.3g}% of the parameters can be shared; then the structures differ"
        lines = [f"{start}, {self.reason}:" if self.reason else f"{start}:"]
        return "\n".join([*lines, *(visible(f"  {task}: {side}") for task, side in self.sides.items())])


@dataclass(frozen=True)
class StageCosts(Sequence[StageCost]):
    """The costs of the D stages of one network, from input to output; of the whole trunk where it leaves that early.

    Attributes:
        stages: one entry per stage.
        first_difference: where the networks that were split together part, or None.
        depths: how many stages the tasks pass that leave the trunk early; of the others nothing is said.
        identical: for each stage the groups of tasks with identical weights up to its end, see `identical_prefixes`;
            empty where that is not known.
    """

    stages: tuple[StageCost, ...]
    first_difference: FirstDifference | None = field(default=None, compare=False)
    depths: Mapping[str, int] = field(default_factory=dict, compare=False)
    identical: tuple[tuple[tuple[str, ...], ...], ...] = field(default=(), compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Location names, one per stage."""
        return tuple(stage.name for stage in self.stages)

    @property
    def params(self) -> tuple[int, ...]:
        """Parameters, one number per stage."""
        return tuple(stage.params for stage in self.stages)

    @property
    def flops(self) -> tuple[int, ...]:
        """Multiply-adds, one number per stage."""
        return tuple(stage.flops for stage in self.stages)

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Operators of any stage whose multiply-adds are counted as nothing, sorted."""
        return tuple(sorted({operator for stage in self.stages for operator in stage.uncounted}))

    @overload
    def __getitem__(self, index: int) -> StageCost: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[StageCost, ...]: ...
    def __getitem__(self, index: int | slice) -> StageCost | tuple[StageCost, ...]:
        return self.stages[index]

    def __len__(self) -> int:
        return len(self.stages)

    def __iter__(self) -> Iterator[StageCost]:
        return iter(self.stages)
