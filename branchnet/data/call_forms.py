"""How one sample, or one batch, is divided into what a network is called with and the labels.

What a network takes decides: a network of n tensors gets the first n entries of a tuple, a network of keyword arguments
those entries of a mapping; the rest are labels. Without such knowledge the first entry of a tuple is the input, and
the entries of a mapping are, except those with a name of `LABEL_NAMES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from branchnet.errors import DataError

Inputs: TypeAlias = "Tensor | tuple[Any, ...] | Mapping[str, Any]"
"""What a network is called with: one tensor, a tuple of positional arguments, or a mapping of keyword arguments."""

LABEL_NAMES = ("labels", "label", "label_ids", "targets", "target")
"""Entries of a mapping that are labels, as transformers and its data sets call them."""

INPUT_NAMES = ("pixel_values", "input_ids", "input_values", "input_features", "image", "images", "img", "inputs", "x")
"""Entries that are the input of a network of one tensor where a mapping holds other tensors, too."""


@dataclass(frozen=True)
class CallForm:
    """What a network takes, as far as it is known before the network is called.

    Attributes:
        positional: how many tensors it needs by position; None where that is unknown or it takes keywords.
        most: how many it can take by position.
        names: the keywords that it knows.
        complete: whether it needs all of them.
        dims: dimensions of its first tensor, that of the batch included.
        takes_bytes: whether it takes uint8 tensors as they are.
        floating: the floating-point type of its weights.
    """

    positional: int | None = None
    most: int | None = None
    names: tuple[str, ...] = ()
    complete: bool = False
    dims: int | None = None
    takes_bytes: bool = False
    floating: torch.dtype | None = None

    @property
    def certain(self) -> bool:
        """Whether it is known exactly which entries of a sample are inputs."""
        return self.complete or (self.positional is not None and self.positional == self.most)


def separate(sample: Any, form: CallForm, *, whole: bool = False) -> tuple[Inputs, Any]:
    """Divide a sample or a batch into inputs and labels; the labels are None where there are none.

    Args:
        sample: a value, a tuple or a mapping of values.
        form: what the network takes.
        whole: all entries of a tuple are inputs if the network may take as many.

    Returns:
        The inputs and the labels, whose values are not changed.

    Raises:
        DataError: entries that the network needs are missing, or it is unclear which ones are the inputs.
    """
    if isinstance(sample, Mapping):
        return _from_mapping(sample, form)
    if is_tuple(sample):
        return _from_tuple(tuple(sample), form, whole)
    if form.complete and len(form.names) == 1:
        return {form.names[0]: sample}, None
    if form.complete or (form.positional or 1) > 1:
        raise DataError(f"a sample is {described(sample)} alone; expected {_wanted(form)}")
    return sample, None


def is_tuple(value: Any) -> bool:
    """Whether a value holds several values: a tuple, or a list (as DataLoader makes of one) of more than numbers."""
    return isinstance(value, tuple) or (isinstance(value, list) and not all(isinstance(one, Number) for one in value))


def described(value: Any) -> str:
    """What a value is, in a few words, for messages."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{'a tensor' if isinstance(value, Tensor) else 'an array'} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a mapping with {list(value)}"
    if isinstance(value, tuple | list):
        inner = ", ".join(described(one) for one in value[:3]) + (", ..." if len(value) > 3 else "")
        return f"a {type(value).__name__} of {len(value)} ({inner})"
    return f"a {type(value).__name__}"


def _from_tuple(items: tuple[Any, ...], form: CallForm, whole: bool) -> tuple[Inputs, Any]:
    if not items:
        raise DataError("a sample is an empty tuple; expected inputs, or (inputs, labels)")
    if isinstance(items[0], Mapping) or is_tuple(items[0]):
        return separate(items[0], form, whole=True)[0], _one_or_all(items[1:])
    if form.complete:
        raise DataError(f"a sample is {described(items)}; expected {_wanted(form)}")
    count = 1 if form.positional is None else form.positional
    if whole and len(items) <= (len(items) if form.most is None else form.most):
        count = max(count, len(items))
    if len(items) < count:
        raise DataError(f"a sample is {described(items)}; expected {_wanted(form)}")
    return items[0] if count == 1 else items[:count], _one_or_all(items[count:])


def _from_mapping(sample: Mapping[str, Any], form: CallForm) -> tuple[Inputs, Any]:
    possible = [name for name, value in sample.items() if name not in LABEL_NAMES and _is_numeric(value)]
    known = [name for name in sample if name in form.names]
    if form.complete:
        if missing := [name for name in form.names if name not in sample]:
            raise DataError(f"the samples have the entries {list(sample)} and lack {missing}; expected {_wanted(form)}")
        return {name: sample[name] for name in form.names}, _labels_beside(sample, form.names)
    if known:
        return {name: sample[name] for name in known}, _labels_beside(sample, known)
    if form.positional is None:
        return {name: sample[name] for name in possible}, _labels_beside(sample, possible)
    if len(possible) != form.positional and form.positional == 1:
        possible = [name for name in possible if name in INPUT_NAMES]
    if len(possible) != form.positional:
        raise DataError(
            f"the samples have the entries {list(sample)}, and which of them the network takes is unclear; expected "
            f"{_wanted(form)}: let the data set return (inputs, labels), or split the networks with a dict as example"
        )
    chosen = tuple(sample[name] for name in possible)
    return chosen[0] if form.positional == 1 else chosen, _labels_beside(sample, possible)


def _labels_beside(sample: Mapping[str, Any], inputs: Sequence[str]) -> Any:
    """The entry that is called labels; without one all entries that are no inputs, by name."""
    rest = {name: value for name, value in sample.items() if name not in inputs}
    named = [name for name in LABEL_NAMES if name in rest]
    if named:
        return rest[named[0]]
    return {name: value for name, value in rest.items() if _is_numeric(value)} or None


def _one_or_all(labels: tuple[Any, ...]) -> Any:
    return labels[0] if len(labels) == 1 else labels or None


def _is_numeric(value: Any) -> bool:
    return not (value is None or isinstance(value, str | bytes) or (isinstance(value, list) and not value)) and not (
        isinstance(value, list) and isinstance(value[0], str)
    )


def _wanted(form: CallForm) -> str:
    if form.names and form.complete:
        return f"a mapping with {list(form.names)}, which the network takes"
    return "one tensor" if form.positional in (None, 1) else f"a tuple of the {form.positional} tensors it takes"
