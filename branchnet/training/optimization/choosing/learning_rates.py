"""The learning rate that a network can stand, found by a short range test on the network itself.

After "Cyclical Learning Rates for Training Neural Networks" (Smith 2017, section 3.3), with another question: not the
rate at which the loss falls fastest, but the largest one at which no task gets worse on held-out samples. Each test is
a short run with the run's own schedule: at a constant rate, what is measured at its end is mostly the noise of the last
steps, which a schedule that falls takes out again.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from branchnet.errors import TrainingError
from branchnet.training.optimization.choosing.weighed_losses import KnownUnits, weighed

RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
"""AdamW's usual range; networks that are trained already forget within some twenty steps at the upper end."""
CAREFUL = 1e-4
"""Where all tasks work and each rate makes some of them worse, if only by new statistics of small batches."""
WORKS = 0.7
"""A task works whose loss is below this share of a constant answer's."""
LONGEST_TEST, SHORTEST_TEST = 20, 5
"""Steps of one rate's test. In five or ten, AdamW's first steps and new statistics of batches still hide what a rate
does: on seven stitched networks they ask for 1e-5 or 1e-4, and twenty for 3e-4, which then ends best."""

logger = logging.getLogger(__name__)


def test_length(steps: int) -> int:
    """How many steps each rate is tried for: a quarter of the run, between 5 and 20.

    Args:
        steps: of the run.
    """
    return min(LONGEST_TEST, max(SHORTEST_TEST, steps // 4))


def largest_safe_rate(
    modules: Sequence[nn.Module],
    train: Callable[[float], None],
    judge: Callable[[], tuple[Mapping[str, float], Mapping[str, float]]],
    known: KnownUnits,
    rates: Sequence[float] = RATES,
    share: float = 1.0,
) -> float:
    """The largest rate after which no task is worse than before; the modules are as they were afterwards.

    Rates are tried from the middle one upwards until one makes a task worse; where already the middle one does,
    downwards until one does not. Where all of these do, as when a network has one task's weights only and the others
    have everything to gain, it is the rate with the smallest losses, but at most 1e-4 where all tasks work already.

    Args:
        modules: whose tensors training changes.
        train: trains for some steps at a peak rate.
        judge: each task's loss on held-out samples, and metrics, which do not count.
        known: what counts as equal, and the unit in which losses of tasks are added up.
        rates: those that are tried, from small to large.
        share: of the run that a test is; harm is taken to grow with the root of the steps.

    Returns:
        one of them.
    """
    kept = [tensor.detach().clone() for tensor in _tensors(modules)]
    before = judge()[0]
    allowed = {task: loss + math.sqrt(share) * known.tolerance(task, loss) for task, loss in before.items()}
    means: dict[float, float] = {}

    def harmless(rate: float) -> bool:
        try:
            train(rate)
            after = judge()[0]
        except TrainingError as error:  # it diverged
            logger.info("learning rate %g: %s", rate, error)
            return False
        finally:
            with torch.no_grad():
                for tensor, value in zip(_tensors(modules), kept, strict=True):
                    tensor.copy_(value)
        logger.info("learning rate %g: losses %s, before %s", rate, after, before)
        means[rate] = weighed(after, before, known)
        return all(loss <= allowed[task] for task, loss in after.items())

    middle = len(rates) // 2
    if harmless(rates[middle]):
        larger = list(itertools.takewhile(harmless, rates[middle + 1 :]))
        return larger[-1] if larger else rates[middle]
    for rate in reversed(rates[:middle]):
        if harmless(rate):
            return rate
    for rate in rates[middle + 1 :]:
        harmless(rate)
    if not means:
        return rates[0]
    best = min(sorted(means), key=lambda rate: means[rate])
    works = all(loss < WORKS * known.scale(task, loss) for task, loss in before.items())
    return min(best, max(rates[0], CAREFUL)) if works else best


def _tensors(modules: Sequence[nn.Module]) -> list[Tensor]:
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
