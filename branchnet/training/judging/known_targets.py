"""Outputs and targets where the target is known, checked: shapes, labels within the classes, no NaN in outputs."""

from __future__ import annotations

from torch import Tensor

from branchnet.errors import TrainingError


def known_classes(
    output: Tensor, target: Tensor, ignore: int | None, classes: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the predicted and the true class wherever the label is known.

    Args:
        output: logits (B, classes, ...).
        target: labels (B, ...); negative ones and NaN are missing.
        ignore: a further label that is missing.
        classes: how many logits there must be.

    Returns:
        two tensors (n,) of classes.

    Raises:
        TrainingError: other shapes, labels that are no whole numbers or outside the classes, NaN in the logits.
    """
    _check_logits(output, classes)
    if target.shape != (expected := (len(output), *output.shape[2:])):
        raise TrainingError(
            f"labels have shape {tuple(target.shape)} and logits {tuple(output.shape)}; expected labels of shape "
            f"{tuple(expected)}: the classes are dimension 1 of the logits"
        )
    known = target >= 0  # false for NaN
    if ignore is not None:
        known = known & (target != ignore)
    labels = target[known]
    if labels.is_floating_point() and bool((labels != labels.round()).any()):
        raise TrainingError(
            f"labels hold {float(labels[labels != labels.round()][0])}; expected whole numbers: classes"
        )
    labels = labels.long()
    if len(outside := labels[labels >= output.shape[1]].unique()):
        raise TrainingError(
            f"labels {outside[:5].tolist()} are outside the {output.shape[1]} classes; expected 0 to "
            f"{output.shape[1] - 1}, or ignore={int(outside[0])} for a label that does not count"
        )
    _check_numbers(output.isnan().any(1) & known)
    return output.argmax(1)[known], labels


def known_logits(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits and target logits (n, classes), as float64, without targets that hold NaN.

    Raises:
        TrainingError: different shapes, or NaN in the output.
    """
    _check_logits(output, None)
    _check_shapes(output, target)
    return _known_rows(output, target, ~target.isnan().any(1))


def known_vectors(output: Tensor, target: Tensor, ignore: float | None) -> tuple[Tensor, Tensor]:
    """Return vectors and target vectors (n, C), as float64; those of length 0, with NaN, or all `ignore` are missing.

    Raises:
        TrainingError: different shapes, no dimension for the components, or NaN in the output.
    """
    _check_shapes(output, target)
    if target.dim() < 2:
        raise TrainingError(f"vectors have shape {tuple(target.shape)}; expected (B, components, ...)")
    known = ~target.isnan().any(1) & (target != 0).any(1)
    if ignore is not None:
        known = known & (target != ignore).any(1)
    return _known_rows(output, target, known)


def known_values(output: Tensor, target: Tensor, ignore: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs and targets, as float64 and 0 where the target is missing, and where it is known.

    Args:
        output: numbers of any shape; (B,) is taken as (B, 1).
        target: numbers of the same shape; NaN is missing.
        ignore: a further value that is missing.

    Raises:
        TrainingError: different shapes, infinite targets, or NaN in the output.
    """
    output, target = (values.unsqueeze(1) if values.dim() == 1 else values for values in (output, target))
    _check_shapes(output, target)
    known = ~target.isnan()
    if ignore is not None:
        known = known & (target != ignore)
    if bool((target.isinf() & known).any()):
        raise TrainingError("targets are infinite; expected numbers, NaN for what is missing, or ignore=math.inf")
    _check_numbers(output.isnan() & known)
    return output.double().where(known, 0.0), target.double().where(known, 0.0), known


def known_answers(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits of yes as float64, whether the answer is yes, and where it is known; (B, 1, ...) or (B, C, ...).

    Args:
        output: logits of any shape that the target has ((B,) is (B, 1)), or (B, 2, ...) for targets (B, ...).
        target: 0 and 1; NaN and negative numbers are missing.

    Raises:
        TrainingError: other shapes, other targets, or NaN in the output.
    """
    if output.dim() == target.dim() + 1 and output.shape[1:2] in ((1,), (2,)):
        output = output[:, -1] - output[:, 0] if output.shape[1] == 2 else output[:, 0]
        output, target = output.unsqueeze(1), target.unsqueeze(1)
    output, target = (values.unsqueeze(1) if values.dim() == 1 else values for values in (output, target))
    _check_shapes(output, target)
    known = target >= 0  # false for NaN
    if len(wrong := target[known & (target != 0) & (target != 1)]):
        raise TrainingError(
            f"targets hold {float(wrong[0]):g}; expected 0, 1, and NaN or a negative number for missing"
        )
    _check_numbers(output.isnan() & known)
    return output.double().where(known, 0.0), (target == 1) & known, known


def _known_rows(output: Tensor, target: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    _check_numbers(output.isnan().any(1) & known)
    return output.double().movedim(1, -1)[known], target.double().movedim(1, -1)[known]


def _check_logits(output: Tensor, classes: int | None) -> None:
    shape = tuple(output.shape)
    if output.dim() < 2 or output.shape[1] < 2:
        raise TrainingError(
            f"logits have shape {shape}; expected (B, classes, ...) with 2 classes or more: for one logit z of yes "
            "against no, torch.cat([torch.zeros_like(z), z], 1)"
        )
    if classes is not None and output.shape[1] != classes:
        raise TrainingError(f"logits have shape {shape}; expected (B, {classes}, ...), one for each of the classes")


def _check_shapes(output: Tensor, target: Tensor) -> None:
    if output.shape != target.shape:
        raise TrainingError(
            f"outputs have shape {tuple(output.shape)} and targets {tuple(target.shape)}; expected one shape"
        )


def _check_numbers(wrong: Tensor) -> None:
    if count := int(wrong.sum()):
        raise TrainingError(f"the output is NaN at {count} places with a known target; expected numbers")
