"""Samples with labels as networks take them, and parts of them: inputs alone, or the labels of one task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from branchnet.data import Augmented, LabelForm
from branchnet.errors import DataError


class PreparedSamples(Dataset[Any]):
    """Samples whose images are normalised, and resized with their labels where a size is given.

    Args:
        source: (input, {task: label or None}) by number; inputs of three dimensions are images.
        mean: subtracted from each channel.
        std: divides each channel afterwards.
        forms: the labels that are read.
        size: height and width to which the shorter side is resized, and the centre cut out (extra `vision`).
    """

    def __init__(
        self,
        source: Any,
        mean: Sequence[float],
        std: Sequence[float],
        forms: Mapping[str, LabelForm],
        *,
        size: int | None = None,
    ) -> None:
        self.names = getattr(source, "names", ())
        self.label_forms = dict(forms)
        self._source, self._reader = source, source
        self._mean, self._std = tuple(mean), tuple(std)
        if size is None and callable(read := getattr(source, "labels", None)):
            self.labels = read  # labels without inputs, for what needs no more
        if size is not None:
            try:
                from torchvision.transforms import v2
            except ImportError as error:
                raise DataError(
                    f"size: {size}: images with labels are resized by torchvision; expected the extra `vision`"
                ) from error
            self._reader = Augmented(source, v2.Compose([v2.Resize(size), v2.CenterCrop(size)]))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        sample = self._reader[index]
        if not isinstance(sample, tuple | list) or len(sample) != 2 or not isinstance(sample[1], Mapping):
            raise DataError(f"sample {index} is a {type(sample).__name__}; expected (input, {{task: label or None}})")
        inputs, labels = sample
        return self._normalised(inputs), {task: labels.get(task) for task in self.label_forms}

    def _normalised(self, inputs: Any) -> Any:
        plain = set(self._mean) == {0.0} and set(self._std) == {1.0}
        if plain or not isinstance(inputs, Tensor) or inputs.dim() != 3 or len(inputs) != len(self._mean):
            return inputs
        mean, std = (torch.tensor(values, dtype=inputs.dtype)[:, None, None] for values in (self._mean, self._std))
        return (inputs - mean) / std


class InputsAlone(Dataset[Any]):
    """The inputs of samples with labels."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        return self._source[index][0]


class OneTask(Dataset[Any]):
    """The inputs and the labels of one task, by its name: a batch may have none of them."""

    def __init__(self, source: Any, task: str) -> None:
        self._source, self._task = source, task

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        inputs, labels = self._source[index]
        return inputs, {self._task: labels[self._task]}


def known_labels_of(labels: Mapping[str, Any]) -> dict[str, Any]:
    """The labels that are not missing."""
    return {task: label for task, label in labels.items() if label is not None}
