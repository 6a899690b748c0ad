"""The errors that branchnet raises on purpose: one base class, one class for each room, data as attributes."""

from __future__ import annotations

from collections.abc import Sequence

from branchnet.utils.visible_text import visible


class BranchnetError(Exception):
    """Base of every error that branchnet raises on purpose. Nothing in names that its message repeats is hidden.

    >>> try:
    ...     branchnet.Tree.shared(["depth", "depth"], 2)
    ... except branchnet.BranchnetError as error:
    ...     print(error)
    tasks names more than once: depth; expected distinct names
    """

    def __str__(self) -> str:
        return visible(super().__str__(), lines=True)


class SplitError(BranchnetError):
    """A network cannot be traced, or cannot be cut where it was asked to be.

    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> branchnet.split(network, torch.zeros(1, 4), locations=["layer1"])
    Traceback (most recent call last):
    branchnet.errors.SplitError: 'layer1' is not a place at which the network can be cut; expected one of 0, 1
    """


class AffinityError(BranchnetError):
    """Networks, probe inputs or features that no affinity can be computed from.

    >>> branchnet.affinity.rdm(torch.zeros(2, 10))
    Traceback (most recent call last):
    branchnet.errors.AffinityError: features has shape (2, 10); expected at least 3 inputs
    """


class TreeError(BranchnetError):
    """Partitions that form no tree, or a tree that does not fit the tasks or stages it is used with.

    >>> branchnet.Tree(["a", "b"], [[["a"], ["b"]], [["a", "b"]]])
    Traceback (most recent call last):
    branchnet.errors.TreeError: stage 1 joins 'a' and 'b', which stage 0 has separated; expected clusters that only ...
    """


class BudgetError(BranchnetError):
    """No tree, or no selection of networks, fits the budget.

    Attributes:
        smallest: the smallest size that is feasible, in the unit of the budget; None where it is unknown.

    >>> affinity = branchnet.Affinity(["a", "b"], ["only"], np.array([[[1.0, 0.5], [0.5, 1.0]]]))
    >>> try:
    ...     branchnet.search(affinity, [1000.0], "40% params")
    ... except branchnet.BudgetError as error:
    ...     print(error.smallest)
    1000.0
    """

    def __init__(self, message: str, *, smallest: float | None = None) -> None:
        super().__init__(message)
        self.smallest = smallest


class SpecError(BranchnetError):
    """A YAML file that does not say what it should.

    Attributes:
        problems: every problem of the file, each as `file:line:column: path: problem`.

    >>> try:
    ...     branchnet.Constructor("branchnet:unet", {"outputs": 2, "weights": "unet.pt"})
    ... except branchnet.SpecError as error:
    ...     print(len(error.problems), error)
    1 branchnet:unet: argument weights: refused: a specification names no weights, files, addresses or code (load ...
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class BuildError(BranchnetError):
    """Donor networks that cannot be combined into the branched network that was asked for.

    >>> def network():
    ...     return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    >>> donors = branchnet.split_all({"a": network(), "b": network()}, torch.zeros(1, 4), locations=["1"])
    >>> branchnet.build(branchnet.Tree.shared(["a", "b"], 3), donors)                 # they have one stage, not three
    Traceback (most recent call last):
    branchnet.errors.BuildError: ...
    """


class CheckpointError(BranchnetError):
    """A file of weights that is damaged or does not fit the network that it is loaded into.

    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> staged = branchnet.split(network, torch.zeros(1, 4), locations=["1"])
    >>> staged.load_original_state_dict({"0.weight": torch.zeros(8, 4)})
    Traceback (most recent call last):
    branchnet.errors.CheckpointError: the state does not fit the network: missing ['0.bias', '2.bias', '2.weight'], ...
    """


class TrainingError(BranchnetError):
    """Training that cannot start or be judged, or that diverged.

    >>> branchnet.multi_task_performance({"depth": 0.5}, {}, {"depth": True})
    Traceback (most recent call last):
    branchnet.errors.TrainingError: ...
    """


class DataError(BranchnetError):
    """Images or labels that are missing, damaged or of the wrong form.

    >>> branchnet.data.ImageFolder("no/such/folder")
    Traceback (most recent call last):
    branchnet.errors.DataError: ...
    """


class TorchVersionError(BranchnetError, ImportError):
    """The installed version of torch lacks something that branchnet needs; `branchnet checks` looks for all of it.

    >>> from branchnet.utils.installed_torch.torch_internals import Internal
    >>> Internal("torch._dynamo", "no_such_name", "compiling nodes").find()
    Traceback (most recent call last):
    branchnet.errors.TorchVersionError: torch ... has no torch._dynamo.no_such_name, which branchnet needs for ...
    """
