"""How far outputs are from a teacher's, as losses: 0 for equal outputs, about 1 for the best constant answer.

By kind of output: the Kullback-Leibler divergence at a temperature for logits ("Distilling the Knowledge in a Neural
Network", Hinton et al. 2015, section 2; times the temperature's square), 1 minus the cosine for unit vectors, the
squared error for all others; each divided by what the mean of the teacher's outputs would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from branchnet.errors import TrainingError
from branchnet.stitching.output_distances import OutputKind, channels_last_rows, float_leaves

MatchKind: TypeAlias = OutputKind
"""`regression`: the squared error; `classification`: the divergence of softmax over dimension 1; `direction`: the angle
between vectors along dimension 1, as normals are."""


@dataclass(frozen=True)
class OutputLoss:
    """The loss of a task's outputs against its teacher's.

    Attributes:
        kind: what the outputs are.
        scales: for each floating-point tensor of the output the error of the best constant answer.
        constants: that answer, (channels,) for each tensor, in the form of an output.
        temperature: that logits are divided by.
    """

    kind: MatchKind
    scales: tuple[float, ...]
    constants: tuple[Tensor, ...]
    temperature: float = 1.0

    def __call__(self, output: Any, wanted: Any) -> Tensor:
        """The mean over the tensors of an output, each in units of its constant answer's error."""
        found, targets = float_leaves(output), float_leaves(wanted)
        if [leaf.shape for leaf in found] != [leaf.shape for leaf in targets]:
            raise TrainingError(
                f"the outputs have the shapes {[tuple(leaf.shape) for leaf in found]} and the teacher's "
                f"{[tuple(leaf.shape) for leaf in targets]}; expected the same form"
            )
        errors = [
            _error(self.kind, one.float(), other.float(), self.temperature) / scale
            for one, other, scale in zip(found, targets, self.scales, strict=True)
        ]
        return torch.stack(errors).mean()

    def constant(self, wanted: Any) -> Tensor:
        """The loss of the constant answer against a teacher's outputs."""
        leaves = float_leaves(wanted)
        answers = [
            answer.to(leaf).reshape(1, -1, *[1] * (leaf.dim() - 2)).expand_as(leaf)
            if leaf.dim() > 1
            else answer.to(leaf).expand_as(leaf)
            for answer, leaf in zip(self.constants, leaves, strict=True)
        ]
        return self(tuple(answers), tuple(leaves))


def output_loss(kind: MatchKind, outputs: Sequence[Any], temperature: float = 1.0) -> OutputLoss:
    """The loss of a task's outputs, in units of the best constant answer's.

    Args:
        kind: what the outputs are.
        outputs: some of the teacher's, a batch each.
        temperature: that logits are divided by.

    Returns:
        a function of (output, teacher's output) to a scalar.

    Raises:
        TrainingError: an unknown kind, outputs without floating-point tensors, or constant ones, which teach nothing.
    """
    if kind not in get_args(MatchKind):
        raise TrainingError(f"the kind of the output is {kind!r}; expected one of {', '.join(get_args(MatchKind))}")
    if not temperature > 0:
        raise TrainingError(f"temperature={temperature!r}; expected a positive number")
    leaves = [torch.cat(parts).double() for parts in zip(*map(float_leaves, outputs), strict=True)]
    constants = [_constant(kind, leaf, temperature) for leaf in leaves]
    scales = [
        float(_error(kind, constant.reshape(1, -1).expand_as(rows), rows, temperature))
        for constant, rows in zip(constants, map(channels_last_rows, leaves), strict=True)
    ]
    if not scales or not all(0 < scale < float("inf") for scale in scales):
        raise TrainingError(
            f"the output's distance from its mean is {tuple(scales)} over {len(leaves[0]) if leaves else 0} samples; "
            "expected one above 0 and finite: a constant output teaches nothing"
        )
    return OutputLoss(kind, tuple(scales), tuple(constants), temperature)


def _constant(kind: MatchKind, outputs: Tensor, temperature: float) -> Tensor:
    rows = channels_last_rows(outputs)
    if kind == "classification":
        return temperature * (rows / temperature).softmax(1).mean(0).clamp_min(1e-30).log()
    return F.normalize(rows.mean(0), dim=0) if kind == "direction" else rows.mean(0)


def _error(kind: MatchKind, found: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    if kind == "classification" and wanted.dim() > 1:
        logs = (wanted / temperature).log_softmax(1)
        others = (found / temperature).log_softmax(1)
        divergence = (logs.exp() * (logs - others)).masked_fill(logs == -torch.inf, 0.0)  # a class that is masked out
        return temperature**2 * divergence.sum(1).mean()
    if kind == "direction" and wanted.dim() > 1:
        return (1 - F.cosine_similarity(found, wanted, dim=1)).mean()
    return (found - wanted).square().mean()
