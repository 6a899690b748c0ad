"""What aggregates the rows of each node: one aggregator for all, or one made for each node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from branchnet.errors import TrainingError
from branchnet.training.weighting.task_gradients import Block

Aggregator: TypeAlias = Callable[[Tensor], Tensor]
"""From a matrix (rows, parameters) to a vector (parameters,); those of `torchjd.aggregation` are such."""
AggregatorFactory: TypeAlias = Callable[[int], Aggregator]
"""From the number of rows to an aggregator, for methods that must know it or that remember what they saw."""


class NodeAggregators:
    """Aggregates each block's matrix; what a factory made for a node and its tasks is kept.

    Args:
        given: an aggregator or a factory. Which of them a function is, shows when it is first called: one that fails on
            a matrix, but returns something callable for a number, is a factory; so is one that returns that at once.
    """

    def __init__(self, given: Aggregator | AggregatorFactory) -> None:
        if not callable(given):
            raise TrainingError(
                f"the aggregator is {given!r}; expected an aggregator of torchjd.aggregation, a function from a matrix "
                "(tasks, parameters) to a vector, or one from the number of tasks to such a function"
            )
        self._given: Any = given
        self._is_factory = True if isinstance(given, type) else False if isinstance(given, nn.Module) else None
        self._made: dict[tuple[str, tuple[str, ...]], Aggregator] = {}

    def __call__(self, block: Block, matrix: Tensor) -> Tensor:
        """Aggregate the rows of a block.

        Args:
            block: the parameters.
            matrix: (tasks, numbers).

        Raises:
            TrainingError: the aggregator fails, returns something of another shape, or remembers one node's matrices
                and is given another's.
        """
        if self._is_factory is None:
            result = self._first_result(block, matrix)
            self._is_factory = callable(result)
            if not self._is_factory:
                return _checked(result, self._given, block, matrix)
        try:
            result = self._of(block)(matrix)
        except (TrainingError, ImportError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise _failure(self._given, block, matrix, error) from error
        return _checked(result, self._given, block, matrix)

    def _first_result(self, block: Block, matrix: Tensor) -> Any:
        try:
            return self._given(matrix)
        except (ImportError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            made = _made_for(self._given, len(matrix))
            if not callable(made):
                raise _failure(self._given, block, matrix, error) from error
            self._made[block.node, block.tasks] = made
            return made

    def _of(self, block: Block) -> Aggregator:
        key = (block.node, block.tasks)
        if key not in self._made:
            if not self._is_factory and self._made and hasattr(self._given, "reset"):
                other = next(iter(self._made))
                raise TrainingError(
                    f"{_name(self._given)} remembers the matrices of {other[0]} for {list(other[1])} and is given that "
                    f"of {block.node} for {list(block.tasks)}; expected a function from the number of tasks to one of "
                    f"its own, e.g. Aggregate({type(self._given).__name__}) or a lambda"
                )
            self._made[key] = self._given(len(block.tasks)) if self._is_factory else self._given
        return self._made[key]


def _made_for(factory: AggregatorFactory, rows: int) -> Any:
    try:
        return factory(rows)
    except Exception:  # a function of matrices fails on a number: its own error is the one to show
        return None


def _checked(result: Any, given: Any, block: Block, matrix: Tensor) -> Tensor:
    if not isinstance(result, Tensor) or result.shape != matrix.shape[1:]:
        found = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise TrainingError(
            f"{_name(given)} returned {found} at {block.node}; expected a vector of {matrix.shape[1]} numbers"
        )
    return result


def _failure(given: Any, block: Block, matrix: Tensor, error: Exception) -> TrainingError:
    return TrainingError(
        f"{_name(given)} failed at {block.node}, on the gradients {tuple(matrix.shape)} of {list(block.tasks)}: "
        f"{type(error).__name__}: {error}"
    )


def _name(given: Any) -> str:
    return repr(given) if isinstance(given, nn.Module) else getattr(given, "__name__", type(given).__name__)
