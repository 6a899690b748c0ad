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

from branchnet.errors import AffinityError
from branchnet.utils.installed_torch.torch_internals import pytree

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


@dataclass(frozen=True, eq=False)
class OwnOutput:
    """A network's own output for a batch, with what all comparisons with it have in common.

    Attributes:
        kind: how outputs are compared.
        leaves: its floating-point tensors.
    """

    kind: OutputKind
    leaves: tuple[_OwnLeaf, ...]

    @classmethod
    def of(cls, own: Any, kind: OutputKind) -> OwnOutput:
        """Prepare an output.

        Args:
            own: a tensor, or a nested structure of them.
            kind: how it is compared.

        Raises:
            AffinityError: logits of fewer than two classes, or NaN.
        """
        leaves = float_leaves(own)
        if kind == "classification" and any(leaf.dim() < 2 or leaf.shape[1] < 2 for leaf in leaves):
            raise AffinityError(
                f"logits have the shapes {[tuple(leaf.shape) for leaf in leaves]}; expected (B, classes, ...) with two "
                "classes or more; compare one logit as 'regression'"
            )
        if any(bool(leaf.isnan().any()) for leaf in leaves):
            raise AffinityError("the network's own output holds NaN; expected numbers")
        prepare = {"classification": _OwnLeaf.of_logits, "direction": _OwnLeaf.of_directions}.get(
            kind, _OwnLeaf.of_values
        )
        return cls(kind, tuple(prepare(leaf) for leaf in leaves))

    @property
    def nbytes(self) -> int:
        """Memory of what is prepared."""
        return sum(
            part.nbytes
            for leaf in self.leaves
            for part in (leaf.values, leaf.shares, leaf.excepted)
            if part is not None
        )


@dataclass(frozen=True, eq=False)
class _OwnLeaf:
    """One tensor of an own output; tensors are (B, channels, positions) in float64.

    Attributes:
        kind: how it is compared.
        shape: of the tensor as it was.
        values: the tensor; of classifiers the logarithm of its softmax, of directions with length 1.
        shares: that softmax; None where the output is no classifier's.
        excepted: where the tensor is infinite, the softmax 0; None where it never is.
        shift: the mean over the batch, which is subtracted before squaring, (channels,); 0 of classifiers, directions.
        first: (B, channels) sums over positions of the shifted values, of the softmax, or of the directions.
        second: (B, 2) sums of their squares, of the negative entropy, or of 1; and the number of positions.
    """

    kind: OutputKind
    shape: torch.Size
    values: Tensor
    shares: Tensor | None
    excepted: Tensor | None
    shift: Sums
    first: Sums
    second: Sums

    @classmethod
    def of_values(cls, leaf: Tensor) -> _OwnLeaf:
        values = _positions(leaf)
        excepted = _where_any(values.isinf())
        shift = values.mean((0, 2)).nan_to_num(posinf=0, neginf=0)  # sums of squares of a large offset would cancel
        about = _without(values - shift[:, None], excepted)
        second = _second(about.square().sum((1, 2)), values)
        return cls(
            "regression", leaf.shape, values, None, excepted, shift.cpu().numpy(), about.sum(2).cpu().numpy(), second
        )

    @classmethod
    def of_logits(cls, leaf: Tensor) -> _OwnLeaf:
        logs = _log_softmax(_positions(leaf))
        shares, excepted = logs.exp(), _where_any(logs == -torch.inf)
        second = _second(_without(shares * logs, excepted).sum((1, 2)), logs)
        return cls(
            "classification", leaf.shape, logs, shares, excepted, np.zeros(1), shares.sum(2).cpu().numpy(), second
        )

    @classmethod
    def of_directions(cls, leaf: Tensor) -> _OwnLeaf:
        directions = F.normalize(_positions(leaf), dim=1)
        second = _second(torch.full_like(directions[:, 0, 0], float(directions.shape[2])), directions)
        first = directions.sum(2).cpu().numpy()
        return cls("direction", leaf.shape, directions, None, None, np.zeros(1), first, second)

    def errors(self, found: Tensor) -> Sums:
        """The error of each input, summed over positions: (B,)."""
        values = _positions(found)
        if self.kind == "direction":
            error = 1 - (F.normalize(values, dim=1) * self.values).sum(1, keepdim=True)
        elif self.shares is None:
            error = values - self.values
            if self.excepted is not None:  # masked entries
                error = error.masked_fill((values == self.values) & self.excepted, 0)
            error = error.square()
        else:
            error = _without(self.shares * (self.values - _log_softmax(values)), self.excepted)
        summed: Sums = error.sum((1, 2)).cpu().numpy()
        return summed

    def about(self, shift: Sums) -> tuple[Sums, Sums]:
        """`first` and `second` with another shift."""
        moved = self.shift - shift
        if not moved.any():
            return self.first, self.second
        counted = self.second[:, 1:]
        squares = self.second[:, 0] + 2 * self.first @ moved + self.second[:, 1] * float(moved @ moved)
        return self.first + counted * moved, np.stack([squares, self.second[:, 1]], axis=1)


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
    shifts: list[Sums] = field(default_factory=list)

    def prepared(self, own: Any) -> OwnOutput:
        """Prepare a network's own output for several comparisons of this kind, see `OwnOutput.of`."""
        return OwnOutput.of(own, self.kind)

    def add(self, found: Any, own: Any) -> None:
        """Add a batch.

        Args:
            found: the output to judge.
            own: the network's own output for the same inputs, of the same form; an `OwnOutput` of the same kind where
                several outputs are compared with it.

        Raises:
            AffinityError: outputs without a floating-point tensor, of different form, of fewer than two classes where
                they are logits, or own outputs that hold NaN.
        """
        ones = float_leaves(found)
        others = [leaf.shape for leaf in (own.leaves if isinstance(own, OwnOutput) else float_leaves(own))]
        if not others or [leaf.shape for leaf in ones] != others:
            raise AffinityError(
                f"outputs have the shapes {[tuple(leaf.shape) for leaf in ones]} and the network's own "
                f"{[tuple(shape) for shape in others]}; expected the same, and one floating-point tensor or more"
            )
        prepared = own if isinstance(own, OwnOutput) else self.prepared(own)
        self.errors = self.errors or [[] for _ in others]
        self.own = self.own or [[] for _ in others]
        self.shifts = self.shifts or [leaf.shift for leaf in prepared.leaves]
        for index, (one, other) in enumerate(zip(ones, prepared.leaves, strict=True)):
            self.errors[index].append(other.errors(one))
            self.own[index].append(other.about(self.shifts[index]))

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


def _positions(leaf: Tensor) -> Tensor:
    """(B, channels, positions) in float64."""
    values = leaf.detach().to(torch.float64, memory_format=torch.contiguous_format)
    if values.dim() < 2:
        return values.reshape(len(values), 1, -1)
    return values.flatten(2) if values.dim() > 2 else values[..., None]


def _log_softmax(values: Tensor) -> Tensor:
    """Over the channels, which torch does fast in the last dimension where they are many, and elsewhere else."""
    return values[..., 0].log_softmax(1)[..., None] if values.shape[2] == 1 else values.log_softmax(1)


def _where_any(mask: Tensor) -> Tensor | None:
    return mask if bool(mask.any()) else None


def _without(values: Tensor, excepted: Tensor | None) -> Tensor:
    return values if excepted is None else values.masked_fill(excepted, 0)


def _of_constant(kind: OutputKind, mean: Sums) -> float:
    """What the best constant answer takes off the sums at a position, by the mean that these have."""
    if kind == "classification":
        return float(np.sum(mean * np.log(np.maximum(mean, 1e-300))))
    return float(np.linalg.norm(mean)) if kind == "direction" else float(mean @ mean)


def _second(total: Tensor, own: Tensor) -> Sums:
    positions = torch.full((len(own),), float(own.shape[2]), dtype=torch.float64, device=own.device)
    second: Sums = torch.stack([total, positions], 1).cpu().numpy()
    return second
