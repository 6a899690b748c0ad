"""What is kept of a run: its checkpoint, the losses of its steps, and the history at the end."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from branchnet.data.finite_inputs import not_finite_in
from branchnet.data.samples import Batch
from branchnet.errors import TrainingError
from branchnet.training.optimization.choosing.best_state import BestState
from branchnet.training.optimization.choosing.held_out_judge import Judge
from branchnet.training.optimization.groups import Group
from branchnet.training.optimization.history import History, Measurement
from branchnet.training.optimization.run_settings import Settings
from branchnet.training.resuming.checkpoint import Checkpoint, Run, State
from branchnet.training.resuming.code_hash import code_hash
from branchnet.training.resuming.run_identity import Identity


def run_checkpoint(
    module: nn.Module,
    groups: Sequence[Group],
    settings: Settings,
    rate: float | str,
    further_modules: Sequence[nn.Module],
    samples: int | None,
    identity: Identity,
    legacy_content: Callable[[], str],
) -> Checkpoint:
    """The file that a run is kept in, by what makes it this run.

    Args:
        module: what is trained.
        groups: its parameters.
        settings: of the run.
        rate: what the groups' rates are multiplied by, or `"auto"`.
        further_modules: modules whose state is kept, too.
        samples: how many there are to train on, where that is known.
        identity: what else a checkpoint must be of.
        legacy_content: computes what a checkpoint of version 0.1.0 keeps in place of it.
    """
    peaks = [rate if isinstance(rate, str) else rate * group.learning_rate for group in groups]
    shapes = [(name, *tensor.shape) for name, tensor in module.state_dict().items()]
    plain = f"{settings.batch_size} {settings.seed} {samples} {peaks} {shapes}"
    defaults = Settings(steps=1, batch_size=1)
    further = [
        f"{name}={getattr(settings, name)!r}"
        for name in ("accumulate", "clip", "precision", "schedule", "keep", "patience", "ema")
        if getattr(settings, name) != getattr(defaults, name) and not callable(getattr(settings, name))
    ]
    further += [
        f"{name}={code_hash(given)}" for name in ("optimizer", "schedule") if callable(given := getattr(settings, name))
    ]

    run = Run(
        {"settings": _hashed(" ".join([plain, *further])), **identity},
        settings.steps,
        legacy=lambda: _hashed(f"{settings.steps} {plain} {legacy_content()}"),
    )
    path = None if settings.checkpoint is None else Path(settings.checkpoint)
    return Checkpoint(path, run, settings.checkpoint_seconds, further_modules, every=settings.checkpoint_every)


def run_history(
    groups: Sequence[Group],
    settings: Settings,
    state: State,
    best: BestState | None,
    judge: Judge | None,
    started: float,
    resumed_at: int,
    rate: float | str,
) -> History:
    """What training reports.

    Args:
        groups: the parameters that were trained.
        settings: of the run.
        state: how far it is.
        best: the best state; None without held-out samples.
        judge: these.
        started: when, by `time.monotonic`.
        resumed_at: the step at which a checkpoint was taken up.
        rate: what the groups' rates are multiplied by, or `"auto"`.
    """
    losses = {task: tuple(values) for task, values in state.losses.items()}
    seconds = time.monotonic() - started
    measurements = tuple(
        Measurement(one["step"], dict(one["losses"]), dict(one["metrics"])) for one in state.measurements
    )
    rates = {group.learning_rate for group in groups}
    chosen = state.rate if rate == "auto" else rates.pop() if len(rates) == 1 else None
    if best is None or judge is None:
        return History(losses, seconds, resumed_at, measurements=measurements, learning_rate=chosen)
    before = best.losses("first")
    last = dict(measurements[-1].losses)
    kept = settings.keep == "best"
    return History(
        losses,
        seconds,
        resumed_at,
        before,
        best.losses("best") if kept else last,
        int(best.step) if kept else state.step,
        judge.constant,
        judge.judged_on,
        measurements,
        chosen,
        {task: judge.tolerance(task, loss) for task, loss in before.items()},
    )


def record_step(
    state: State, losses: Mapping[str, float], parameters: Sequence[nn.Parameter], batches: Sequence[Any]
) -> float:
    """Add the losses of a step to the state of the run.

    Args:
        state: how far it is.
        losses: by task.
        parameters: those that are trained.
        batches: of the step, where a loss that is not finite may come from.

    Returns:
        their mean, for the progress bar.

    Raises:
        TrainingError: a loss that is not finite.
    """
    for task, value in losses.items():
        if not math.isfinite(value):
            which = f"the loss of {task!r}" if len(losses) > 1 else "the loss"
            cause = next(filter(None, (not_finite_in(one) for one in batches if isinstance(one, Batch))), "")
            raise TrainingError(f"{which} became {value} at step {state.step}; {cause or _remedy(parameters)}")
        state.losses.setdefault(task, [math.nan] * state.step)
    for task, values in state.losses.items():
        values.append(losses.get(task, math.nan))
    state.step += 1
    return _mean(losses)


def held_out_text(state: State) -> str:
    """The mean of the tasks' losses on held-out samples, for the progress bar.

    Args:
        state: how far a run is.
    """
    return f", held-out {_mean(state.measurements[-1]['losses']):.3f}" if state.measurements else ""


def _mean(losses: Mapping[str, float]) -> float:
    """0 without any, as in a batch that has no labels."""
    return sum(losses.values()) / max(len(losses), 1)


def check_finite(parameters: Sequence[nn.Parameter], steps: int) -> None:
    """Refuse weights that are not finite: what the last step made of them, no loss has seen.

    Args:
        parameters: those that are trained.
        steps: how many were taken.

    Raises:
        TrainingError: NaN or infinite ones.
    """
    if not all(bool(parameter.isfinite().all()) for parameter in parameters):
        raise TrainingError(f"weights became NaN or infinite by step {steps - 1}; {_remedy(parameters)}")


def _remedy(parameters: Sequence[nn.Parameter]) -> str:
    half = sorted(
        {str(p.dtype).removeprefix("torch.") for p in parameters if p.dtype in (torch.float16, torch.bfloat16)}
    )
    if not half:
        return "lower the learning rate"
    return (
        f"weights are {' and '.join(half)}, too coarse for the optimiser's steps; expected float32 weights, "
        "network.float(), and for speed training under torch.autocast(device_type, dtype)"
    )


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
