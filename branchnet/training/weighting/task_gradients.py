"""The gradients of several losses, apart for each task and node, and how they get into `.grad`.

Terms: a *block* is the trainable parameters of one node, with the tasks that depend on them; a *row* is the gradient of
one task's loss, flattened over a block. A block of several tasks has a matrix (rows, parameters).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from branchnet.builder import BranchedNetwork
from branchnet.errors import TrainingError


@dataclass(frozen=True)
class Block:
    """Trainable parameters of one node.

    Attributes:
        node: its id.
        tasks: those of the given tasks that depend on the parameters, in the network's order.
        parameters: each in one block only.
    """

    node: str
    tasks: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]

    def new_matrix(self) -> Tensor:
        """A matrix (tasks, numbers) to be written, in float32 at least: solvers take neither bfloat16 nor float16."""
        types = [_as_real(p).dtype for p in self.parameters]
        dtype = functools.reduce(torch.promote_types, types, torch.float32)
        numbers = sum(_as_real(p).numel() for p in self.parameters)
        return torch.empty(len(self.tasks), numbers, dtype=dtype, device=self.parameters[0].device)

    def write(self, row: Tensor, gradients: Sequence[Tensor | None]) -> None:
        """Put the gradients of one loss into its row of the matrix; None is zero."""
        for piece, gradient in zip(self.pieces(row), gradients, strict=True):
            if gradient is None:
                piece.zero_()
            else:
                piece.copy_(_as_real(gradient.to_dense() if gradient.is_sparse else gradient))

    def pieces(self, vector: Tensor) -> list[Tensor]:
        """View a vector as one tensor for each parameter; of complex ones (..., 2)."""
        shapes = [_as_real(p).shape for p in self.parameters]
        pieces = vector.split([shape.numel() for shape in shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def gradients(self, vector: Tensor) -> list[Tensor]:
        """Return a vector as the gradient of each parameter, in the parameter's type."""
        return [
            (torch.view_as_complex(piece) if p.is_complex() else piece).to(p.dtype)
            for p, piece in zip(self.parameters, self.pieces(vector), strict=True)
        ]


def parameter_blocks(network: BranchedNetwork, tasks: Collection[str]) -> list[Block]:
    """Divide the trainable parameters by node; one that several nodes share is in the first's, for all of their tasks.

    Stitching layers are part of the node or head that they feed.

    Args:
        network: the network; what is frozen, or serves other tasks only, is in no block.
        tasks: the tasks with a loss.
    """
    first: dict[int, tuple[str, nn.Parameter]] = {}
    served: dict[int, set[str]] = {}
    for node in network.members():
        for parameter in node.module.parameters():
            if parameter.requires_grad:
                first.setdefault(id(parameter), (node.id, parameter))
                served.setdefault(id(parameter), set()).update(node.tasks)
    blocks: dict[tuple[str, tuple[str, ...]], list[nn.Parameter]] = {}
    for key, (node_id, parameter) in first.items():
        own = tuple(task for task in network.tasks if task in tasks and task in served[key])
        if own:
            blocks.setdefault((node_id, own), []).append(parameter)
    return [Block(node_id, own, tuple(parameters)) for (node_id, own), parameters in blocks.items()]


def other_leaves(losses: Iterable[Tensor], known: Collection[int]) -> list[Tensor]:
    """What else losses depend on, as learned uncertainties: leaves of their graphs.

    Args:
        losses: scalars.
        known: ids of leaves that are not looked for.
    """
    seen: set[Any] = set()
    found: dict[int, Tensor] = {}
    pending = [loss.grad_fn for loss in losses]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        pending += [before for before, _ in node.next_functions]
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            found[id(leaf)] = leaf
    return list(found.values())


@dataclass(frozen=True)
class TaskGradients:
    """The gradients of several losses.

    Attributes:
        of_blocks: for each block a matrix (tasks, numbers); where it serves one task, the gradient of each parameter.
        of_others: the sum over the losses, for each other leaf.
    """

    of_blocks: list[Any]
    of_others: list[Tensor | None]


def task_gradients(
    losses: Mapping[str, Tensor], blocks: Sequence[Block], others: Sequence[Tensor], scale: Tensor
) -> TaskGradients:
    """Run one backward pass for each loss, over the nodes on its task's path; the graphs are freed.

    Args:
        losses: a scalar for each task.
        blocks: from `parameter_blocks`.
        others: from `other_leaves`.
        scale: what the losses are multiplied by.
    """
    found: list[Any] = [block.new_matrix() if len(block.tasks) > 1 else None for block in blocks]
    sums: list[Tensor | None] = [None] * len(others)
    for number, (task, loss) in enumerate(losses.items(), start=1):
        mine = [i for i, block in enumerate(blocks) if task in block.tasks]
        inputs = [p for i in mine for p in blocks[i].parameters] + list(others)
        if not inputs:
            continue
        results = list(gradients_of(loss, inputs, scale, retain_graph=number < len(losses)))
        for i in mine:
            block = blocks[i]
            own, results = results[: len(block.parameters)], results[len(block.parameters) :]
            if len(block.tasks) > 1:
                block.write(found[i][block.tasks.index(task)], own)
            else:
                found[i] = own
        sums = [_sum(total, gradient) for total, gradient in zip(sums, results, strict=True)]
    return TaskGradients(found, sums)


def gradients_of(
    loss: Tensor, inputs: Sequence[Tensor], scale: Tensor, *, retain_graph: bool
) -> tuple[Tensor | None, ...]:
    """Return `scale` times the gradient of a scalar; None for inputs that it does not depend on."""
    given = scale.to(loss).expand_as(loss)
    return torch.autograd.grad(loss, inputs, given, retain_graph=retain_graph, allow_unused=True)


def backward_through(
    compute: Callable[[Tensor], Sequence[Tensor | None]],
    value: Tensor,
    inputs: Sequence[Tensor],
    backward: Callable[[Tensor], None],
) -> None:
    """Call `backward` on a scalar whose gradients are computed by `compute`, in the backward pass itself.

    So whatever `backward` does is done: the factor of a GradScaler, which `compute` is given, protects the gradients of
    each task from underflow, too; Lightning Fabric's checks are met; the hooks of DistributedDataParallel see the
    result once.

    Args:
        compute: takes the gradient of the scalar, and returns the gradients of the inputs, that factor included.
        value: of the scalar.
        inputs: tensors that require gradients.
        backward: `Tensor.backward`, or what stands for it.
    """
    backward(_Deferred.apply(compute, value, *inputs))  # type: ignore[no-untyped-call]


class _Deferred(torch.autograd.Function):
    """A scalar whose gradients a function computes when they are asked for."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[[Tensor], Sequence[Tensor | None]], value: Tensor, *_: Tensor) -> Tensor:
        ctx.compute = compute
        return value.detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *ctx.compute(scale))


def check_losses(losses: Mapping[str, Tensor], tasks: Sequence[str]) -> None:
    """Refuse losses that no gradient can be computed of.

    Args:
        losses: what was given for each task.
        tasks: those that are known.

    Raises:
        TrainingError: no loss, one of an unknown task, or one that is no scalar.
    """
    if not losses:
        raise TrainingError(f"losses is empty; expected the loss of one or more of {list(tasks)}")
    for task, loss in losses.items():
        if task not in tasks:
            raise TrainingError(f"losses names the unknown task {task!r}; expected some of {list(tasks)}")
        if not isinstance(loss, Tensor) or loss.dim():
            given = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TrainingError(f"the loss of {task!r} is {given}; expected a scalar tensor, e.g. its mean")


def _as_real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _sum(total: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    return gradient if total is None else total if gradient is None else total + gradient
