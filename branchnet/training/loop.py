"""The optimisation loop that distillation and supervised training share.

AdamW with a cosine schedule after a short linear warm-up. The order of the samples depends on the seed alone; the
global random state is restored afterwards. With a checkpoint file, an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from branchnet.data.collation import leaves
from branchnet.data.samples import Source, read_samples
from branchnet.errors import CheckpointError, TrainingError
from branchnet.stages.interface import call_form
from branchnet.training.loss_parameters import check_all_trained
from branchnet.utils.files import atomic_write
from branchnet.utils.interrupt import deferred_interrupt
from branchnet.utils.progress import progress_bar
from branchnet.utils.random_state import seeded

WARM_UP = 0.05
"""Share of the steps in which the rate rises: AdamW's second moments are estimated from few gradients at first."""
WEIGHT_DECAY = 1e-4
LARGEST_GRADIENT = 5.0
"""Norm of the gradient of all parameters above which it is scaled down: some batch of an early step can be far out."""
SECONDS_BETWEEN_CHECKPOINTS = 30.0
"""So an interruption costs half a minute of training at most, and writing a small share of that."""

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
    """

    losses: Mapping[str, tuple[float, ...]]
    seconds: float
    resumed_at: int = 0


@dataclass
class _State:
    step: int = 0
    losses: dict[str, list[float]] = field(default_factory=dict)


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
    progress: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    content: str = "",
) -> History:
    """Train `module` in place for `steps` batches, each `draw(step)`: by default the `sample_indices` of `samples`.

    A checkpoint is resumed only by a run of the same settings and `content`, see `content_hash`.

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
        progress: whether to draw the bar.
        checkpoint: a file to resume from; removed at the end.
        content: what besides the settings a checkpoint must be of.

    Returns:
        the losses of all steps, those before the checkpoint included.

    Raises:
        TrainingError: settings that make no training, a loss with parameters that nothing trains, or one that is not
            finite (the task and the step are named).
        CheckpointError: a checkpoint of other settings, or a damaged one.
    """
    if steps < 1 or batch_size < 1:
        raise TrainingError(f"steps={steps}, batch_size={batch_size}; expected 1 or more of both")
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
    trained = nn.ModuleList([module, *beside]) if any(one.state_dict() for one in beside) else module
    shapes = [(name, *tensor.shape) for name, tensor in trained.state_dict().items()]
    saved = _Checkpoint(checkpoint, f"{steps} {batch_size} {seed} {samples} {peaks} {shapes} {content}")
    started = time.monotonic()
    with seeded(seed, _device(module)):
        state = saved.restore(trained, optimizer)
        resumed_at = state.step
        with (
            deferred_interrupt() as interrupted,
            progress_bar(description, steps, shown=progress, done=state.step) as advance,
        ):
            for step in range(state.step, steps):
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * schedule(step, steps)
                losses = task_losses(draw(step))
                if step == resumed_at:
                    check_all_trained(losses, parameters)
                optimizer.zero_grad(set_to_none=True)
                torch.stack(list(losses.values())).sum().backward()
                nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
                optimizer.step()
                advance(f"loss {_record(state, losses):.3f}")
                saved.save_when_due(trained, optimizer, state)
                if interrupted():
                    saved.save(trained, optimizer, state)
                    raise KeyboardInterrupt
    saved.remove()
    return History(
        {task: tuple(values) for task, values in state.losses.items()}, time.monotonic() - started, resumed_at
    )


def content_hash(module: nn.Module, images: Source, frozen: Iterable[str] = ()) -> str:
    """Return a hash of the initial weights, the first samples and the frozen nodes: what a run was started from.

    Args:
        module: before training.
        images: the samples; the first 8 are read, as reading all could take longer than training.
        frozen: ids of frozen nodes.
    """
    digest = hashlib.sha256(" ".join(sorted(frozen)).encode())
    samples = read_samples(images, call_form(module))
    with seeded(0):  # random augmentation and shuffling are the same for each start
        first = [leaf for batch in samples.first(8, 8) for leaf in leaves(batch.inputs)]
    for tensor in [*module.state_dict().values(), *first]:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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


def _record(state: _State, losses: Mapping[str, Tensor]) -> float:
    values: list[float] = torch.stack(list(losses.values())).tolist()
    for task, value in zip(losses, values, strict=True):
        if not math.isfinite(value):
            which = f"the loss of {task!r}" if len(losses) > 1 else "the loss"
            raise TrainingError(f"{which} became {value} at step {state.step}; lower the learning rate")
        state.losses.setdefault(task, []).append(value)
    state.step += 1
    return sum(values)


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


class _Checkpoint:
    """Saves and restores a run; does nothing where no file was asked for."""

    def __init__(self, path: str | os.PathLike[str] | None, settings: str) -> None:
        self.path = Path(path) if path is not None else None
        self.settings = hashlib.sha256(settings.encode()).hexdigest()
        self.last = time.monotonic()

    def restore(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> _State:
        if self.path is None or not self.path.exists():
            return _State()
        try:
            stored: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for damaged or hostile files
            raise CheckpointError(f"{self.path} cannot be read: {error}; delete it to start again") from error
        if stored.get("settings") != self.settings:
            raise CheckpointError(
                f"{self.path} is of a run with other settings, weights or samples; expected those of this run; delete "
                "it or name another file as checkpoint="
            )
        module.load_state_dict(stored["module"])
        optimizer.load_state_dict(stored["optimizer"])
        torch.set_rng_state(stored["random"])
        if "random_cuda" in stored:
            torch.cuda.set_rng_state(stored["random_cuda"], _device(module))
        return _State(stored["step"], stored["losses"])

    def save_when_due(self, module: nn.Module, optimizer: torch.optim.Optimizer, state: _State) -> None:
        if time.monotonic() - self.last >= SECONDS_BETWEEN_CHECKPOINTS:
            self.save(module, optimizer, state)

    def save(self, module: nn.Module, optimizer: torch.optim.Optimizer, state: _State) -> None:
        self.last = time.monotonic()
        if self.path is None:
            return
        content = {
            "settings": self.settings,
            "step": state.step,
            "losses": state.losses,
            "module": module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        if _device(module).type == "cuda":
            content["random_cuda"] = torch.cuda.get_rng_state(_device(module))
        with atomic_write(self.path) as temporary, temporary.open("wb") as file:
            torch.save(content, file)

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
