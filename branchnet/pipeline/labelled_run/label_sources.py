"""The samples with labels that a config names, each split apart, and what its tasks are trained and judged by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from branchnet.data import LabelForm, LabelledImages, LabelledTable
from branchnet.errors import DataError, SpecError
from branchnet.pipeline.config.config_sources import call_factory, find_loss
from branchnet.pipeline.config.preprocessing import preprocessing
from branchnet.pipeline.config.run_config import Kind, RunConfig
from branchnet.pipeline.config.training_sections import LabelSource
from branchnet.pipeline.labelled_run.prepared_samples import PreparedSamples, known_labels_of
from branchnet.pipeline.output_kinds import first_tensor, on_first_tensor
from branchnet.training import Metric, standard_losses, standard_metrics
from branchnet.training.label_losses.counted_labels import counting
from branchnet.utils.installed_torch.torch_internals import pytree

VALIDATION_SHARE = 0.1
VALIDATION = 256
_HASHED = 64
"""Samples, spread evenly, whose content decides whether finished steps are reused; the names of all count."""


@dataclass(frozen=True)
class LabelSources:
    """Samples with labels, divided.

    Attributes:
        train: samples to train on, (input, {task: label or None}) by number.
        validation: others, by which states of training and trees are chosen.
        test: others, on which results are measured; None where nothing is.
        forms: what the labels of each task are.
        losses: what each task is trained on.
        metrics: what each task is judged by.
        identity: JSON values that decide the samples.
    """

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any] | None
    forms: Mapping[str, LabelForm]
    losses: Mapping[str, Callable[[Any, Any], Tensor]]
    metrics: Mapping[str, Metric]
    identity: Any

    def kinds(self, config: RunConfig) -> dict[str, Kind]:
        """The kind of each task's output: as the config says, else as the labels do."""
        of_labels: dict[str, Kind] = {
            "classification": "classification",
            "segmentation": "classification",
            "normals": "direction",
        }
        return {task: of_labels.get(form.kind, "regression") for task, form in self.forms.items()} | config.kinds


def read_sources(config: RunConfig, folder: Path, networks: Mapping[str, nn.Module]) -> LabelSources:
    """Open the sources of a config. Without `validation`, a tenth of `train`, at most 256 samples, takes its place.

    Args:
        config: the config.
        folder: where it lies.
        networks: the networks by task, which may say how images are normalised.

    Returns:
        The sources.

    Raises:
        SpecError: a config without `train`, or with functions that are not there.
        DataError: samples that cannot be read by number, lack a task, or are in two splits.
    """
    if config.train is None:
        raise SpecError("the config names no `train`; expected samples with labels: `train: {table: data.yaml}`")
    opened = {name: _opened(name, source, folder) for name, source in config.sources.items()}
    _refuse_shared(opened)
    forms = _forms(opened, list(config.networks))
    done = preprocessing(config, networks)
    sized = any(network.size is not None for network in config.networks.values())
    prepared: dict[str, Dataset[Any]] = {
        name: PreparedSamples(source, done.mean, done.std, forms, size=done.size if sized else None)
        for name, source in opened.items()
    }
    identity = {name: _identity(source) for name, source in prepared.items()}
    if "validation" not in prepared:
        prepared["train"], prepared["validation"] = _set_aside(prepared["train"], config.seed)
    metrics = {task: on_first_tensor(metric) for task, metric in standard_metrics(forms).items()}
    return LabelSources(
        train=prepared["train"],
        validation=prepared["validation"],
        test=prepared.get("test"),
        forms=forms,
        losses=_losses(config, folder, forms),
        metrics=metrics,
        identity=[identity, config.seed],
    )


def _opened(name: str, source: LabelSource, folder: Path) -> Any:
    factory = source if isinstance(source, str) else source.factory
    if factory is None and not isinstance(source, str):
        return LabelledTable(folder / str(source.table), source.split)
    found = call_factory(str(factory), folder)
    if not (hasattr(found, "__getitem__") and hasattr(found, "__len__") and not isinstance(found, tuple | Mapping)):
        expected = "expected a data set of (input, {task: label}) that is read by number"
        raise DataError(f"{name}: {factory} returned a {type(found).__name__}; {expected}")
    return found


def _forms(opened: Mapping[str, Any], tasks: list[str]) -> dict[str, LabelForm]:
    """The forms of the tasks' labels, which all sources have in common."""
    found: dict[str, LabelForm] = {}
    for name, source in opened.items():
        forms = getattr(source, "label_forms", None)
        if not isinstance(forms, Mapping):
            raise DataError(
                f"{name}: {type(source).__name__} has no label_forms; expected {{task: branchnet.data.LabelForm(...)}}"
            )
        if missing := [task for task in tasks if task not in forms]:
            raise DataError(f"{name} has no labels of {', '.join(missing)}; expected those of all networks")
        for task in tasks:
            if found.setdefault(task, forms[task]) != forms[task]:
                raise DataError(f"{name}: the labels of {task!r} are {forms[task]}, elsewhere {found[task]}")
    return found


def _losses(config: RunConfig, folder: Path, forms: Mapping[str, LabelForm]) -> dict[str, Any]:
    own = {task: find_loss(net.loss, folder) for task, net in config.networks.items() if net.loss is not None}
    usual = standard_losses({task: form for task, form in forms.items() if task not in own})
    return {task: own.get(task) or on_first_output(usual[task]) for task in forms}


def on_first_output(loss: Callable[[Tensor, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """A loss of the first floating-point tensor of an output, which says what `loss` counts.

    Args:
        loss: of a tensor and labels.
    """
    return counting(getattr(loss, "counted", None))(partial(loss_of_first_tensor, loss))


def loss_of_first_tensor(loss: Callable[[Tensor, Any], Tensor], output: Any, labels: Any) -> Tensor:
    """A loss of the first floating-point tensor of an output, which may be a dict or a tuple."""
    return loss(first_tensor(output), labels)


def _refuse_shared(opened: Mapping[str, Any]) -> None:
    """Refuse a sample that is in two of the sources, as far as files or official splits tell."""
    seen: dict[tuple[str, ...], str] = {}
    for name, source in opened.items():
        for sample in _places(source):
            if seen.setdefault(sample, name) != name:
                raise DataError(f"{sample[-1]!r} is in `{seen[sample]}` and in `{name}`; expected it in one of them")


def _places(source: Any) -> list[tuple[str, ...]]:
    """What says where samples are: files of a described table, or the split of a data set."""
    if isinstance(source, LabelledTable):
        return [(str(source.place), name) for name in source.names]
    if isinstance(source, LabelledImages):
        return [(type(source).__name__, str(source.root), source.split)]
    return []


def _set_aside(train: Dataset[Any], seed: int) -> tuple[Dataset[Any], Dataset[Any]]:
    count = len(train)  # type: ignore[arg-type]
    aside = min(VALIDATION, round(VALIDATION_SHARE * count))
    if aside < 2:
        raise DataError(f"train: {count} samples are too few to set some aside; expected 15 or more, or `validation:`")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return Subset(train, sorted(order[aside:])), Subset(train, sorted(order[:aside]))


def _identity(source: Dataset[Any]) -> str:
    count = len(source)  # type: ignore[arg-type]
    digest = hashlib.sha256(f"{count} {getattr(source, 'names', '')}".encode())
    for number in range(0, count, -(-count // _HASHED)):
        inputs, labels = source[number]
        for leaf in _tensors([inputs, [known_labels_of(labels)[task] for task in sorted(known_labels_of(labels))]]):
            digest.update(f"{tuple(leaf.shape)} {leaf.dtype}".encode() + leaf.contiguous().numpy().tobytes())
        digest.update(str(sorted(known_labels_of(labels))).encode())
    return digest.hexdigest()


def _tensors(tree: Any) -> Iterable[Tensor]:
    return [torch.as_tensor(leaf).detach().cpu() for leaf in pytree.tree_leaves(tree)]
