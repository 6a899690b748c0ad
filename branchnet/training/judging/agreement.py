"""Metrics of classifiers against another classifier's outputs, in which a constant answer counts as nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from branchnet.errors import TrainingError
from branchnet.training.judging.best_constants import by_type, mean_distribution
from branchnet.training.judging.known_targets import known_classes, known_logits
from branchnet.training.judging.metric import Metric


def explained_divergence() -> Metric:
    """Share of the Kullback-Leibler divergence of the best constant distribution that an output explains; in percent.

    `100 (1 - KL(target || output) / KL(target || constant))` of the softmax over dimension 1, where the constant is
    the mean of the targets' distributions: 100 for equal outputs, 0 for that constant. As explained variance, but for
    distributions (McFadden's pseudo R squared with soft labels, less the entropy of the targets).

    Returns:
        a metric of logits and logits (B, classes, ...); targets with NaN do not count.

    >>> import torch, branchnet
    >>> metric = branchnet.training.explained_divergence()
    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> metric.result(metric.sums(logits, logits))
    100.0
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        found, wanted = known_logits(output, target)
        logs = wanted.log_softmax(1)
        shares = logs.exp()
        terms = (shares * (logs - found.log_softmax(1))).masked_fill(logs == -torch.inf, 0)
        own = (shares * logs).masked_fill(logs == -torch.inf, 0)
        head = torch.stack([terms.sum(), own.sum(), torch.full_like(own.sum(), len(wanted))])
        return torch.cat([head.to(shares), shares.sum(0)])

    def result(total: Tensor) -> float:
        divergence, own, count = (float(value) for value in total[:3])
        if not count:
            raise TrainingError("every target is missing; expected some that are known")
        mean = total[3:] / count
        constant = own - count * float(torch.xlogy(mean, mean).sum())
        if constant <= 1e-12 * max(1.0, abs(own)):
            raise TrainingError(
                f"the targets are the same distribution for all {count:.0f} samples; expected some that differ"
            )
        return 100 * (1 - divergence / constant)

    return Metric("explained KL %", True, sums, result, constant=mean_distribution())


def cohen_kappa(*, ignore: int | None = None) -> Metric:
    """Agreement of two classifiers, or of one with labels, beyond chance: Cohen's kappa (Cohen 1960); in percent.

    Two classifiers that nearly always answer the same class agree often and say nothing: kappa is 0 for any constant
    answer and for answers that are independent, 100 for equal ones, and can be negative.

    Args:
        ignore: a label that does not count, as negative ones and NaN do not.

    Returns:
        a metric of logits (B, classes, ...) and as many logits, or labels (B, ...); targets with NaN do not count.

    >>> import torch, branchnet
    >>> metric = branchnet.training.cohen_kappa()
    >>> one, other = torch.eye(2)[[0, 0, 1, 1]], torch.eye(2)[[0, 1, 1, 1]]
    >>> round(metric.result(metric.sums(one, other)), 6)  # 3 of 4 agree, 1/2 by chance
    50.0
    """

    def sums(output: Tensor, target: Tensor) -> Tensor:
        if output.shape == target.shape:
            found, wanted = known_logits(output, target)
            one, other = found.argmax(1), wanted.argmax(1)
        else:
            one, other = known_classes(output, target, ignore)
        agreed = torch.stack([(one == other).sum().double(), torch.tensor(float(len(one)), device=one.device).double()])
        counts = [torch.bincount(answers, minlength=output.shape[1]).double() for answers in (one, other)]
        return torch.cat([agreed, *counts])

    def result(total: Tensor) -> float:
        agreed, count = float(total[0]), float(total[1])
        if not count:
            raise TrainingError("every target is missing; expected some that are known")
        one, other = total[2:].chunk(2)
        chance = float(one @ other) / count**2
        share = agreed / count
        return 100 * (share - chance) / (1 - chance) if chance < 1 else 0.0  # two equal constant answers say nothing

    return Metric("agreement beyond chance %", True, sums, result, constant=by_type())
