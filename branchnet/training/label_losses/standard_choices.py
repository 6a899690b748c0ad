"""The usual loss and the usual metric of each kind of label."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from branchnet.data.labelled.label_forms import LabelForm
from branchnet.errors import TrainingError
from branchnet.training.judging.angle_metrics import mean_angle
from branchnet.training.judging.binary_metrics import area_under_roc, edge_f_score, saliency_iou
from branchnet.training.judging.metric import Metric
from branchnet.training.judging.metrics import accuracy, mean_absolute_error, mean_iou, rmse
from branchnet.training.label_losses.masked_losses import (
    Loss,
    absolute_loss,
    binary_loss,
    class_loss,
    direction_loss,
    squared_loss,
)

EDGE_WEIGHT = 0.95
"""Of edge pixels in the loss of edges (Maninis et al. 2019): about one pixel in twenty is on an edge."""

Forms: TypeAlias = Any
"""A data set with `label_forms`, or {task: LabelForm}."""

_LOSSES: Mapping[str, Callable[[LabelForm], Loss]] = {
    "classification": lambda form: class_loss(ignore=form.ignore),
    "segmentation": lambda form: class_loss(ignore=form.ignore),
    "regression": lambda form: squared_loss,
    "binary": lambda form: binary_loss(),
    "depth": lambda form: absolute_loss,
    "map": lambda form: absolute_loss,
    "offsets": lambda form: absolute_loss,
    "normals": lambda form: direction_loss,
    "edges": lambda form: binary_loss(positive_weight=EDGE_WEIGHT),
    "saliency": lambda form: binary_loss(positive_weight="balanced"),
}
_METRICS: Mapping[str, Callable[[LabelForm], Metric]] = {
    "classification": lambda form: accuracy(ignore=form.ignore),
    "segmentation": lambda form: mean_iou(form.channels, ignore=form.ignore),
    "regression": lambda form: rmse(form.unit),
    "binary": lambda form: area_under_roc(),
    "depth": lambda form: rmse(form.unit),
    "map": lambda form: mean_absolute_error(form.unit),
    "offsets": lambda form: mean_absolute_error(form.unit),
    "normals": lambda form: mean_angle(),
    "edges": lambda form: edge_f_score(),
    "saliency": lambda form: saliency_iou(),
}


def standard_losses(forms: Forms) -> dict[str, Loss]:
    """The usual loss of each task, in which missing labels do not count.

    Cross entropy for classes; the mean absolute error for depth, other maps and offsets, and the squared one for
    numbers; the absolute difference of unit vectors for normals; binary cross entropy, with yes weighted by 0.95 for
    edges and balanced in each batch for salient regions (Maninis et al. 2019, Vandenhende et al. 2021).

    Args:
        forms: a data set with `label_forms`, or {task: `branchnet.data.LabelForm`}.

    Returns:
        losses by task, functions of (output, labels).

    Raises:
        TrainingError: labels of a kind that has no usual loss, as boxes.

    >>> import branchnet
    >>> forms = {"depth": branchnet.data.LabelForm("depth", unit="m")}
    >>> branchnet.training.standard_losses(forms)["depth"].__name__
    'absolute_loss'
    """
    return {task: _chosen(task, form, _LOSSES, "loss")(form) for task, form in _forms(forms).items()}


def standard_metrics(forms: Forms) -> dict[str, Metric]:
    """The usual metric of each task.

    Accuracy; mean IoU; RMSE for numbers and depth; the mean absolute error for other maps and offsets; the mean angle
    for normals; the area under the ROC curve for yes and no; F for edges, IoU for salient regions.

    Args:
        forms: a data set with `label_forms`, or {task: `branchnet.data.LabelForm`}.

    Returns:
        metrics by task.

    Raises:
        TrainingError: labels of a kind that has no usual metric, as boxes.

    >>> import branchnet
    >>> forms = {"depth": branchnet.data.LabelForm("depth", unit="m")}
    >>> branchnet.training.standard_metrics(forms)["depth"].name
    'RMSE m'
    """
    return {task: _chosen(task, form, _METRICS, "metric")(form) for task, form in _forms(forms).items()}


def _forms(forms: Forms) -> Mapping[str, LabelForm]:
    found = getattr(forms, "label_forms", forms)
    if not isinstance(found, Mapping) or not all(isinstance(form, LabelForm) for form in found.values()):
        raise TrainingError(f"{type(forms).__name__} has no label_forms; expected a data set that has, or LabelForms")
    return found


def _chosen(task: str, form: LabelForm, table: Mapping[str, Any], what: str) -> Any:
    if form.kind not in table:
        raise TrainingError(f"task {task!r} has labels of kind {form.kind!r}, for which there is no usual {what}")
    return table[form.kind]
