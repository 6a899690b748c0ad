"""What training reported: losses, measurements on held-out samples, and which tasks ended worse than they began."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from branchnet.utils.files import atomic_write


@dataclass(frozen=True)
class Measurement:
    """What was measured on held-out samples at one moment.

    Attributes:
        step: how many steps had been taken.
        losses: each task's loss.
        metrics: each task's metric, where metrics were asked for.
    """

    step: int
    losses: Mapping[str, float]
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class History:
    """What training reported.

    Attributes:
        losses: for each task its loss at every step; NaN where no sample of the step had a label for it.
        seconds: time spent in this process.
        resumed_at: the step at which a checkpoint was taken up; 0 without one.
        before: each task's loss on the held-out samples before training; empty without them.
        after: the same of the network that was kept.
        kept_step: after how many steps the network was as it was kept; None without held-out samples.
        constant: each task's loss of the best constant answer on the held-out samples, where it is known.
        judged_on: which samples are the held-out ones: `"validation samples"` that were given, `"held-out samples"`
            set aside from those given for training, `"training samples"` where these were too few to set some aside;
            empty without.
        measurements: all measurements on them, in the order of steps.
        learning_rate: the peak rate; None where it is a function of the node.
        tolerance: for each task how much worse than before counts as equal.

    >>> history = branchnet.training.History({"a": (1.0, 0.5)}, 0.1, before={"a": 0.4}, after={"a": 0.6})
    >>> history.worse
    {'a': 'worse than before training'}
    """

    losses: Mapping[str, tuple[float, ...]]
    seconds: float
    resumed_at: int = 0
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    kept_step: int | None = None
    constant: Mapping[str, float] = field(default_factory=dict)
    judged_on: str = ""
    measurements: tuple[Measurement, ...] = ()
    learning_rate: float | None = None
    tolerance: Mapping[str, float] = field(default_factory=dict)

    @property
    def worse(self) -> dict[str, str]:
        """The tasks that ended worse than they began, or than a constant answer, with the reason in words."""
        found = {}
        for task, after in self.after.items():
            reasons = []
            if not after <= self.before[task] + self.tolerance.get(task, 0.0):
                reasons.append("worse than before training")
            if not after <= self.constant.get(task, float("inf")):
                reasons.append("worse than a constant answer")
            if reasons:
                found[task] = " and ".join(reasons)
        return found

    def in_words(self) -> str:
        """The peak rate and the state that was kept, as in `peak learning rate 0.0003, the state after 70 of 80 steps`.

        Returns:
            the words; without the state where the last one was kept unasked.
        """
        rate = "learning rates by node" if self.learning_rate is None else f"peak learning rate {self.learning_rate:g}"
        steps = len(next(iter(self.losses.values()), ()))
        if self.kept_step == 0 and steps:
            return f"{rate}; no state of {steps} steps was better on held-out samples than the first, which is kept"
        return rate if self.kept_step is None else f"{rate}, the state after {self.kept_step} of {steps} steps"

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one row for each step: the losses, and what was measured on held-out samples after that many steps.

        Args:
            path: the file to write; replaced as a whole.
        """
        tasks = list(self.losses)
        judged = {measured.step: measured for measured in self.measurements}
        metrics = list(dict.fromkeys(task for measured in self.measurements for task in measured.metrics))
        columns = [f"loss {task}" for task in tasks]
        if judged:
            columns += [f"held-out loss {task}" for task in tasks] + [f"held-out metric {task}" for task in metrics]
        steps = len(self.losses[tasks[0]]) if tasks else 0
        with atomic_write(Path(path)) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", *columns])
            for step in range(steps + 1):
                row: list[object] = [self.losses[task][step - 1] if step else "" for task in tasks]
                if judged:
                    measured = judged.get(step, Measurement(step, {}))
                    row += [measured.losses.get(task, "") for task in tasks]
                    row += [measured.metrics.get(task, "") for task in metrics]
                writer.writerow([step, *row])
