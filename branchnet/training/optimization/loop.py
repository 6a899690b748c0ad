"""The optimisation loop that distillation and supervised training share.

The order of the samples depends on the seed alone, and what is drawn at a step on the seed and the step; the global
random state is restored afterwards. With a checkpoint file, an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from branchnet.data.finite_inputs import not_finite_in
from branchnet.data.samples import Batch
from branchnet.errors import TrainingError
from branchnet.training.optimization.best_state import BestState
from branchnet.training.optimization.groups import Group
from branchnet.training.optimization.history import History, Measurement
from branchnet.training.optimization.learning_rates import largest_safe_rate, test_length
from branchnet.training.optimization.loss_parameters import check_all_trained
from branchnet.training.optimization.observers import Event, Observers
from branchnet.training.optimization.processes import Processes
from branchnet.training.optimization.run_settings import Settings
from branchnet.training.optimization.schedules import share_of
from branchnet.training.resuming.checkpoint import Checkpoint, Run, State
from branchnet.training.resuming.code_hash import code_hash
from branchnet.training.resuming.run_identity import Identity
from branchnet.utils.interrupt import deferred_interrupt
from branchnet.utils.progress import progress_bar
from branchnet.utils.random_state import seeded, start_generators

Draw = Callable[[int], Any]
"""From a number to the batch of that number; they are asked for one after the other."""


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        losses: from a batch to each task's loss, the mean over its samples with a label; tasks without any are left
            out.
        counts: from a batch to how many samples of it have a label for each task; None where all have.
        tasks: the tasks.
    """

    losses: Callable[[Any], Mapping[str, Tensor]]
    counts: Callable[[Any], Mapping[str, int]] | None = None
    tasks: Sequence[str] = ()


@dataclass(frozen=True)
class Judge:
    """What held-out samples say of the network.

    Attributes:
        tasks: the tasks that are judged.
        measure: computes each task's loss with the network as it is, and the metrics that were asked for.
        constant: the loss of the best constant answer for each task, where it is known.
        judged_on: which samples these are; see `History`.
        tolerance: from a task and its loss before training to how much more counts as equal.
        scale: from a task and its loss before training to the unit in which losses of tasks are added up.
        cause: says why losses are not finite, where the samples show it.
    """

    tasks: tuple[str, ...]
    measure: Callable[[], tuple[Mapping[str, float], Mapping[str, float]]]
    constant: Mapping[str, float] = field(default_factory=dict)
    judged_on: str = "validation samples"
    tolerance: Callable[[str, float], float] = lambda task, before: 0.0
    scale: Callable[[str, float], float] = lambda task, before: 1.0
    cause: Callable[[], str] = str


def optimize(
    module: nn.Module,
    objective: Objective,
    groups: Sequence[Group],
    settings: Settings,
    *,
    draws: Callable[[], Draw],
    rate: float | Literal["auto"] = 1.0,
    weighting: Any = None,
    beside: Sequence[nn.Module] = (),
    judge: Judge | None = None,
    identity: Identity | None = None,
    legacy_content: Callable[[], str] = str,
    samples: int | None = None,
) -> History:
    """Train `module` in place for `settings.steps` steps.

    A checkpoint is resumed only by a run of the same settings and `identity`; one of fewer steps is extended. It stays
    at the end: whoever saves the result removes it.

    Args:
        module: what is trained, in the mode that it is in.
        objective: computes the losses of a batch; their sum, or what `weighting` makes of them, is minimised.
        groups: which parameters are trained with which peak rate.
        settings: how the run goes.
        draws: gives the batches in their order, from the first one again whenever it is called.
        rate: what the groups' rates are multiplied by; `"auto"`: the largest that the network can stand, by `judge`.
        weighting: gradients from losses; None adds the losses up.
        beside: modules whose state belongs to the run, too, as losses with parameters.
        judge: held-out samples, by which the best state is kept unless the last one is asked for.
        identity: what besides the settings a checkpoint must be of.
        legacy_content: computes what a checkpoint of version 0.1.0 keeps in place of `identity`.
        samples: how many there are to train on, where that is known.

    Returns:
        the losses of all steps, those before the checkpoint included, and what held-out samples said.

    Raises:
        TrainingError: a loss with parameters that nothing trains, or one that is not finite (the task and the step are
            named), settings that this machine does not have.
        CheckpointError: a checkpoint of another run, a damaged one, or one that cannot be written.
    """
    groups = [group for group in groups if group.parameters]
    if not groups:
        raise TrainingError("all parameters are frozen; expected at least one to train; unfreeze some")
    if rate == "auto" and judge is None:
        raise TrainingError("learning_rate='auto' needs held-out samples to judge rates by; expected validation=")
    started = time.monotonic()
    processes = Processes(settings.precision, _device(module))
    if settings.patience is not None and judge is None:
        raise TrainingError("patience needs held-out samples to judge by; expected validation=, or keep='best'")
    modules = [*beside, *([weighting] if weighting is not None else [])]
    best = None if judge is None else BestState(module, judge.tasks, modules)
    run = _Run(module, objective, groups, settings, processes, weighting)
    kept = [*modules, *([best] if best else [])]
    saved = _checkpoint(module, groups, settings, rate, kept, samples, identity or {}, legacy_content)
    with seeded(settings.seed, _device(module)):
        for one in (module, *modules):
            processes.broadcast(one)
        state = saved.restore(module, run.optimizer)
        if rate == "auto" and not state.rate:
            assert judge is not None
            state.rate = largest_safe_rate(
                [module, *modules],
                partial(run.try_rate, draws=draws),
                partial(run.judged, judge),
                judge,
                share=min(1.0, test_length(settings.steps) / settings.steps),
            )
            if processes.first:
                saved.save(module, run.optimizer, state)
        run.set_peaks(state.rate if rate == "auto" else float(rate))
        resumed_at = state.step
        run.go(draws(), state, saved, best, judge)
    return _history(run, state, best, judge, started, resumed_at, rate)


class _Run:
    """The steps of one run."""

    def __init__(
        self,
        module: nn.Module,
        objective: Objective,
        groups: Sequence[Group],
        settings: Settings,
        processes: Processes,
        weighting: Any,
    ) -> None:
        self.module, self.objective, self.groups, self.settings = module, objective, groups, settings
        self.processes, self.weighting = processes, weighting
        self.parameters = [parameter for group in groups for parameter in group.parameters]
        self.share = share_of(settings.schedule)
        self.optimizer = self._new_optimizer(1.0)
        self.stepper = processes.prepared(self.optimizer)
        self.peaks: list[float] = []
        self.last: list[Any] = []

    def _new_optimizer(self, rate: float) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = []
        for group, peak in zip(self.groups, self._peaks(rate), strict=True):
            made: dict[str, Any] = {"params": list(group.parameters), "lr": peak}
            # Another optimiser has a decay of its own, which losses' parameters are spared, too.
            if self.settings.optimizer is None or group.weight_decay == 0.0:
                made["weight_decay"] = group.weight_decay
            groups.append(made)
        optimizer = (self.settings.optimizer or torch.optim.AdamW)(groups)
        if not isinstance(optimizer, torch.optim.Optimizer) or len(optimizer.param_groups) != len(self.groups):
            raise TrainingError(
                f"optimizer made a {type(optimizer).__name__}; expected a torch.optim.Optimizer of all the parameter "
                "groups that it is given"
            )
        return optimizer

    def set_peaks(self, rate: float) -> None:
        """Set the peak rates."""
        self.peaks = self._peaks(rate)

    def _peaks(self, rate: float) -> list[float]:
        return [group.learning_rate * (rate if group.scaled else 1.0) for group in self.groups]

    def judged(self, judge: Judge) -> tuple[dict[str, float], dict[str, float]]:
        """Measure the network, with the statistics and the numbers that all processes agree on."""
        self.processes.average_buffers(self.module)
        losses, metrics = judge.measure()
        count = self.processes.count
        agreed = self.processes.summed(dict(losses), list(losses))
        return {task: loss / count for task, loss in agreed.items()}, dict(metrics)

    def try_rate(self, rate: float, draws: Callable[[], Draw]) -> None:
        """Train for some steps at a constant rate, with an optimiser of its own."""
        draw, optimizer = draws(), self._new_optimizer(rate)
        stepper = self.processes.prepared(optimizer)
        for step in range(test_length(self.settings.steps)):
            self._step(draw, step, stepper)
        _check_finite(self.parameters, test_length(self.settings.steps))

    def go(self, draw: Draw, state: State, saved: Checkpoint, best: BestState | None, judge: Judge | None) -> None:
        """Take the steps that are left, and put back the best state."""
        settings, steps, first = self.settings, self.settings.steps, state.step
        observers = Observers(settings.callbacks, settings.logger) if self.processes.first else Observers((), ())
        bar = progress_bar(
            settings.description, steps, shown=settings.progress and self.processes.first, done=state.step
        )
        with deferred_interrupt() as interrupted, bar as advance:
            torch.clear_autocast_cache()  # around all of training, autocast would go on with weights cast before a step
            ended = state.ended
            while state.step < steps and not ended:
                if best is not None and state.step % settings.measured_every == 0:
                    ended = self._measure(best, judge, state, observers) or self._out_of_patience(best, state)
                    if self.processes.agreed(ended):
                        break
                for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
                    group["lr"] = peak * self.share(state.step, steps)
                losses = self._step(draw, state.step, self.stepper, check=state.step == first)
                loss = _record(state, losses, self.parameters, self.last)
                advance(f"loss {loss:.3f}{_held_out_text(state)}")
                rate = self.optimizer.param_groups[0]["lr"]
                ended = state.ended = observers.tell(Event("step", state.step, self.module, losses, {}, rate))
                if self.processes.first and not ended:
                    saved.save_when_due(self.module, self.optimizer, state)
                if self.processes.agreed(interrupted()):
                    if self.processes.first:
                        saved.save(self.module, self.optimizer, state)
                    raise KeyboardInterrupt
                ended = self.processes.agreed(ended)
        _check_finite(self.parameters, state.step)
        self.processes.average_buffers(self.module)
        if best is not None:
            self._measure(best, judge, state, observers)
        state.ended = ended
        if self.processes.first:
            saved.save(self.module, self.optimizer, state, again=ended or best is not None)
        self.processes.wait()
        if best is not None and settings.keep == "best":
            best.put_back()
        observers.tell(Event("end", state.step, self.module))

    def _step(self, draw: Draw, step: int, stepper: Any, *, check: bool = False) -> dict[str, float]:
        """One update from `accumulate` batches; the mean loss of each task over its samples in all of them."""
        batches = []
        for number in range(self.settings.accumulate):
            # Far apart, so that no step of one seed is a step of the next; from here on nothing depends on the past.
            seed = self.settings.seed * 1_000_003 + (step * self.settings.accumulate + number) * self.processes.count
            start_generators((seed + self.processes.rank) % 2**63, _device(self.module))
            batches.append(self._own(draw(step * self.settings.accumulate + number)))
        self.last = batches
        factors = self._factors(batches)
        torch.clear_autocast_cache()  # torch 2.10 keeps weights in it that were cast without gradients
        stepper.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        weighted: dict[str, Tensor] = {}
        for batch, factor in zip(batches, factors, strict=True):
            if batch is None:
                weighted = {}
                continue
            with self.processes.autocast():
                losses = self.objective.losses(batch)
            if check:
                check_all_trained(losses, self.parameters)
            weighted = {task: _times(loss, factor.get(task, 1.0)) for task, loss in losses.items()}
            if weighted:
                self._backward(weighted)
            for task, value in _values(weighted).items():
                sums[task] = sums.get(task, 0.0) + value / len(batches)
        self._divide_gradients(len(batches))
        self.processes.average_gradients(self.parameters)
        if self.settings.clip is not None:
            self.processes.clip(self.module, stepper, self.parameters, self.settings.clip)
        stepper.step()
        if self.weighting is not None and self.weighting.needs_losses_again and weighted:
            self.weighting.after_step(partial(self._losses_again, batches[-1], factors[-1]))
        torch.clear_autocast_cache()
        return self._mean_over_processes(sums)

    def _backward(self, losses: Mapping[str, Tensor]) -> None:
        if self.weighting is not None:
            self.weighting.backward(self.module, losses, self.processes.backward)
        else:
            self.processes.backward(torch.stack(list(losses.values())).sum())

    def _losses_again(self, batch: Any, factor: Mapping[str, float]) -> dict[str, Tensor]:
        with self.processes.autocast():
            losses = self.objective.losses(batch)
        return {task: _times(loss, factor.get(task, 1.0)) for task, loss in losses.items()}

    def _divide_gradients(self, batches: int) -> None:
        if batches > 1:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad /= batches

    def _own(self, batch: Any) -> Any:
        if isinstance(batch, Mapping):  # a batch for each task
            shares = {task: self.processes.share(one) for task, one in batch.items()}
            return {task: one for task, one in shares.items() if one is not None} or None
        return self.processes.share(batch) if self.processes.count > 1 else batch

    def _factors(self, batches: Sequence[Any]) -> list[dict[str, float]]:
        """What each batch's mean losses are multiplied by, so that every sample of all batches counts the same."""
        if self.objective.counts is None or len(batches) * self.processes.count == 1:
            return [{} for _ in batches]
        counts = [{} if batch is None else self.objective.counts(batch) for batch in batches]
        total: dict[str, float] = {}
        for own in counts:
            for task, count in own.items():
                total[task] = total.get(task, 0.0) + count
        total = self.processes.summed(total, list(self.objective.tasks))
        parts = len(batches) * self.processes.count
        return [{task: parts * count / total[task] for task, count in own.items() if total[task]} for own in counts]

    def _mean_over_processes(self, sums: dict[str, float]) -> dict[str, float]:
        if self.processes.count == 1:
            return sums
        seen = self.processes.summed(dict.fromkeys(sums, 1.0), list(self.objective.tasks))
        means = self.processes.summed(sums, list(self.objective.tasks))
        return {task: means[task] / self.processes.count for task in self.objective.tasks if seen[task]}

    def _measure(self, best: BestState, judge: Judge | None, state: State, observers: Observers) -> bool:
        if state.measurements and state.measurements[-1]["step"] >= state.step:
            return False
        self.processes.average_buffers(self.module)
        assert judge is not None
        losses, metrics = self.judged(judge)
        best.keep(state.step, losses, judge)
        state.measurements.append({"step": state.step, "losses": losses, "metrics": metrics})
        return observers.tell(Event("validation", state.step, self.module, losses, metrics))

    def _out_of_patience(self, best: BestState, state: State) -> bool:
        patience = self.settings.patience
        return patience is not None and state.step - int(best.step) >= patience * self.settings.measured_every


def _checkpoint(
    module: nn.Module,
    groups: Sequence[Group],
    settings: Settings,
    rate: float | str,
    beside: Sequence[nn.Module],
    samples: int | None,
    identity: Identity,
    legacy_content: Callable[[], str],
) -> Checkpoint:
    """The file that a run is kept in, by what makes it this run."""
    peaks = [rate if isinstance(rate, str) else rate * group.learning_rate for group in groups]
    shapes = [(name, *tensor.shape) for name, tensor in module.state_dict().items()]
    plain = f"{settings.batch_size} {settings.seed} {samples} {peaks} {shapes}"
    defaults = Settings(steps=1, batch_size=1)
    further = [
        f"{name}={getattr(settings, name)!r}"
        for name in ("accumulate", "clip", "precision", "schedule", "keep", "patience")
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
    return Checkpoint(path, run, settings.checkpoint_seconds, beside, every=settings.checkpoint_every)


def _history(
    run: _Run,
    state: State,
    best: BestState | None,
    judge: Judge | None,
    started: float,
    resumed_at: int,
    rate: float | str,
) -> History:
    losses = {task: tuple(values) for task, values in state.losses.items()}
    seconds = time.monotonic() - started
    measurements = tuple(
        Measurement(one["step"], dict(one["losses"]), dict(one["metrics"])) for one in state.measurements
    )
    rates = {group.learning_rate for group in run.groups}
    chosen = state.rate if rate == "auto" else rates.pop() if len(rates) == 1 else None
    if best is None or judge is None:
        return History(losses, seconds, resumed_at, measurements=measurements, learning_rate=chosen)
    before = best.losses("first")
    last = dict(measurements[-1].losses)
    kept = run.settings.keep == "best"
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


def _record(
    state: State, losses: Mapping[str, float], parameters: Sequence[nn.Parameter], batches: Sequence[Any]
) -> float:
    for task, value in losses.items():
        if not math.isfinite(value):
            which = f"the loss of {task!r}" if len(losses) > 1 else "the loss"
            cause = next(filter(None, (not_finite_in(one) for one in batches if isinstance(one, Batch))), "")
            raise TrainingError(f"{which} became {value} at step {state.step}; {cause or _remedy(parameters)}")
        state.losses.setdefault(task, [math.nan] * state.step)
    for task, values in state.losses.items():
        values.append(losses.get(task, math.nan))
    state.step += 1
    return sum(losses.values())


def _held_out_text(state: State) -> str:
    return f", held-out {sum(state.measurements[-1]['losses'].values()):.3f}" if state.measurements else ""


def _values(losses: Mapping[str, Tensor]) -> dict[str, float]:
    """Numbers of the losses; one message from the device for all of them."""
    if not losses:
        return {}
    values: list[float] = torch.stack([loss.detach() for loss in losses.values()]).tolist()
    return dict(zip(losses, values, strict=True))


def _times(loss: Tensor, factor: float) -> Tensor:
    return loss if factor == 1.0 else loss * factor


def _check_finite(parameters: Sequence[nn.Parameter], steps: int) -> None:
    """What the last step made of the weights, no loss has seen."""
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


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
