"""Which inputs of a probe stitches are fitted on, and on which others they are judged."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from branchnet.data.collation import gather, joinable, joined, leaves, length

FEWEST_INPUTS = 20
"""Below so many a stitch fits the inputs and not the networks."""
LEAST_FITTED = 96
"""Inputs to fit on even where fewer give enough positions: neighbouring positions say much the same."""
MOST_JUDGED = 64
_SMOOTH = 0.1
"""Correlation of neighbouring pixels below which images are noise; of photos it is 0.9 and more."""


@dataclass(frozen=True)
class ProbeDivision:
    """Numbers of the inputs to fit on and to judge on, evenly spread over the probe.

    Attributes:
        fitted: numbers of inputs, rising.
        judged: numbers of other inputs; the same ones in a probe of fewer than eight inputs.
    """

    fitted: tuple[int, ...]
    judged: tuple[int, ...]


def divide_probe(inputs: int, needed: int, most_judged: int = MOST_JUDGED) -> ProbeDivision:
    """Divide a probe: a quarter to judge on, at most `most_judged`, the others to fit on, as many as are needed.

    Args:
        inputs: K, the number of inputs.
        needed: how many give enough positions, see `inputs_needed`.
        most_judged: the largest number to judge on.

    Returns:
        the division.
    """
    if inputs < FEWEST_INPUTS:
        warnings.warn(
            f"the probe has {inputs} inputs; expected {FEWEST_INPUTS} or more: stitches fitted on so few fit these "
            "inputs and not the networks",
            stacklevel=4,
        )
    if inputs < 8:
        return ProbeDivision(tuple(range(inputs)), tuple(range(inputs)))
    judged = _spread(range(3, inputs, 4), most_judged)
    rest = [number for number in range(inputs) if number % 4 != 3]
    return ProbeDivision(_spread(rest, max(needed, LEAST_FITTED)), judged)


def _spread(numbers: Sequence[int], count: int) -> tuple[int, ...]:
    if count >= len(numbers):
        return tuple(numbers)
    return tuple(numbers[k * len(numbers) // count] for k in range(count))


def chosen_inputs(batches: Iterable[Any], numbers: Sequence[int]) -> Iterator[Any]:
    """Take some inputs out of batches.

    Args:
        batches: of all inputs, in order.
        numbers: which ones, rising.

    Yields:
        batches of those inputs alone, no larger than the given ones, and as few as that allows where inputs of several
        can be put together: small batches take long.
    """
    wanted = set(numbers)
    start = largest = 0
    waiting: list[Any] = []
    for batch in batches:
        count = length(batch)
        rows = [row for row in range(count) if start + row in wanted]
        start, largest = start + count, max(largest, count)
        if not rows:
            continue
        part = batch if len(rows) == count else gather(batch, torch.tensor(rows))
        if waiting and (sum(map(length, waiting)) + len(rows) > largest or not joinable(waiting[0], part)):
            yield joined(waiting)
            waiting = []
        waiting.append(part)
    if waiting:
        yield joined(waiting)


def warn_of_noise(example: Any) -> None:
    """Warn where images are noise, on which networks show nothing of what they learnt.

    Args:
        example: some inputs; others than images are not judged.
    """
    for leaf in leaves(example):
        if leaf.dim() == 4 and leaf.is_floating_point() and min(leaf.shape[-2:]) >= 8:
            correlation = _neighbours(leaf)
            if correlation < _SMOOTH:
                warnings.warn(
                    f"the probe looks like noise (neighbouring pixels correlate by {correlation:.2f}, in photos by 0.9 "
                    "and more); expected inputs of the kind that the networks were trained on: stitches fitted on "
                    "noise are worthless",
                    stacklevel=4,
                )


def _neighbours(images: Tensor) -> float:
    values = images.double() - images.double().mean((-1, -2), keepdim=True)
    spread = values.square().mean()
    return float((values[..., 1:] * values[..., :-1]).mean() / spread) if spread > 0 else 1.0
