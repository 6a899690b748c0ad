"""The errors that branchnet raises on purpose: one base class, one class for each room, data as attributes."""

from __future__ import annotations

from collections.abc import Sequence


class BranchnetError(Exception):
    """Base of every error that branchnet raises on purpose."""


class SplitError(BranchnetError):
    """A network cannot be traced, or cannot be cut where it was asked to be."""


class AffinityError(BranchnetError):
    """Networks, probe inputs or features that no affinity can be computed from."""


class TreeError(BranchnetError):
    """Partitions that form no tree, or a tree that does not fit the tasks or stages it is used with."""


class BudgetError(BranchnetError):
    """No tree, or no selection of networks, fits the budget.

    Attributes:
        smallest: the smallest size that is feasible, in the unit of the budget; None where it is unknown.
    """

    def __init__(self, message: str, *, smallest: float | None = None) -> None:
        super().__init__(message)
        self.smallest = smallest


class SpecError(BranchnetError):
    """A YAML file that does not say what it should.

    Attributes:
        problems: every problem of the file, each as `file:line:column: path: problem`.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class BuildError(BranchnetError):
    """Donor networks that cannot be combined into the branched network that was asked for."""


class CheckpointError(BranchnetError):
    """A file of weights that is damaged or does not fit the network that it is loaded into."""


class TrainingError(BranchnetError):
    """Training that cannot start, or that diverged."""


class DataError(BranchnetError):
    """Images or labels that are missing, damaged or of the wrong form."""
