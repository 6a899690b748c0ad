"""From what data sets hold to batches of tensors: stacked, gathered, counted, and bytes turned into images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from branchnet.data.call_forms import CallForm, Inputs, described, is_tuple
from branchnet.data.images import to_images
from branchnet.errors import DataError
from branchnet.utils.installed_torch.torch_internals import pytree


def collate(values: Sequence[Any], form: CallForm) -> Any:
    """Stack the values of several samples: tensors, arrays, pictures, numbers; tuples and mappings of them.

    Python floats become float32, as the outputs of networks are, and not float64; texts stay a list.

    Args:
        values: one for each sample.
        form: what the network takes.

    Returns:
        Tensors with the samples first, in the tuples and mappings of one value.

    Raises:
        DataError: values of different shape, form or kind.
    """
    first = values[0]
    if isinstance(first, Mapping):
        return {name: collate([_entry(value, name) for value in values], form) for name in first}
    if is_tuple(first):
        if len({len(value) for value in values}) > 1:
            raise DataError(f"samples are {described(first)} and others of another length; expected one form")
        return tuple(collate(column, form) for column in zip(*values, strict=True))
    if isinstance(first, str | bytes) or all(value is None for value in values):
        return list(values) if first is not None else None
    tensors = [_tensor(value, form) for value in values]
    if len(shapes := dict.fromkeys(tuple(tensor.shape) for tensor in tensors)) > 1:
        raise DataError(
            f"samples have the shapes {' and '.join(map(str, list(shapes)[:2]))}; expected one shape: resize them in "
            "the data set, or pass a DataLoader whose collate_fn pads them"
        )
    return torch.stack(tensors)


def collate_labels(values: Sequence[Any], form: CallForm) -> Any:
    """Stack the labels of several samples; where some samples lack a task's label, that task's are a list with None.

    Args:
        values: one for each sample: a label, or a mapping by task, in which None and a task that is not named are
            labels that the sample lacks.
        form: what the network takes.

    Returns:
        As of `collate`, but for lists in place of what cannot be stacked.

    Raises:
        DataError: labels of different shape, form or kind.
    """
    if not any(isinstance(value, Mapping) for value in values):
        return list(values) if _some_missing(values) else collate(values, form)
    named = [value if isinstance(value, Mapping) else {} for value in values]
    names = dict.fromkeys(name for value in named for name in value)
    columns = {name: [value.get(name) for value in named] for name in names}
    return {name: list(column) if _some_missing(column) else collate(column, form) for name, column in columns.items()}


def _some_missing(values: Sequence[Any]) -> bool:
    missing = sum(value is None for value in values)
    return 0 < missing < len(values)


def as_labels(value: Any, form: CallForm) -> Any:
    """Labels as a loader yields them, with tensors in place of arrays."""
    return pytree.tree_map_only(np.ndarray, lambda array: _from_array(array, form), value)


def as_batch(value: Any, form: CallForm) -> Any:
    """Inputs as a loader yields them, with tensors in place of arrays and tuples in place of lists.

    Raises:
        DataError: entries that DataLoader has transposed, as it does with lists of numbers.
    """
    if isinstance(value, np.ndarray):
        return _from_array(value, form)
    if isinstance(value, Mapping):
        if transposed := [name for name, entry in value.items() if _is_transposed(entry)]:
            raise DataError(
                f"the entries {transposed} of a batch are lists of tensors, as DataLoader makes of lists of numbers; "
                'expected tensors: set the data set\'s format (`dataset.with_format("torch")`) or pass a collate_fn'
            )
        return {str(name): as_batch(entry, form) for name, entry in value.items()}
    return tuple(as_batch(entry, form) for entry in value) if is_tuple(value) else value


def with_images(inputs: Inputs, form: CallForm) -> Inputs:
    """Inputs of a batch with uint8 images converted as `branchnet.data.to_images` does, unless the network takes bytes.

    What counts as images: (B, C, H, W) and (B, H, W, C), and as the only input also (B, H, W).
    """
    if form.takes_bytes:
        return inputs
    fewest = 3 if isinstance(inputs, Tensor) and form.dims in (None, 4) else 4

    def convert(tensor: Tensor) -> Tensor:
        return to_images(tensor) if tensor.dtype == torch.uint8 and fewest <= tensor.dim() <= 4 else tensor

    return cast(Inputs, map_tensors(convert, inputs))


def map_tensors(change: Callable[[Tensor], Any], tree: Any) -> Any:
    """`tree`, a tensor or nested tuples and mappings of them, with each tensor changed; other values stay."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {name: map_tensors(change, value) for name, value in tree.items()}
    return tuple(map_tensors(change, value) for value in tree) if isinstance(tree, tuple) else tree


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of nested tuples and mappings, in a fixed order."""
    found: list[Tensor] = []
    map_tensors(found.append, tree)
    return found


def gather(tree: Any, index: Tensor | slice) -> Any:
    """The samples at `index` of tensors that hold all of them; tensors without dimensions stay."""
    return map_tensors(lambda tensor: tensor[index] if tensor.dim() else tensor, tree)


def joinable(one: Any, other: Any) -> bool:
    """Whether samples of two batches can be in one: tensors of one form and type, everything else equal."""
    (ones, form), (others, other_form) = pytree.tree_flatten(one), pytree.tree_flatten(other)
    return form == other_form and all(map(_joinable, ones, others))


def _joinable(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and bool(one == other)
    same = one.dtype == other.dtype and one.device == other.device and one.shape[1:] == other.shape[1:]
    return same and one.dim() == other.dim() and (one.dim() > 0 or torch.equal(one, other))


def joined(batches: Sequence[Any]) -> Any:
    """The samples of batches that are `joinable`, one after the other."""
    if len(batches) == 1:
        return batches[0]
    flat = [pytree.tree_leaves(batch) for batch in batches]
    columns = [
        torch.cat(column) if isinstance(column[0], Tensor) and column[0].dim() else column[0]
        for column in zip(*flat, strict=True)
    ]
    return pytree.tree_unflatten(columns, pytree.tree_structure(batches[0]))


def length(tree: Any) -> int:
    """How many samples the tensors of a batch hold.

    Raises:
        DataError: none, or tensors of different length.
    """
    lengths = {len(leaf) for leaf in leaves(tree) if leaf.dim()}
    if len(lengths) != 1 or 0 in lengths:
        found = sorted(lengths) or "none"
        raise DataError(f"the tensors hold {found} samples; expected one number for all, at least 1")
    return lengths.pop()


def first_size(tree: Any) -> int:
    """How many samples the first tensor holds; in a user's own batches others may hold something else, as positions.

    Raises:
        DataError: there is no tensor.
    """
    sizes = [len(leaf) for leaf in leaves(tree) if leaf.dim()]
    if not sizes:
        raise DataError(f"a batch is {described(tree)}; expected tensors with the samples first")
    return sizes[0]


def placed(inputs: Any, device: torch.device) -> Any:
    """A copy on `device`, in the same memory order.

    A network that works in place changes its own copy only. From pinned memory the copy runs during the computation.
    """

    def place(tensor: Tensor) -> Tensor:
        moved = _to(tensor, device)
        return moved.clone() if moved.data_ptr() == tensor.data_ptr() else moved

    return map_tensors(place, inputs)


def channels_last(inputs: Any) -> Any:
    """Images (4 dimensions) in channels-last memory order, which changes no number; see `InputOrder`."""

    def laid_out(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    return map_tensors(laid_out, inputs)


def moved(tree: Any, device: torch.device) -> Any:
    """Tensors on `device`; those that are there already are not copied."""
    return map_tensors(lambda tensor: _to(tensor, device), tree)


def _to(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=tensor.device.type == "cpu" and tensor.is_pinned())


def _entry(value: Any, name: str) -> Any:
    if not isinstance(value, Mapping) or name not in value:
        raise DataError(f"a sample is {described(value)} while others have the entry {name!r}; expected one form")
    return value[name]


def _tensor(value: Any, form: CallForm) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return _from_array(value, form)
    if hasattr(value, "__array_interface__"):  # a PIL image
        return torch.from_numpy(np.array(value))
    try:
        return torch.tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"a sample holds {described(value)}; expected a tensor, an array or a number: convert it in the data set"
        ) from error


def _from_array(array: np.ndarray, form: CallForm) -> Tensor:
    try:
        tensor = torch.from_numpy(array if min(array.strides, default=0) >= 0 else array.copy())
    except TypeError as error:
        raise DataError(f"an array holds {array.dtype}; expected numbers") from error
    # NumPy's default type; a network of another type would refuse it.
    return tensor.to(form.floating) if tensor.dtype == torch.float64 and form.floating is not None else tensor


def _is_transposed(entry: Any) -> bool:
    return isinstance(entry, list) and bool(entry) and all(isinstance(one, Tensor) and one.dim() < 2 for one in entry)
