"""What a branched network costs, node by node, counted on one run with the example.

FLOPs are counted by fvcore's convention: one multiply-add is one. Every node is counted once, however many tasks it
serves. All figures are for the whole example, at its batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

from branchnet.builder.stitch_costs import StitchCost, stitch_costs
from branchnet.stages.costs import FirstDifference
from branchnet.stages.flop_formulas import PRODUCTS
from branchnet.stages.flops import OperatorCounter, without_attention_fast_path
from branchnet.stages.interface import Example, flat_example
from branchnet.stages.tracing.trial import saved
from branchnet.utils.installed_torch.torch_internals import cpu_attention_operator
from branchnet.utils.modes import evaluation_mode

if TYPE_CHECKING:
    from branchnet.builder import BranchedNetwork, Node

CONVENTION = "fvcore: one multiply-add counts as one FLOP"
TOLERANCE = 0.05
"""Relative difference from torch.utils.flop_counter above which a warning is given.

Some difference is expected: that counter leaves out normalisation, which fvcore's convention counts.
"""


def _attention(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
    """FLOPs by shapes; the formula that torch's counter has for the same kernel on other devices."""
    return sdpa_flop_count(query, key, value)  # type: ignore[no-any-return]


# torch's counter knows the attention kernels of accelerators only.
_CPU_ATTENTION = {cpu_attention_operator: _attention}

_UNKNOWN_TO_TORCH = PRODUCTS - {operator.__name__ for operator in flop_registry}


@dataclass(frozen=True)
class NodeCost:
    """Cost of one node, or of the head of one task.

    Attributes:
        id: the module's name in the branched network, `nodes.<stage>.<k>` or `heads.<i>`.
        stage: number of the node's stage; for a head the number of stages D.
        tasks: the tasks that it serves.
        donor: the task whose network gave its first weights.
        params: parameters, each counted once inside the node.
        flops: multiply-adds of one forward pass.
        activation_bytes: bytes of all results of one forward pass.
    """

    id: str
    stage: int
    tasks: tuple[str, ...]
    donor: str
    params: int
    flops: int
    activation_bytes: int


@dataclass(frozen=True)
class Total:
    """Sum over some nodes; `name` and `tasks` say over which."""

    name: str
    tasks: tuple[str, ...]
    nodes: int
    params: int
    flops: int


@dataclass(frozen=True)
class NetworkCosts:
    """What a branched network costs.

    Attributes:
        tasks: task names.
        locations: names of the stages' ends.
        nodes: every node from input to output, then every head in task order.
        params: distinct parameters of the whole network; below the sum over nodes where nodes share some.
        reference_flops: half of what torch.utils.flop_counter counts (it takes two per multiply-add and leaves
            normalisation out).
        uncounted: operators that compute something and that the convention has no formula for.
        inputs: shapes of the example's tensors.
        limited_by: where the networks' structures part, if less than half of the parameters lies before.
        stitches: what each stitching layer costs; it is counted in the node or head behind it, too.
        only_here: multiply-adds by operator that torch.utils.flop_counter has no formula for and counts as nothing,
            normalisation and resampling aside.
    """

    tasks: tuple[str, ...]
    locations: tuple[str, ...]
    nodes: tuple[NodeCost, ...]
    params: int
    reference_flops: int
    uncounted: tuple[str, ...]
    inputs: tuple[tuple[int, ...], ...]
    only_here: Mapping[str, int] = field(default_factory=dict)
    stitches: tuple[StitchCost, ...] = ()
    limited_by: FirstDifference | None = None

    @property
    def flops(self) -> int:
        """Multiply-adds of one forward pass for all tasks."""
        return sum(node.flops for node in self.nodes)

    @property
    def activation_bytes(self) -> int:
        """Bytes of all results of one forward pass for all tasks."""
        return sum(node.activation_bytes for node in self.nodes)

    @property
    def separate_params(self) -> int:
        """Parameters of one network per task, each as deep as the task's path; these have no stitches."""
        return sum(total.params for total in self.per_task()) - sum(s.params * n for s, n in self._stitched_paths())

    @property
    def separate_flops(self) -> int:
        """Multiply-adds of one network per task."""
        return sum(total.flops for total in self.per_task()) - sum(s.flops * n for s, n in self._stitched_paths())

    def _stitched_paths(self) -> list[tuple[StitchCost, int]]:
        """Each stitch with the number of tasks that it is on the path of."""
        served = {node.id: len(node.tasks) for node in self.nodes}
        return [(stitch, served[stitch.child]) for stitch in self.stitches]

    def stitch_marks(self) -> dict[tuple[int, int], str]:
        """Say which nodes are stitched, for `Tree` drawings.

        Returns:
            by stage and number of the node what it is stitched to.
        """
        return {stitch.place: f"stitched to {stitch.source}'s features" for stitch in self.stitches}

    def per_stage(self) -> tuple[Total, ...]:
        """Sum over stages.

        Returns:
            one total for each stage, and one for all heads.
        """
        return tuple(
            _total(name, self.tasks, [node for node in self.nodes if node.stage == stage])
            for stage, name in enumerate((*self.locations, "heads"))
        )

    def per_branch(self) -> tuple[Total, ...]:
        """Sum over branches: the nodes, and the head, that serve the same tasks one after another.

        Returns:
            one total for each branch.
        """
        members: dict[tuple[str, ...], list[NodeCost]] = {}
        for node in self.nodes:
            members.setdefault(node.tasks, []).append(node)
        return tuple(_total(f"{nodes[0].id} to {nodes[-1].id}", tasks, nodes) for tasks, nodes in members.items())

    def per_task(self) -> tuple[Total, ...]:
        """Sum over what runs when only one task is asked for.

        Returns:
            one total for each task.
        """
        return tuple(_total(task, (task,), [n for n in self.nodes if task in n.tasks]) for task in self.tasks)

    def node_params(self) -> tuple[float, ...]:
        """Count the parameters of one node of each stage.

        Returns:
            one number for each stage: the mean over its nodes, which have the same structure.
        """
        return tuple(total.params / max(total.nodes, 1) for total in self.per_stage()[: len(self.locations)])

    def exclusive_params(self, task: str) -> int:
        """Count the parameters that serve one task alone: what leaving it out would save.

        Args:
            task: the task.

        Returns:
            their number.
        """
        return sum(node.params for node in self.nodes if node.tasks == (task,))

    def notes(self) -> tuple[str, ...]:
        """Say by which convention was counted, and what a reader must know to trust the numbers.

        Returns:
            one sentence or two for each note.
        """
        shapes = ", ".join("x".join(map(str, shape)) or "scalar" for shape in self.inputs)
        notes = [f"FLOPs by {CONVENTION}; for the whole example ({shapes})."]
        if self.limited_by is not None:
            notes.append(str(self.limited_by))
        if self.uncounted:
            notes.append(uncounted_note(self.uncounted))
        compared = self.flops - sum(self.only_here.values())
        difference = compared / self.reference_flops - 1 if self.reference_flops else 0.0
        text = f"torch.utils.flop_counter, halved, gives {self.reference_flops:,} ({-difference:+.1%})"
        if self.only_here:
            text += f", leaving out {', '.join(self.only_here)}, for which it has no formula"
        if abs(difference) > TOLERANCE:
            notes.append(f"Warning: {text}: more than {TOLERANCE:.0%} apart, so do not trust either blindly.")
        else:
            notes.append(f"Cross-check: {text}.")
        if self.params < (summed := sum(node.params for node in self.nodes)):
            notes.append(f"Nodes share parameters: they sum to {summed:,}, the network holds {self.params:,}.")
        return tuple(notes)


def uncounted_note(operators: Sequence[str]) -> str:
    """Name the operators whose multiply-adds are counted as nothing.

    Args:
        operators: their names.

    Returns:
        one sentence.
    """
    return f"Operators without a formula, counted as nothing: {', '.join(operators)}."


def network_costs(branched: BranchedNetwork, example: Example) -> NetworkCosts:
    """Count parameters, multiply-adds and activation memory of every node on two runs with `example`.

    Args:
        branched: a branched network; it runs in eval mode, and is as before afterwards.
        example: what a single-task network takes.

    Returns:
        the costs of the whole example.

    Raises:
        BuildError: an example of another form than the network takes.
    """
    members = list(branched.members())
    difference = branched.costs.first_difference
    stitches = stitch_costs(branched, example)
    with saved(branched), evaluation_mode(branched), OperatorCounter() as counter:
        flops, sizes = _measured(branched, members, example, lambda: counter.flops, lambda: counter.bytes)
    with (
        saved(branched),
        evaluation_mode(branched),
        FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as reference,
    ):
        (counted,) = _measured(branched, members, example, reference.get_total_flops)
    return NetworkCosts(
        tasks=branched.tasks,
        locations=branched.locations,
        nodes=tuple(
            NodeCost(
                id=member.id,
                stage=member.stage,
                tasks=member.tasks,
                donor=member.donor,
                params=_parameters(member.module),
                flops=flops[member.id],
                activation_bytes=sizes[member.id],
            )
            for member in members
        ),
        params=_parameters(branched),
        reference_flops=sum(counted.values()) // 2,
        uncounted=tuple(sorted(counter.unsupported)),
        inputs=tuple(tuple(tensor.shape) for tensor in flat_example(example)),
        limited_by=difference if difference is not None and difference.limits else None,
        only_here={name: counter.by_operator[name] for name in sorted(_UNKNOWN_TO_TORCH) if counter.by_operator[name]},
        stitches=stitches,
    )


def capture_inputs(branched: BranchedNetwork, example: Example) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return what each node and head is called with when the network runs on `example`: {id: (args, kwargs)}."""
    captured: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def keep(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        captured[node.id] = (args, kwargs)

    with torch.no_grad(), evaluation_mode(branched), _hooked(branched, keep):
        branched(example)
    return captured


def _measured(
    branched: BranchedNetwork, members: Sequence[Node], example: Example, *meters: Callable[[], int]
) -> list[dict[str, int]]:
    """How far each meter moves while each node runs."""
    moved: list[dict[str, int]] = [dict.fromkeys((member.id for member in members), 0) for _ in meters]

    def enter(node: Node, args: Any, kwargs: Any) -> None:
        for meter, sums in zip(meters, moved, strict=True):
            sums[node.id] -= meter()

    def leave(node: Node) -> None:
        for meter, sums in zip(meters, moved, strict=True):
            sums[node.id] += meter()

    with torch.no_grad(), without_attention_fast_path(), _hooked(branched, enter, leave):
        branched(example)
    return moved


@contextmanager
def _hooked(
    branched: BranchedNetwork,
    enter: Callable[[Node, Any, Any], None],
    leave: Callable[[Node], None] = lambda node: None,
) -> Iterator[None]:
    handles = []
    for member in branched.members():
        # Bound as defaults: a closure would see the last member only.
        def before(module: nn.Module, args: Any, kwargs: Any, member: Node = member) -> None:
            enter(member, args, kwargs)

        def after(module: nn.Module, args: Any, output: Any, member: Node = member) -> None:
            leave(member)

        handles.append(member.module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(member.module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _total(name: str, tasks: tuple[str, ...], nodes: Sequence[NodeCost]) -> Total:
    return Total(name, tasks, len(nodes), sum(n.params for n in nodes), sum(n.flops for n in nodes))
