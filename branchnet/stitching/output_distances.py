"""How far outputs are from the network's own outputs, where 0 is equal and 1 as bad as a constant predictor.

Sums are kept for every input, so that a result can be resampled over inputs, and no output has to be kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from branchnet.errors import AffinityError

OutputKind: TypeAlias = Literal["regression", "classification", "direction"]
"""`regression`: the share of the own output's variance that is not explained; `classification`: the KL divergence from
the own output's softmax over dimension 1, divided by that of the best constant distribution; `direction`: 1 minus the
cosine of vectors along dimension 1, as normals are, divided by that of the best constant direction."""

UNIT = 1e-3
"""How far from 1 the lengths of vectors may be that are taken for directions."""

Sums: TypeAlias = npt.NDArray[np.float64]


def channels_last_rows(values: Tensor) -> Tensor:
    """Reshape (B, C, ...) to rows (B * ..., C), in which every position is a sample; (B,) to (B, 1).

    Args:
        values: outputs, dimension 1 being the channels.

    Returns:
        one row for each position.
    """
    return values.reshape(-1, 1) if values.dim() < 2 else values.movedim(1, -1).reshape(-1, values.shape[1])


def float_leaves(output: Any) -> list[Tensor]:
    """Return the floating-point tensors of an output, which may be nested.

    Args:
        output: a tensor, or a nested structure of them.

    Returns:
        the tensors, in order.
    """
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def kind_of(output: Any) -> OutputKind:
    """What an output is, as far as it shows: directions where all vectors along dimension 1 have length 1.

    Classes do not show: logits are numbers as others are.

    Args:
        output: of some inputs, a tensor or a nested structure of them.

    Returns:
        `direction` or `regression`.

    >>> import torch
    >>> from branchnet.stitching.output_distances import kind_of
    >>> normals = torch.nn.functional.normalize(torch.randn(2, 3, 4, 4), dim=1)
    >>> kind_of(normals), kind_of(2 * normals)
    ('direction', 'regression')
    """
    leaves = float_leaves(output)
    found = leaves and all(
        leaf.dim() > 1 and leaf.shape[1] > 1 and bool(((leaf.double().norm(dim=1) - 1).abs() < UNIT).all())
        for leaf in leaves
    )
    return "direction" if found else "regression"


@dataclass
class OutputDistance:
    """The distance of outputs from a network's own, added up over batches; see `OutputKind`.

    Attributes:
        kind: how it is measured.
        errors: for each floating-point tensor of the output, and each input, the error (summed over positions).
        own: for each tensor and input what the constant predictor's error follows from: (inputs, channels) sums of the
            own output (of its softmax, its directions), and (inputs, 2) sums of its squares (of its negative entropy,
            of 1) and positions.
        shifts: for each tensor what is subtracted from the own output before it is squared, (channels,).

    >>> distance = branchnet.stitching.OutputDistance("regression")
    >>> distance.add(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [3.0]]))
    >>> distance.value()  # the squared error is 1, the variance around the mean 2: 1 and 1 for two inputs
    0.5
    """

    kind: OutputKind = "regression"
    errors: list[list[Sums]] = field(default_factory=list)
    own: list[list[tuple[Sums, Sums]]] = field(default_factory=list)
    shifts: list[Tensor] = field(default_factory=list)

    def add(self, found: Any, own: Any) -> None:
        """Add a batch.

        Args:
            found: the output to judge.
            own: the network's own output for the same inputs, of the same form.

        Raises:
            AffinityError: outputs without a floating-point tensor, of different form, of fewer than two classes where
                they are logits, or own outputs that hold NaN.
        """
        ones, others = float_leaves(found), float_leaves(own)
        if not others or [leaf.shape for leaf in ones] != [leaf.shape for leaf in others]:
            raise AffinityError(
                f"outputs have the shapes {[tuple(leaf.shape) for leaf in ones]} and the network's own "
                f"{[tuple(leaf.shape) for leaf in others]}; expected the same, and one floating-point tensor or more"
            )
        if self.kind == "classification" and any(leaf.dim() < 2 or leaf.shape[1] < 2 for leaf in others):
            raise AffinityError(
                f"logits have the shapes {[tuple(leaf.shape) for leaf in others]}; expected (B, classes, ...) with two "
                "classes or more; compare one logit as 'regression'"
            )
        if any(bool(leaf.isnan().any()) for leaf in others):
            raise AffinityError("the network's own output holds NaN; expected numbers")
        self.errors = self.errors or [[] for _ in others]
        self.own = self.own or [[] for _ in others]
        sums = _SUMS[self.kind]
        for index, (one, other) in enumerate(zip(ones, others, strict=True)):
            rows = _rows(other)
            if len(self.shifts) <= index:  # sums of squares of a large offset would cancel
                self.shifts.append(rows.mean((0, 1)).nan_to_num(posinf=0, neginf=0))
            error, first, second = sums(_rows(one), rows, self.shifts[index].to(rows.device))
            self.errors[index].append(error)
            self.own[index].append((first, second))

    def value(self, weights: npt.NDArray[np.float64] | None = None) -> float:
        """The distance over all inputs.

        Args:
            weights: how often each input counts, (inputs,); None for once.

        Returns:
            the mean over the tensors of the output; 0 where the own output is constant and met exactly; infinite where
            the output is not finite and the own one is.
        """
        return float(np.mean([self._of(index, weights) for index in range(len(self.errors))]))

    def constant(self) -> float:
        """The error of the best constant answer at a position, over all inputs.

        Returns:
            the mean over the tensors of the output: of classifiers nats, the mutual information of input and class as
            the network sees it; of directions 1 minus the cosine; else the variance.
        """
        found = []
        for own in self.own:
            first, second = (np.concatenate([sums[part] for sums in own]).sum(0) for part in (0, 1))
            mean = first / second[1]
            found.append(float(second[0] / second[1]) - _of_constant(self.kind, mean))
        return float(np.mean(found))

    def _of(self, index: int, weights: npt.NDArray[np.float64] | None) -> float:
        errors = np.concatenate(self.errors[index])
        first = np.concatenate([sums for sums, _ in self.own[index]])
        second = np.concatenate([sums for _, sums in self.own[index]])
        w = np.ones(len(errors)) if weights is None else weights
        mean = (w @ first) / (w @ second[:, 1])
        total = w @ second[:, 0]
        constant = total - (w @ second[:, 1]) * _of_constant(self.kind, mean)
        error = float(w @ errors)
        if not np.isfinite(error):
            return float("inf")
        return error / constant if constant > 1e-12 * abs(total) else float(error > 0)


def _rows(leaf: Tensor) -> Tensor:
    """(B, positions, channels) in float64."""
    rows = leaf.detach().double()
    return (
        rows.reshape(len(rows), -1, 1) if rows.dim() < 2 else rows.movedim(1, -1).reshape(len(rows), -1, rows.shape[1])
    )


def _regression_sums(found: Tensor, own: Tensor, shift: Tensor) -> tuple[Sums, Sums, Sums]:
    same = (found == own) & found.isinf()  # masked entries
    error = (found - own).masked_fill(same, 0).square().sum((1, 2))
    about = (own - shift).masked_fill(own.isinf(), 0)
    return error.cpu().numpy(), about.sum(1).cpu().numpy(), _second(about.square().sum((1, 2)), own)


def _classification_sums(found: Tensor, own: Tensor, shift: Tensor) -> tuple[Sums, Sums, Sums]:
    logs = own.log_softmax(-1)
    shares, impossible = logs.exp(), logs == -torch.inf
    error = (shares * (logs - found.log_softmax(-1))).masked_fill(impossible, 0).sum((1, 2))
    second = _second((shares * logs).masked_fill(impossible, 0).sum((1, 2)), own)
    return error.cpu().numpy(), shares.sum(1).cpu().numpy(), second


def _direction_sums(found: Tensor, own: Tensor, shift: Tensor) -> tuple[Sums, Sums, Sums]:
    directions = F.normalize(own, dim=-1)
    error = (1 - (F.normalize(found, dim=-1) * directions).sum(-1)).sum(1)
    ones = torch.full_like(error, float(own.shape[1]))
    return error.cpu().numpy(), directions.sum(1).cpu().numpy(), _second(ones, own)


def _of_constant(kind: OutputKind, mean: Sums) -> float:
    """What the best constant answer takes off the sums at a position, by the mean that these have."""
    if kind == "classification":
        return float(np.sum(mean * np.log(np.maximum(mean, 1e-300))))
    return float(np.linalg.norm(mean)) if kind == "direction" else float(mean @ mean)


def _second(total: Tensor, own: Tensor) -> Sums:
    positions = torch.full((len(own),), float(own.shape[1]), dtype=torch.float64, device=own.device)
    second: Sums = torch.stack([total, positions], 1).cpu().numpy()
    return second


_SUMS = {"regression": _regression_sums, "classification": _classification_sums, "direction": _direction_sums}
