"""A data set with random augmentation that differs between epochs and is the same in every run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from branchnet.data.augmentation.joint_transform import JointTransform
from branchnet.data.labelled.label_forms import LabelForm
from branchnet.data.labelled.labelled_images import Labels
from branchnet.errors import DataError
from branchnet.utils.random_state import mixed_seed, seeded


class Augmented(Dataset[tuple[Tensor, Labels]]):
    """A data set with a transform of torchvision applied to images and labels together.

    What is drawn, from torch, NumPy's global generator or `random`, depends on (seed, epoch, number of the sample)
    alone, and not on the order, the number of workers or what was drawn before: a run that resumes in the middle of an
    epoch sees what it would have seen. The random state outside is left as it was.

    Args:
        source: whatever has a length and gives (image, {task: label or None}) by number.
        transform: of `torchvision.transforms.v2`; see `JointTransform`.
        seed: of all random changes.
        label_forms: what the labels are; those of `source` by default.
        depth_scales: whether depth changes with the size of things; see `JointTransform`.

    Attributes:
        label_forms: what the labels of each task are.

    Raises:
        DataError: a source that does not say what its labels are, or no torchvision.
    """

    def __init__(
        self,
        source: Any,
        transform: Callable[..., Any],
        *,
        seed: int = 0,
        label_forms: Mapping[str, LabelForm] | None = None,
        depth_scales: bool = False,
    ) -> None:
        forms = getattr(source, "label_forms", None) if label_forms is None else label_forms
        if forms is None:
            raise DataError(
                f"{type(source).__name__} has no label_forms; expected label_forms={{task: LabelForm(...)}}"
            )
        self.label_forms: dict[str, LabelForm] = dict(forms)
        self._source, self._seed = source, seed
        self._transform = JointTransform(transform, self.label_forms, depth_scales=depth_scales)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see it change

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Tensor, Labels]:
        """A sample as it is in the epoch that was set, or, by (epoch, number), in another one."""
        epoch, number = index if isinstance(index, tuple) else (self.epoch, index)
        image, labels = self._source[number]
        with seeded(mixed_seed(self._seed, epoch, number if number >= 0 else number + len(self))):
            return self._transform(image, labels)

    @property
    def epoch(self) -> int:
        """The epoch that decides what is drawn."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose it before an epoch begins; workers of a DataLoader see it, too.

        Args:
            epoch: 0 or more.
        """
        self._epoch.fill_(epoch)

    def labels(self, index: int) -> Labels:
        """The labels of a sample before any change.

        Args:
            index: the number of the sample.

        Returns:
            labels by task; None where one is missing.
        """
        read = getattr(self._source, "labels", None)
        return read(index) if callable(read) else self._source[index][1]  # type: ignore[no-any-return]
