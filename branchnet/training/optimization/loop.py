"""The optimisation loop that distillation and supervised training share.

The order of the samples depends on the seed alone, and what is drawn at a step on the seed and the step; the global
random state is restored afterwards. With a checkpoint file, an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from branchnet.errors import TrainingError
from branchnet.training.optimization.choosing.best_state import BestState
from branchnet.training.optimization.choosing.held_out_judge import Judge
from branchnet.training.optimization.choosing.learning_rates import largest_safe_rate, test_length
from branchnet.training.optimization.groups import Group
from branchnet.training.optimization.history import History
from branchnet.training.optimization.loss_parameters import check_all_trained
from branchnet.training.optimization.moving_average import MovingAverage
from branchnet.training.optimization.objective import Objective
from branchnet.training.optimization.observers import Event, Observers
from branchnet.training.optimization.processes import Processes
from branchnet.training.optimization.run_record import (
    check_finite,
    held_out_text,
    record_step,
    run_checkpoint,
    run_history,
)
from branchnet.training.optimization.run_settings import Settings
from branchnet.training.optimization.schedules import share_of
from branchnet.training.resuming.checkpoint import Checkpoint, State
from branchnet.training.resuming.run_identity import Identity
from branchnet.utils.interrupt import deferred_interrupt
from branchnet.utils.progress import progress_bar
from branchnet.utils.random_state import seeded, start_generators

Draw = Callable[[int], Any]
"""From a number to the batch of that number; they are asked for one after the other."""


def optimize(
    module: nn.Module,
    objective: Objective,
    groups: Sequence[Group],
    settings: Settings,
    *,
    draws: Callable[[], Draw],
    rate: float | Literal["auto"] = 1.0,
    weighting: Any = None,
    further_modules: Sequence[nn.Module] = (),
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
        further_modules: modules whose state belongs to the run, too, as losses with parameters.
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
    if judge is not None and judge.before is not None:
        judge = replace(judge, before=processes.mean(judge.before))
    modules = [*further_modules, *([weighting] if weighting is not None else [])]
    best = None if judge is None else BestState(module, judge.tasks, modules)
    average = None if settings.ema is None else MovingAverage(module, settings.ema)
    run = _Run(module, objective, groups, settings, processes, weighting, average)
    kept = [*modules, *([best] if best else []), *([average] if average else [])]
    saved = run_checkpoint(module, groups, settings, rate, kept, samples, identity or {}, legacy_content)
    with seeded(settings.seed, _device(module)):
        for one in (module, *modules, *([average] if average else [])):
            processes.broadcast(one)
        state = saved.restore(module, run.optimizer, processes.of_first)
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
    return run_history(groups, settings, state, best, judge, started, resumed_at, rate)


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
        average: MovingAverage | None,
    ) -> None:
        self.module, self.objective, self.groups, self.settings = module, objective, groups, settings
        self.processes, self.weighting, self.average = processes, weighting, average
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
        return self.processes.mean(losses), dict(metrics)

    def try_rate(self, rate: float, draws: Callable[[], Draw]) -> None:
        """Train for some steps as a short run of this peak rate goes, with an optimiser of its own."""
        draw, optimizer, steps = draws(), self._new_optimizer(rate), test_length(self.settings.steps)
        stepper, peaks = self.processes.prepared(optimizer), self._peaks(rate)
        for step in range(steps):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * self.share(step, steps)
            self._step(draw, step, stepper)
        check_finite(self.parameters, steps)

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
                if self.average is not None:
                    self.average.update()
                loss = record_step(state, losses, self.parameters, self.last)
                advance(f"loss {loss:.3f}{held_out_text(state)}")
                rate = self.optimizer.param_groups[0]["lr"]
                ended = state.ended = observers.tell(Event("step", state.step, self.module, losses, {}, rate))
                if self.processes.first and not ended:
                    saved.save_when_due(self.module, self.optimizer, state)
                if self.processes.agreed(interrupted()):
                    if self.processes.first:
                        saved.save(self.module, self.optimizer, state)
                    raise KeyboardInterrupt
                ended = self.processes.agreed(ended)
        check_finite(self.parameters, state.step)
        self.processes.average_buffers(self.module)
        if best is not None:
            self._measure(best, judge, state, observers)
        state.ended = ended
        if self.processes.first:
            saved.save(self.module, self.optimizer, state, again=ended or best is not None)
        self.processes.wait()
        if best is not None and settings.keep == "best":
            best.put_back()
        elif self.average is not None:
            self.average.put_in()
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
        for number, (batch, factor) in enumerate(zip(batches, factors, strict=True)):
            if self.weighting is not None:
                self.weighting.begin_step(step * self.settings.accumulate + number)
            with self.processes.autocast():
                losses = {} if batch is None else self.objective.losses(batch)
            if check and batch is not None:
                check_all_trained(losses, self.parameters)
            weighted = {task: _times(loss, factor.get(task, 1.0)) for task, loss in losses.items()}
            if weighted:
                self._backward(weighted)
            elif self.weighting is not None:
                self.weighting.without_losses(self.module)
            for task, value in _values(weighted).items():
                sums[task] = sums.get(task, 0.0) + value / len(batches)
        self._divide_gradients(len(batches))
        self.processes.average_gradients(self.parameters)
        if self.settings.clip is not None:
            self.processes.clip(self.module, stepper, self.parameters, self.settings.clip)
        stepper.step()
        if self.weighting is not None and self.weighting.needs_losses_again:
            self.weighting.after_step(partial(self._losses_again, batches[-1], factors[-1]))
        torch.clear_autocast_cache()
        return self._mean_over_processes(sums)

    def _backward(self, losses: Mapping[str, Tensor]) -> None:
        if self.weighting is not None:
            self.weighting.backward(self.module, losses, self.processes.backward)
        else:
            self.processes.backward(torch.stack(list(losses.values())).sum())

    def _losses_again(self, batch: Any, factor: Mapping[str, float]) -> dict[str, Tensor]:
        if batch is None:
            return {}
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
        """What each batch's mean losses are multiplied by, so that every label of all batches counts the same."""
        if self.objective.weights is None or len(batches) * self.processes.count == 1:
            return [{} for _ in batches]
        counts = [{} if batch is None else self.objective.weights(batch) for batch in batches]
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
        assert judge is not None
        self.processes.average_buffers(self.module)
        with nullcontext() if self.average is None else self.average.in_place():
            losses, metrics = self.judged(judge)
            best.keep(state.step, losses, judge)
            state.measurements.append({"step": state.step, "losses": losses, "metrics": metrics})
            return observers.tell(Event("validation", state.step, self.module, losses, metrics))

    def _out_of_patience(self, best: BestState, state: State) -> bool:
        patience = self.settings.patience
        return patience is not None and state.step - int(best.step) >= patience * self.settings.measured_every


def _values(losses: Mapping[str, Tensor]) -> dict[str, float]:
    """Numbers of the losses; one message from the device for all of them."""
    if not losses:
        return {}
    values: list[float] = torch.stack([loss.detach() for loss in losses.values()]).tolist()
    return dict(zip(losses, values, strict=True))


def _times(loss: Tensor, factor: float) -> Tensor:
    return loss if factor == 1.0 else loss * factor


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
