"""A network as a chain of stages and a head that hold the network's own parameters under their own names."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from branchnet.errors import CheckpointError, SplitError
from branchnet.stages.codegen.program import Program
from branchnet.stages.costs import FirstDifference, StageCost, StageCosts
from branchnet.stages.graph.dataflow import attribute
from branchnet.stages.interface import Interface, explaining
from branchnet.utils.installed_torch.torch_internals import tree_leaves, tree_unflatten

if TYPE_CHECKING:
    from branchnet.models.constructors import Constructor


@dataclass(frozen=True)
class CutTensor:
    """A tensor of a cut.

    Attributes:
        name: the node that makes it, for messages.
        shape: its shape at the example's size.
        dtype: its type, such as `float32`.
        stage: the number of the stage that made it; -1 for an input of the network.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stage: int


class Stage(nn.Module):
    """One subgraph of a network: takes the tensors of a cut and returns those of the next one (a head: the result).

    Its parameters and buffers have the names that they have in the network. In training mode the subgraph of the
    network's training trace runs, else that of its evaluation trace: a trace keeps what it saw of `self.training`.

    Args:
        name: the location at which the stage ends.
        evaluation: the code of evaluation mode.
        training: the code of training mode; None where the network could not be traced in it.
        keywords: names by which the first stage also takes its arguments.
        reason: why there is no training code, for messages.
        left_in_evaluation: names of the modules that the network's own `train()` leaves in evaluation mode.
    """

    def __init__(
        self,
        name: str,
        evaluation: Program,
        training: Program | None,
        keywords: Sequence[str] = (),
        reason: str = "",
        left_in_evaluation: Collection[str] = (),
    ) -> None:
        super().__init__()
        self._name = name
        self._evaluation = evaluation
        self._training = training
        self._keywords = tuple(keywords)
        self._reason = reason
        self._left_in_evaluation = frozenset(left_in_evaluation)

    def forward(self, *cut: Any, **inputs: Any) -> Any:
        """Run the subgraph of the stage's mode.

        Args:
            *cut: the tensors of the cut before the stage; for the first stage, the example's arguments.
            **inputs: arguments of the first stage by name.

        Returns:
            A tuple of tensors, the next cut; for a head, what the network returns.

        Raises:
            SplitError: an input of the first stage has a size for which the network's code may do something else.
        """
        cut = self._in_order(cut, inputs)
        program = self.running
        if program.sizes is not None and not torch.compiler.is_compiling():
            program.sizes.check(cut)
        result = program.function(self, *cut)
        return result if program.output is None else tree_unflatten(tree_leaves(result), program.output)

    def _in_order(self, cut: tuple[Any, ...], inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        return (*cut, *(inputs[name] for name in self._keywords[len(cut) :])) if inputs else cut

    def check_sizes(self, *cut: Any, **inputs: Any) -> None:
        """Refuse what `forward` refuses; for code that runs without it, compiled or exported.

        Args:
            *cut: as for `forward`.
            **inputs: as for `forward`.

        Raises:
            SplitError: an input has a size for which the network's code may do something else.
        """
        if (sizes := self.running.sizes) is not None:
            sizes.check(self._in_order(cut, inputs))

    def train(self, mode: bool = True) -> Stage:
        """Switch between training and evaluation.

        Args:
            mode: True for training.

        Returns:
            The stage itself.

        Raises:
            SplitError: training is asked for and the network could only be traced in evaluation mode.
        """
        if mode:
            self.check_trainable()
        super().train(mode)
        for name, module in self.named_modules(remove_duplicate=False) if self._left_in_evaluation else ():
            if name in self._left_in_evaluation:
                module.training = False
        return self

    def check_trainable(self) -> None:
        """Refuse a stage that can only be evaluated.

        Raises:
            SplitError: says why the network could not be traced in training mode.
        """
        if self._training is None:
            raise SplitError(f"{self._name} can only be evaluated, not trained: {self._reason}")

    @property
    def running(self) -> Program:
        """The code of the mode that the stage is in."""
        return self._training if self.training and self._training is not None else self._evaluation

    @property
    def graph(self) -> fx.Graph:
        """The subgraph of evaluation mode, as operators on the stage's modules and tensors."""
        return self._evaluation.graph

    @property
    def source(self) -> str:
        """The code of evaluation mode: equal for stages that do the same with the same names."""
        return self._evaluation.source

    def extra_repr(self) -> str:
        """What `print` shows of the stage.

        Returns:
            The location at which it ends.
        """
        return self._name


class StagedNetwork(nn.Module):
    """A network as stages and a head, with the network's outputs, parameters and parameter names.

    `stages[0]` takes the example's arguments, `stages[d]` the tensors of cut d - 1 and each returns a tuple, the next
    cut; `head` takes the last cut and returns what the network returns.

    Attributes:
        stages: the stages, from input to output.
        head: what follows the last location.
        unused: parameters that no run reaches, kept so that no key of the network's state is lost.
        locations: the names at which the stages end; those of the first network where several were split together.
        own_locations: the names of the same places in this network.
        cuts: the tensors alive at each location.
        costs: cost per stage at the example's size.
        head_cost: cost of the head.
        interface: what the network takes.
        constructor: how the network was made by name, or None.
        traced_by: `"fx"`, `"export"` or `"chain"`.
        eval_only: why it cannot be trained, or None.
        depth: how many of the stages it passes; from there on its stages are empty and return what they take, as the
            network leaves the trunk that others follow further, and its head holds all the rest.

    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    >>> staged = branchnet.split(network, torch.zeros(1, 4), locations=["1", "3"])
    >>> type(staged).__name__, staged.locations, staged.costs.params, staged.head_cost.params
    ('StagedNetwork', ('1', '3'), (40, 72), 18)
    >>> x = torch.randn(5, 4)
    >>> cut = staged.stages[1](*staged.stages[0](x))
    >>> torch.equal(staged.head(*cut), network(x))
    True
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        head: Stage,
        unused: nn.Module,
        *,
        locations: Sequence[str],
        own_locations: Sequence[str],
        cuts: Sequence[Sequence[CutTensor]],
        costs: StageCosts,
        head_cost: StageCost,
        interface: Interface,
        constructor: Constructor | None,
        traced_by: str,
        eval_only: str | None,
        depth: int,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.head = head
        self.unused = unused
        self.locations = tuple(locations)
        self.own_locations = tuple(own_locations)
        self.cuts = tuple(tuple(cut) for cut in cuts)
        self.costs = costs
        self.head_cost = head_cost
        self.interface = interface
        self.constructor = constructor
        self.traced_by = traced_by
        self.eval_only = eval_only
        self.depth = depth

    @property
    def first_difference(self) -> FirstDifference | None:
        """Where this network and those that it was split with part; None where nothing differs."""
        return self.costs.first_difference

    @property
    def trainable(self) -> bool:
        """Whether the network can be run in training mode; `eval_only` says why not."""
        return self.eval_only is None

    def train(self, mode: bool = True) -> StagedNetwork:
        """Switch between training and evaluation.

        Args:
            mode: True for training.

        Returns:
            The network itself.

        Raises:
            SplitError: training is asked for and the network can only be evaluated; all modes are as before then.
        """
        for stage in (*self.stages, self.head) if mode else ():
            if isinstance(stage, Stage):  # others may have taken their places
                stage.check_trainable()
        return super().train(mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run all stages and the head.

        Args:
            *args: the network's positional arguments.
            **kwargs: the network's keyword arguments.

        Returns:
            What the network returns for them.

        Raises:
            SplitError: inputs that cannot be run and differ from the example that the network was split with.
        """
        if torch.compiler.is_compiling():
            return self._run(*args, **kwargs)
        with explaining((args, kwargs), self.interface, SplitError, "the network"):
            return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        cut = self.stages[0](*args, **kwargs)
        for stage in self.stages[1:]:
            cut = stage(*cut)
        return self.head(*cut)

    def original_state_dict(self) -> dict[str, Tensor]:
        """Undo the renaming of parameters that splitting brings.

        Returns:
            The state under the network's own keys, ready for the unsplit network's `load_state_dict`.
        """
        return {original_key(key): value for key, value in self.state_dict().items()}

    def load_original_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state that has the network's own keys.

        Args:
            state: tensors by key; prefixes of wrappers (`module.`, `_orig_mod.`) may stand before all of them.

        Raises:
            CheckpointError: keys are missing or unknown, or shapes differ.
        """
        keys = {key: original_key(key) for key in self.state_dict()}
        cleaned = without_prefix(state, set(keys.values()))
        missing = sorted(set(keys.values()) - set(cleaned))
        unknown = sorted(set(cleaned) - set(keys.values()))
        if missing or unknown:
            raise CheckpointError(
                f"the state does not fit the network: missing {missing[:5]}, unknown {unknown[:5]}; expected the "
                f"{len(keys)} keys of the network's own state_dict()"
            )
        try:
            self.load_state_dict({key: cleaned[name] for key, name in keys.items()})
        except RuntimeError as error:
            raise CheckpointError(str(error)) from error


def deepest(networks: Mapping[str, StagedNetwork]) -> StagedNetwork:
    """The first of the networks that passes all stages; others may leave the trunk early."""
    return max(networks.values(), key=lambda network: network.depth)


def original_key(key: str) -> str:
    """The network's own name of a parameter or buffer: `stages.2.layer1.0.weight` is `layer1.0.weight`."""
    names = key.split(".")
    return ".".join(names[2:] if names[0] == "stages" else names[1:])


def hold(stage: nn.Module, root: nn.Module, graphs: Sequence[fx.Graph]) -> None:
    """Give a stage the modules, parameters and buffers of the root that its graphs name, under the same names."""
    nodes = [node for graph in graphs for node in graph.nodes]
    modules = dict.fromkeys(str(node.target) for node in nodes if node.op == "call_module")
    values = dict.fromkeys(str(node.target) for node in nodes if node.op == "get_attr")
    # Outer modules first: `layer1.0` is then found inside `layer1`, not put into a stand-in that `layer1` replaces.
    for path in sorted(modules, key=lambda p: p.count(".")):
        _place(stage, path, root.get_submodule(path))
    for path in sorted(values):
        if not any(path.startswith(f"{module}.") for module in modules):
            _place_value(stage, root, path)


def _place(target: nn.Module, path: str, module: nn.Module) -> None:
    holder, name = _holder(target, path)
    if getattr(holder, name, None) is not module:
        holder.add_module(name, module)


def _holder(target: nn.Module, path: str) -> tuple[nn.Module, str]:
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in target._modules:
            target.add_module(parent, nn.Module())
        target = target._modules[parent]  # type: ignore[assignment]
    return target, name


def _place_value(stage: nn.Module, root: nn.Module, path: str) -> None:
    value = attribute(root, path)
    if isinstance(value, nn.Module):
        _place(stage, path, value)
        return
    holder, name = _holder(stage, path)
    if isinstance(value, nn.Parameter):
        holder.register_parameter(name, value)
    elif isinstance(value, Tensor):
        module = root.get_submodule(path.rpartition(".")[0])
        persistent = name in module._buffers and name not in module._non_persistent_buffers_set
        holder.register_buffer(name, value, persistent=persistent)
    else:
        setattr(holder, name, copy.deepcopy(value))


def keep_unused(root: nn.Module, used: set[str]) -> nn.Module:
    """A module that holds the parameters and buffers of the root's state that no stage holds."""
    unused = nn.Module()
    for path in root.state_dict(keep_vars=True):
        if path not in used and isinstance(attribute_or_none(root, path), Tensor):
            _place_value(unused, root, path)
    return unused


def attribute_or_none(root: nn.Module, path: str) -> Any:
    """The value at a dotted path, or None where the state holds something that is not an attribute."""
    try:
        return attribute(root, path)
    except AttributeError:
        return None


def without_prefix(state: Mapping[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """The state without the prefixes of wrappers (`module.`, `_orig_mod.`), where none of the wanted keys is there."""
    cleaned = dict(state)
    # Twice each: DistributedDataParallel may lie in torch.compile's wrapper or around it.
    for prefix in ("module.", "_orig_mod.", "module.", "_orig_mod."):
        if cleaned and not wanted & set(cleaned) and all(key.startswith(prefix) for key in cleaned):
            cleaned = {key.removeprefix(prefix): value for key, value in cleaned.items()}
    return cleaned
