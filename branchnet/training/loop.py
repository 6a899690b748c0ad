"""The optimisation loop that distillation and supervised training share.

AdamW with a cosine schedule after a short linear warm-up. The order of the samples depends on the seed alone; the
global random state is restored afterwards. With a checkpoint file, an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.data.finite_inputs import not_finite_in
from branchnet.data.samples import Batch
from branchnet.errors import TrainingError
from branchnet.training.best_state import BestState
from branchnet.training.loss_parameters import check_all_trained
from branchnet.training.resuming.checkpoint import Checkpoint, Run, State
from branchnet.training.resuming.run_identity import Identity
from branchnet.utils.interrupt import deferred_interrupt
from branchnet.utils.progress import progress_bar
from branchnet.utils.random_state import seeded

WARM_UP = 0.05
"""Share of the steps in which the rate rises: AdamW's second moments are estimated from few gradients at first."""
WEIGHT_DECAY = 1e-4
LARGEST_GRADIENT = 5.0
"""Norm of the gradient of all parameters above which it is scaled down: some batch of an early step can be far out."""
SECONDS_BETWEEN_CHECKPOINTS = 30.0
"""By default: so an interruption costs half a minute of training at most, and writing a small share of that."""

TaskLosses = Callable[[Any], Mapping[str, Tensor]]
"""From what a step is given, the indices of a batch or the batch itself, to the scalar loss of each task."""


@dataclass(frozen=True)
class Group:
    """Parameters that are trained with one learning rate, and drawn towards 0 by one weight decay."""

    parameters: Sequence[nn.Parameter]
    learning_rate: float
    weight_decay: float = WEIGHT_DECAY


@dataclass(frozen=True)
class History:
    """What training reported.

    Attributes:
        losses: for each task its loss at every step.
        seconds: time spent in this process.
        resumed_at: the step at which a checkpoint was taken up; 0 without one.
        before: each task's loss on the held-out samples before training; empty without them.
        after: the same of the network that was kept.
        kept_step: after how many steps the network was as it was kept; None without held-out samples.
    """

    losses: Mapping[str, tuple[float, ...]]
    seconds: float
    resumed_at: int = 0
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    kept_step: int | None = None


def optimize(
    module: nn.Module,
    task_losses: TaskLosses,
    groups: Sequence[Group],
    *,
    samples: int | None,
    steps: int,
    batch_size: int,
    seed: int,
    description: str,
    draw: Callable[[int], Any] | None = None,
    beside: Sequence[nn.Module] = (),
    best: BestState | None = None,
    every: int = 50,
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = SECONDS_BETWEEN_CHECKPOINTS,
    identity: Identity | None = None,
    legacy_content: Callable[[], str] = str,
) -> History:
    """Train `module` in place for `steps` batches, each `draw(step)`: by default the `sample_indices` of `samples`.

    A checkpoint is resumed only by a run of the same settings and `identity`; one of fewer steps is extended. It stays
    at the end: whoever saves the result removes it.

    Args:
        module: what is trained, in the mode that it is in.
        task_losses: computes the losses of a batch; their sum is minimised.
        groups: which parameters are trained with which peak rate.
        samples: K, the number of samples that indices are drawn from.
        steps: the number of batches.
        batch_size: samples a batch.
        seed: of the order of the samples and of what is drawn in training.
        description: what the progress bar is called.
        draw: what a step is given.
        beside: modules whose state belongs to the run, too, as losses with parameters.
        best: keeps the best state by held-out samples, which the module has in the end; None keeps the last one.
        every: steps between two measurements of it.
        progress: whether to draw the bar.
        checkpoint: a file to resume from.
        checkpoint_seconds: time between two savings; 0 saves after each step.
        identity: what besides the settings a checkpoint must be of.
        legacy_content: computes what a checkpoint of version 0.1.0 keeps in place of `identity`.

    Returns:
        the losses of all steps, those before the checkpoint included.

    Raises:
        TrainingError: settings that make no training, a loss with parameters that nothing trains, or one that is not
            finite (the task and the step are named).
        CheckpointError: a checkpoint of another run, a damaged one, or one that cannot be written.
    """
    if not checkpoint_seconds >= 0:
        raise TrainingError(f"checkpoint_seconds={checkpoint_seconds}; expected a number of 0 or more")
    if steps < 1 or batch_size < 1:
        raise TrainingError(f"steps={steps}, batch_size={batch_size}; expected 1 or more of both")
    if not isinstance(every, Integral) or every < 1:
        raise TrainingError(f"every={every!r}; expected a whole number of 1 or more")
    optimized = [
        {"params": list(group.parameters), "lr": group.learning_rate, "weight_decay": group.weight_decay}
        for group in groups
        if group.parameters
    ]
    if not optimized:
        raise TrainingError("all parameters are frozen; expected at least one to train; unfreeze some")
    draw = draw or partial(sample_indices, samples=samples or 0, batch_size=batch_size, seed=seed)
    optimizer = torch.optim.AdamW(optimized)
    parameters = [parameter for group in groups for parameter in group.parameters]
    peaks = [group["lr"] for group in optimizer.param_groups]
    shapes = [(name, *tensor.shape) for name, tensor in module.state_dict().items()]
    settings = f"{batch_size} {seed} {samples} {peaks} {shapes}"
    run = Run(
        {"settings": _hashed(settings), **(identity or {})},
        steps,
        legacy=lambda: _hashed(f"{steps} {settings} {legacy_content()}"),
    )
    saved = Checkpoint(checkpoint, run, checkpoint_seconds, beside if best is None else [*beside, best])
    started = time.monotonic()
    with seeded(seed, _device(module)):
        state = saved.restore(module, optimizer)
        resumed_at = state.step
        with (
            deferred_interrupt() as interrupted,
            progress_bar(description, steps, shown=progress, done=state.step) as advance,
        ):
            torch.clear_autocast_cache()  # around all of training, autocast would go on with weights cast before a step
            for step in range(state.step, steps):
                if best is not None and step % every == 0:
                    best.measure(step)
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * schedule(step, steps)
                losses = task_losses(batch := draw(step))
                if step == resumed_at:
                    check_all_trained(losses, parameters)
                optimizer.zero_grad(set_to_none=True)
                torch.stack(list(losses.values())).sum().backward()
                nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
                optimizer.step()
                torch.clear_autocast_cache()
                advance(f"loss {_record(state, losses, parameters, batch):.3f}")
                saved.save_when_due(module, optimizer, state)
                if interrupted():
                    saved.save(module, optimizer, state)
                    raise KeyboardInterrupt
        _check_finite(parameters, steps)
        if best is not None:
            best.measure(steps)
        saved.save(module, optimizer, state)
    history = History(
        {task: tuple(values) for task, values in state.losses.items()}, time.monotonic() - started, resumed_at
    )
    if best is None:
        return history
    best.put_back()
    return replace(history, before=best.losses("first"), after=best.losses("best"), kept_step=int(best.step))


def schedule(step: int, steps: int) -> float:
    """Return the share of the peak rate at `step` of `steps`: linear warm-up, then half a cosine down to zero.

    The cosine of "SGDR" (Loshchilov and Hutter 2017, equation 5), without restarts.
    """
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def sample_indices(step: int, samples: int, batch_size: int, seed: int) -> Tensor:
    """Return the indices of batch number `step`: each epoch is a permutation made from (seed, epoch).

    They depend on nothing that came before, so a run that resumes draws the batches that it would have drawn. Samples
    that do not fill an epoch's last batch are left out of that epoch.
    """
    batch_size = min(batch_size, samples)
    per_epoch = samples // batch_size
    epoch, position = divmod(step, per_epoch)
    # Far apart, so that epoch e of a seed is not epoch e - 1 of the next one; below 2^63, which every torch takes.
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(samples, generator=generator)[position * batch_size : (position + 1) * batch_size]


def _record(state: State, losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter], batch: Any) -> float:
    values: list[float] = torch.stack(list(losses.values())).tolist()
    for task, value in zip(losses, values, strict=True):
        if not math.isfinite(value):
            which = f"the loss of {task!r}" if len(losses) > 1 else "the loss"
            cause = not_finite_in(batch) if isinstance(batch, Batch) else ""
            raise TrainingError(f"{which} became {value} at step {state.step}; {cause or _remedy(parameters)}")
        state.losses.setdefault(task, []).append(value)
    state.step += 1
    return sum(values)


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
