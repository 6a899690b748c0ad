"""A family of random networks whose steps keep state, draw numbers, switch gradients off, write in place or decide.

Each step says why it may be refused or evaluated only; steps that say nothing must be traced in both modes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.stages.toys import CHANNELS, Block


class Step(nn.Module):
    """A convolution, and something done to what it gives or to the result of an earlier step."""

    reason = ""
    """Pattern of the reasons for which a network with this step may be refused or evaluated only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.act(self.conv(x), other)

    def act(self, x: Tensor, other: Tensor) -> Tensor:
        return torch.relu(x)


class Normalised(Step):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(CHANNELS)

    def act(self, x: Tensor, other: Tensor) -> Tensor:
        return torch.relu(self.norm(x))


class Added(Step):
    def act(self, x: Tensor, other: Tensor) -> Tensor:
        return x + F.adaptive_avg_pool2d(other, 1)


# Buffers that are read and updated.
class Counted(Step):
    """Counts its calls in either mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def act(self, x: Tensor, other: Tensor) -> Tensor:
        self.count += 1
        return x + 0.1 * self.count


class Averaged(Step):
    """Subtracts a running mean that training updates by copying."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(CHANNELS))

    def act(self, x: Tensor, other: Tensor) -> Tensor:
        if self.training:
            self.mean.copy_(0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3)))
        return x - self.mean[:, None, None]


class Assigned(Averaged):
    """The same by assignment."""

    def act(self, x: Tensor, other: Tensor) -> Tensor:
        if self.training:
            self.mean = self.mean.lerp(x.detach().mean((0, 2, 3)), 0.1)
        return x - self.mean[:, None, None]


class Sorted(Averaged):
    """Computes from the buffer alone."""

    def act(self, x: Tensor, other: Tensor) -> Tensor:
        directions = torch.cos(self.mean + torch.arange(CHANNELS))
        return x * (directions / directions.norm())[:, None, None]


class Spectral(Step):
    """Its weight is computed from buffers that training updates."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = parametrizations.spectral_norm(self.conv)


# Randomness in training.
class Dropped(Step):
    def act(self, x: Tensor, other: Tensor) -> Tensor:
        return F.dropout(x, 0.3, self.training)


class Noisy(Step):
    def act(self, x: Tensor, other: Tensor) -> Tensor:
        return x + torch.rand_like(x) if self.training else x


class NoisyChannels(Step):
    reason = r"random numbers|drawn once"

    def act(self, x: Tensor, other: Tensor) -> Tensor:
        return x * (1 + torch.rand(CHANNELS, 1, 1)) if self.training else x


class DroppedPath(Step):
    def act(self, x: Tensor, other: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.7)


class SkippedByPython(Step):
    reason = r"random numbers|drawn once|decide which layers run"

    def act(self, x: Tensor, other: Tensor) -> Tensor:
        return torch.tanh(x) if self.training and random.random() < 0.5 else x


class ScaledByNumpy(Step):
    reason = r"random numbers|drawn once"

    def act(self, x: Tensor, other: Tensor) -> Tensor:
        return x * float(np.random.uniform(0.5, 1.5)) if self.training else x  # noqa: NPY002


# Gradients that are switched off.
class WithoutGradient(Step):
    reason = r"gradient"

    def act(self, x: Tensor, other: Tensor) -> Tensor:
        with torch.no_grad():
            gate = torch.sigmoid(x)  # no factor or summand, which a BatchNorm behind it would take away again
        return x * gate


class Frozen(Step):
    reason = r"gradient"

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.training):
            return self.conv(x)


class Detached(Step):
    def act(self, x: Tensor, other: Tensor) -> Tensor:
        return x - x.detach().mean((2, 3), keepdim=True)


# Aliases that are written in place.
class ViewScaled(Step):
    def act(self, x: Tensor, other: Tensor) -> Tensor:
        x = x * 1
        view = x[:, : CHANNELS // 2]
        view.mul_(2)
        return x


class ViewAdded(Step):
    reason = r"gradient|outputs|buffer|in-place|inplace"

    def act(self, x: Tensor, other: Tensor) -> Tensor:
        x = x * 1
        if self.training:
            view = x[:, : CHANNELS // 2]
            view *= 2
        return x


class EarlierScaled(Step):
    """Writes to an earlier result, which later steps may read."""

    def act(self, x: Tensor, other: Tensor) -> Tensor:
        other.mul_(0.5)
        return x + F.adaptive_avg_pool2d(other, 1)


class Returned(Step):
    """Gives an earlier result itself, to be written to under another name."""

    def act(self, x: Tensor, other: Tensor) -> Tensor:
        other.add_(x.mean())
        return other


# Branches that depend on sizes.
class Wide(Step):
    def act(self, x: Tensor, other: Tensor) -> Tensor:
        return torch.tanh(x) if x.shape[-1] > 6 else x


class Several(Step):
    def act(self, x: Tensor, other: Tensor) -> Tensor:
        return x - x.mean(0) if x.shape[0] > 2 else x


class Cropped(Step):
    def act(self, x: Tensor, other: Tensor) -> Tensor:
        return x[:, :, : min(x.shape[2], 6)]


class Padded(Step):
    def act(self, x: Tensor, other: Tensor) -> Tensor:
        missing = (4 - x.shape[-1] % 4) % 4
        return F.pad(x, (0, missing)) if missing else x


class Resized(Step):
    def act(self, x: Tensor, other: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return F.interpolate(x, size=(max(height, 4), max(3, width // 2 * 2)), mode="nearest")


class RowByRow(Step):
    def act(self, x: Tensor, other: Tensor) -> Tensor:
        return torch.stack([torch.sin(row) for row in x])


# What cannot be traced, or only in evaluation mode.
class ByValues(Step):
    reason = r"values|control flow|data-dependent|GuardOnDataDependent"

    def act(self, x: Tensor, other: Tensor) -> Tensor:
        return -x if x.sum() > 0 else x


class Remembering(Step):
    reason = r"second call|buffer"

    def __init__(self) -> None:
        super().__init__()
        self.kept: Any = None

    def act(self, x: Tensor, other: Tensor) -> Tensor:
        out = x if self.kept is None else x * (1 + self.kept)
        self.kept = x.detach().mean()
        return out


class Annealed(Step):
    reason = r"second call|buffer"

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def act(self, x: Tensor, other: Tensor) -> Tensor:
        if self.training:
            self.scale *= 0.5
        return x * self.scale


class Projected(Step):
    """Normalises its own weight before it uses it, where gradients are off."""

    reason = r"in-place operation"

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        with torch.no_grad():
            self.conv.weight.div_(self.conv.weight.norm())
        return self.conv(x)


STEPS: tuple[Callable[[], nn.Module], ...] = (
    *(Step, Normalised, Added, Counted, Averaged, Assigned, Sorted, Spectral),
    *(Dropped, Noisy, NoisyChannels, DroppedPath, SkippedByPython, ScaledByNumpy),
    *(WithoutGradient, Frozen, Detached, ViewScaled, ViewAdded, EarlierScaled, Returned),
    *(Wide, Several, Cropped, Padded, Resized, RowByRow, ByValues, Remembering, Annealed, Projected),
)


class RestlessNetwork(nn.Module):
    """Runs random steps on an image; each is called as a module or runs as code of the network's own.

    A step takes the last result and an earlier one. A step with the number of an earlier one of its kind is the same
    module again.
    """

    def __init__(self, steps: tuple[tuple[type[Step], int, bool, bool], ...]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Linear(CHANNELS, 3)
        self.body = nn.ModuleList()
        self.calls = [(back, inline) for _, back, inline, _ in steps]
        made: dict[type[Step], Step] = {}
        for kind, _, _, again in steps:
            made[kind] = made[kind] if again and kind in made else kind()
            self.body.append(made[kind])
        self.block = Block()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        seen = [self.first(x)]
        for (back, inline), step in zip(self.calls, self.body, strict=True):
            other = seen[-1 - back % len(seen)]
            seen.append(step.forward(seen[-1], other) if inline else step(seen[-1], other))
        x = self.block(seen[-1])
        return {"logits": self.last(x.mean((2, 3))), "features": x}

    def reasons(self) -> str:
        """Pattern of the reasons for which it may be refused or evaluated only; empty where it may not."""
        return "|".join(dict.fromkeys(step.reason for step in self.body if step.reason))


def restless_networks() -> st.SearchStrategy[tuple[tuple[type[Step], int, bool, bool], ...]]:
    step = st.tuples(st.sampled_from(STEPS), st.integers(0, 3), st.booleans(), st.booleans())
    return st.lists(step, min_size=1, max_size=5).map(tuple)
