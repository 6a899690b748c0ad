"""Ascent of a concave dual function over potentials, given its slopes.

Any place gives a valid bound; how steps are made decides only how fast the bounds rise.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
# How much is kept of the mean slope and of its square, and what the last step's length is of the first one's.
_MEAN, _SQUARE, _SHRINKS = 0.95, 0.99, 0.04


Place = TypeVar("Place")
Slopes = TypeVar("Slopes")


@dataclass(frozen=True)
class Best(Generic[Place]):
    """The largest value of an ascent, and where it is."""

    value: float
    at: Place


def climb(
    place: Callable[[], Place],
    value: Callable[[Place], tuple[float, Slopes]],
    move: Callable[[Slopes], None],
    *,
    steps: int,
    every: int,
    target: float,
) -> Generator[float, None, Best[Place]]:
    """Go up, and hand out the best value so far; it ends early where that reaches the target.

    Args:
        place: where the ascent is.
        value: the function there, and what `move` needs of its slope.
        move: a step.
        steps: how many.
        every: how many go to one value that is handed out.
        target: what no value needs to exceed.

    Returns:
        The best.
    """
    best = Best(-np.inf, place())
    for step in range(steps):
        at = place()
        found, slopes = value(at)
        if found > best.value:
            best = Best(found, at)
        if best.value >= target:
            yield target
            return best
        if step % every == every - 1:
            yield best.value
        move(slopes)
    return best


class Ascent:
    """Adam's steps over potentials, once as they are and once as what each task pays for each stage.

    What a task pays for a stage shifts all its potentials from there on together, which single steps take long to do.

    Args:
        start: potentials (D, N, N) that are the same for all representatives.
        length: (D, 1, 1) first length of steps.
        steps: how many there will be.
    """

    def __init__(self, start: Floats, length: Floats, steps: int) -> None:
        paid = np.diff(start[:, :, :1], axis=0, prepend=0.0)
        self._paid, self._own = Adam(paid, length, steps), Adam(np.zeros_like(start), length, steps)

    def potentials(self) -> Floats:
        """Where it is."""
        return np.asarray(np.cumsum(self._paid.place, axis=0) + self._own.place)

    def move(self, slope: Floats) -> None:
        """A step; `slope[-1]` is that of one number for each task, repeated."""
        sums = np.concatenate([slope[:-1].sum(axis=2, keepdims=True), slope[-1:, :, :1]])
        self._paid.move(np.cumsum(sums[::-1], axis=0)[::-1])
        self._own.move(np.concatenate([slope[:-1], np.zeros_like(slope[-1:])]))


class Adam:
    """Adam (Kingma and Ba 2015), upwards, by steps that shrink.

    Args:
        place: where to start.
        length: first length of steps.
        steps: how many there will be.
    """

    def __init__(self, place: Floats, length: Floats, steps: int) -> None:
        self.place = place
        self._length, self._steps, self._step = length, steps, 0
        self._mean, self._square = np.zeros_like(place), np.zeros_like(place)

    def move(self, slope: Floats) -> None:
        """A step."""
        self._mean = _MEAN * self._mean + (1 - _MEAN) * slope
        self._square = _SQUARE * self._square + (1 - _SQUARE) * slope**2
        length = self._length * (_SHRINKS) ** (self._step / self._steps)
        self._step += 1
        mean, square = self._mean / (1 - _MEAN**self._step), self._square / (1 - _SQUARE**self._step)
        self.place = self.place + length * mean / (np.sqrt(square) + 1e-3)
