"""A run of training in a file, from which it goes on after an interruption; damage is found before anything is changed.

Version 3 of the form: what the run was started from by parts (see `run_identity` in this folder), its state with what
held-out samples said, and a digest of both, in a safetensors file. Version 1, of branchnet 0.1.0, is a file of
torch.save, and has one hash of the settings and no digest.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from branchnet.errors import BranchnetError, CheckpointError
from branchnet.training.resuming.checkpoint_file import read_nested, write_nested
from branchnet.training.resuming.run_identity import Identity
from branchnet.utils.files import atomic_write
from branchnet.utils.tensor_digest import checksum

VERSION = 3


@dataclass
class State:
    """How far a run is.

    Attributes:
        step: how many steps are done.
        losses: for each task its loss at each of them; NaN where it had no samples.
        measurements: what held-out samples said: `step`, `losses` and `metrics` of each measurement.
        rate: the learning rate that a range test has found; 0 where there was none.
        ended: training ended before all steps were done, as somebody wanted.
    """

    step: int = 0
    losses: dict[str, list[float]] = field(default_factory=dict)
    measurements: list[dict[str, Any]] = field(default_factory=list)
    rate: float = 0.0
    ended: bool = False


@dataclass(frozen=True)
class Run:
    """Which run a checkpoint must be of.

    Attributes:
        identity: hashes of what it was started from, by name.
        steps: how many it shall have; a checkpoint of fewer is extended.
        legacy: computes the one hash that version 1 keeps.
    """

    identity: Identity
    steps: int
    legacy: Callable[[], str]


class Checkpoint:
    """Saves and restores a run; does nothing where no file was asked for.

    Args:
        path: the file, or None.
        run: which run.
        seconds: time between two savings.
        beside: modules whose state is kept, too.
        every: steps between two savings, in place of the time.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        run: Run,
        seconds: float,
        beside: Sequence[nn.Module] = (),
        every: int | None = None,
    ) -> None:
        self.path = Path(path) if path is not None else None
        self.run, self.seconds, self.beside, self.every = run, seconds, beside, every
        self.last = time.monotonic()
        self._saved_step = -1

    def restore(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        of_first: Callable[[Callable[[], Any]], Any] = lambda read: read(),
    ) -> State:
        """Put module, optimizer and random state where the file has them; a new state where there is no file.

        Args:
            module: what is trained.
            optimizer: of its parameters.
            of_first: gives all processes what the first one reads, which alone may have the file.

        Returns:
            how far the run is.

        Raises:
            CheckpointError: a file that cannot be read, is damaged, or is of another run.
        """
        stored = None if self.path is None else of_first(self._read)
        if stored is None:
            return State()
        state = State(stored["step"], {task: list(values) for task, values in stored["losses"].items()})
        if "version" in stored:
            held_out = stored["held_out"]
            state.measurements, state.rate = list(held_out["measurements"]), held_out["rate"]
            state.ended = held_out["ended"] and stored["steps"] == self.run.steps
        modules = [module, *self.beside]
        before = [copy.deepcopy(one.state_dict()) for one in modules]
        try:
            _load(stored, modules, optimizer)
        except Exception as error:  # torch raises many kinds for tensors that do not fit
            for one, content in zip(modules, before, strict=True):
                one.load_state_dict(content)
            raise CheckpointError(f"{self.path} does not fit this run: {error}; delete it to start again") from error
        self._saved_step = state.step
        return state

    def save_when_due(self, module: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
        """Save where the last time is long enough ago; arguments as of `save`."""
        due = state.step % self.every == 0 if self.every else time.monotonic() - self.last >= self.seconds
        if due:
            self.save(module, optimizer, state)

    def save(self, module: nn.Module, optimizer: torch.optim.Optimizer, state: State, *, again: bool = False) -> None:
        """Write the run, in place of what the file had, unless it has this step already.

        Args:
            module: what is trained.
            optimizer: of its parameters.
            state: how far the run is.
            again: write it also where the file has this step.

        Raises:
            CheckpointError: the file cannot be written; what it had before is still there.
        """
        self.last = time.monotonic()
        if self.path is None or (state.step == self._saved_step and not again):
            return
        content = {
            "version": VERSION,
            "run": dict(self.run.identity),
            "steps": self.run.steps,
            "step": state.step,
            "losses": state.losses,
            "held_out": {"measurements": state.measurements, "rate": state.rate, "ended": state.ended},
            "module": module.state_dict(),
            "beside": [one.state_dict() for one in self.beside],
            "optimizer": optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        if _device(module).type == "cuda":
            content["random_cuda"] = torch.cuda.get_rng_state(_device(module))
        try:
            with atomic_write(self.path) as temporary:
                write_nested(content | {"digest": digest(content)}, temporary)
        except (
            OSError,
            RuntimeError,
            SafetensorError,
        ) as error:  # a full disk is told in many ways
            raise CheckpointError(f"{self.path} cannot be written: {error}") from error
        self._saved_step = state.step

    def _read(self) -> dict[str, Any] | None:
        assert self.path is not None
        if not self.path.exists():
            return None
        try:
            return self._checked(read_nested(self.path))
        except BranchnetError:
            raise
        except Exception as error:  # safetensors and torch raise many kinds for damaged or hostile files
            raise CheckpointError(f"{self.path} cannot be read: {error}; delete it to start again") from error

    def _checked(self, stored: Any) -> dict[str, Any]:
        if not isinstance(stored, dict) or "step" not in stored:
            raise CheckpointError(f"{self.path} is no checkpoint; expected one that branchnet wrote; name another file")
        if "version" in stored:
            self._check_identity(stored)
        elif stored.get("settings") != self.run.legacy():
            raise CheckpointError(f"{self.path} is of a run with other settings, weights or samples; {_REMEDY}")
        if problem := _malformed(stored):
            raise CheckpointError(f"{self.path} is damaged: {problem}; delete it to start again")
        return stored

    def _check_identity(self, stored: dict[str, Any]) -> None:
        if stored["version"] != VERSION:
            raise CheckpointError(
                f"{self.path} has the form {stored['version']!r}; expected {VERSION}: it may be of a later branchnet"
            )
        if stored.get("digest") != digest({name: value for name, value in stored.items() if name != "digest"}):
            raise CheckpointError(
                f"{self.path} is damaged: its content is not what was written; delete it to start again"
            )
        found, expected = stored.get("run"), self.run.identity
        if found != expected:
            known = found if isinstance(found, Mapping) else {}
            others = [name for name in map(str, {**expected, **known}) if known.get(name) != expected.get(name)]
            raise CheckpointError(f"{self.path} is of a run with other {_listed(others)}; {_REMEDY}")
        if not (isinstance(stored.get("steps"), int) and stored.get("step", 0) <= stored["steps"]):
            raise CheckpointError(f"{self.path} is damaged: its steps are {stored.get('steps')!r}")
        if stored["steps"] > self.run.steps:
            raise CheckpointError(
                f"{self.path} is of a run of {stored['steps']} steps; expected at most steps={self.run.steps}, as a "
                "run can be extended and not shortened"
            )


_REMEDY = "expected those of this run; delete it or name another file as checkpoint="


def digest(content: Any) -> str:
    """Hash nested dictionaries and lists of tensors and plain values.

    Args:
        content: of a checkpoint.

    Returns:
        Hexadecimal digits.
    """
    if isinstance(content, Tensor):
        return checksum([("", content.detach().cpu().contiguous())])
    if isinstance(content, Mapping):
        parts = [f"{name!r}: {digest(value)}" for name, value in content.items()]
    elif isinstance(content, list | tuple):
        parts = [digest(value) for value in content]
    else:
        return repr(content)
    return hashlib.sha256("\n".join([str(len(parts)), *parts]).encode()).hexdigest()


def _malformed(stored: Mapping[str, Any]) -> str:
    """What is wrong with the parts that the loop reads itself; nothing where they are as they should be."""
    if missing := [name for name in ("step", "losses", "module", "optimizer", "random") if name not in stored]:
        return f"it lacks {_listed(missing)}"
    step, losses = stored["step"], stored["losses"]
    if type(step) is not int or step < 0:
        return f"its step is {step!r}"
    if not isinstance(losses, Mapping) or not all(
        isinstance(task, str) and isinstance(values, list) and len(values) == step and all(map(_finite, values))
        for task, values in losses.items()
    ):
        return f"its losses are not {step} numbers for each task"
    return (
        "" if stored.get("version") is None or _is_held_out(stored.get("held_out")) else "its measurements are no such"
    )


def _is_held_out(found: Any) -> bool:
    """Whether this is what held-out samples said."""
    return (
        isinstance(found, Mapping)
        and type(found.get("rate")) is float
        and type(found.get("ended")) is bool
        and isinstance(found.get("measurements"), list)
        and all(
            isinstance(one, Mapping)
            and type(one.get("step")) is int
            and all(
                isinstance(one.get(name), Mapping) and all(type(value) is float for value in one[name].values())
                for name in ("losses", "metrics")
            )
            for one in found["measurements"]
        )
    )


def _load(stored: Mapping[str, Any], modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer) -> None:
    contents = [stored["module"], *(stored["beside"] if "version" in stored else ())]
    for one, content in zip(modules, contents, strict="version" in stored):
        one.load_state_dict(content)
    # Rates and other settings are this run's own.
    optimizer.load_state_dict({**optimizer.state_dict(), "state": stored["optimizer"]["state"]})
    _check_averages(optimizer)
    torch.set_rng_state(stored["random"])
    if "random_cuda" in stored:
        torch.cuda.set_rng_state(stored["random_cuda"], _device(modules[0]))


def _check_averages(optimizer: torch.optim.Optimizer) -> None:
    """`load_state_dict` takes averages of any form."""
    for parameter, averages in optimizer.state.items():
        if "exp_avg" not in averages:
            continue
        if averages["step"].shape != () or not averages["step"] >= 0:
            raise ValueError(f"the optimizer's step is {averages['step']}")
        for name in ("exp_avg", "exp_avg_sq"):
            form, expected = [(tuple(t.shape), t.dtype) for t in (averages[name], parameter)]
            if form != expected:
                raise ValueError(f"{name} is {form}, and not {expected}")


def _finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isinf(value)


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
