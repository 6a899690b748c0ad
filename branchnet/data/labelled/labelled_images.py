"""What data sets of images with labels for several tasks have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from torch import Tensor
from torch.utils.data import Dataset

from branchnet.data.labelled.label_files import existing_folder, read_rgb
from branchnet.data.labelled.label_forms import LabelForm, checked_classes, resized_like
from branchnet.errors import DataError

Labels = dict[str, Tensor | None]
"""Labels of one sample by task; None where a label is missing."""


class LabelledImages(Dataset[tuple[Tensor, Labels]], ABC):
    """Images with labels, read each time they are asked for: (image, {task: label}), one split alone.

    Images are float32 (3, H, W) in [0, 1], at their own size. Labels are as `LabelForm` says; a pixelwise one whose
    size differs from the image's is brought to it by nearest neighbours.

    Args:
        root: the folder of the data set.
        split: one of its official splits.
        tasks: which labels are read, all by default.

    Attributes:
        root: the folder.
        split: the split.
        label_forms: what the labels of each task are.
        names: of the samples.

    Raises:
        DataError: an unknown split or task, or files that are missing or damaged; the path is named. Files of single
            samples are looked for when they are read.
    """

    SPLITS: ClassVar[tuple[str, ...]] = ()
    FORMS: ClassVar[Mapping[str, LabelForm]] = {}

    def __init__(self, root: str | Path, split: str, tasks: Sequence[str] | None = None) -> None:
        if split not in self.SPLITS:
            raise DataError(f"split={split!r}; expected one of {', '.join(self.SPLITS)}")
        self.root, self.split = existing_folder(Path(root)), split
        forms = self._forms()
        if unknown := sorted(set(tasks or ()) - set(forms)):
            raise DataError(f"tasks {unknown} are unknown; expected some of {', '.join(forms)}")
        self.label_forms: dict[str, LabelForm] = {task: forms[task] for task in (forms if tasks is None else tasks)}
        self.names: Sequence[str] = self._names()
        if not self.names:
            raise DataError(f"{self.root} holds no sample of the split {split!r}; expected at least one")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Labels]:
        image = read_rgb(self._image(self.names[index]))
        return image, {task: self._sized(task, label, image, index) for task, label in self.labels(index).items()}

    def labels(self, index: int) -> Labels:
        """The labels of one sample, without its image and at their own size.

        Args:
            index: the number of the sample.

        Returns:
            labels by task; None where one is missing.
        """
        name = self.names[index]
        found = {task: self._label(task, name) for task in self.label_forms}
        for task, label in found.items():
            if label is not None and self.label_forms[task].kind == "segmentation":
                checked_classes(label, self.label_forms[task], f"{name}: the label {task!r}")
        return found

    def _forms(self) -> Mapping[str, LabelForm]:
        return self.FORMS

    @abstractmethod
    def _names(self) -> Sequence[str]: ...

    @abstractmethod
    def _image(self, name: str) -> Path: ...

    @abstractmethod
    def _label(self, task: str, name: str) -> Tensor | None: ...

    def _sized(self, task: str, label: Tensor | None, image: Tensor, index: int) -> Tensor | None:
        if label is None or not self.label_forms[task].pixelwise:
            return label
        return resized_like(label, image, f"{self.names[index]}: the label {task!r}")
