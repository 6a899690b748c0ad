"""Small networks for the tests, and hypothesis strategies that make random ones."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

CHANNELS = 4


class Block(nn.Module):
    """A residual block that adds and activates in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        out += x
        return self.relu(out)


class Pair(nn.Module):
    """Gives two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.right = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(x), self.right(x)


class Join(nn.Module):
    """Concatenates two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.mix(torch.cat([x, y], 1))


STEPS = ("conv", "norm", "relu", "relu_", "dropout", "block", "join", "pair", "again", "add_", "mul_", "pad", "sizes")


class RandomNetwork(nn.Module):
    """Runs a list of steps on an image, with access to all earlier results."""

    def __init__(self, steps: tuple[tuple[str, int], ...]) -> None:
        super().__init__()
        self.steps = steps
        self.body = nn.ModuleList(self._module(kind) for kind, _ in steps)
        self.last = nn.Linear(CHANNELS, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        size = x.shape[-2:]
        seen = [x]
        modules: list[nn.Module] = []
        for (kind, back), module in zip(self.steps, self.body, strict=True):
            other = seen[-1 - back % len(seen)]
            x = self._step(kind, module, x, other, modules, size)
            modules.append(module)
            seen.append(x)
        pooled = torch.nn.functional.dropout(x.mean((2, 3)), 0.2, self.training)
        return {"logits": self.last(pooled), "features": x}

    @staticmethod
    def _module(kind: str) -> nn.Module:
        makers = {
            "conv": lambda: nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            "norm": lambda: nn.BatchNorm2d(CHANNELS),
            "relu": lambda: nn.ReLU(),
            "relu_": lambda: nn.ReLU(inplace=True),
            "dropout": lambda: nn.Dropout(0.3),
            "block": Block,
            "join": Join,
            "pair": Pair,
        }
        return makers.get(kind, nn.Identity)()

    def _step(
        self, kind: str, module: nn.Module, x: Tensor, other: Tensor, before: list[nn.Module], size: torch.Size
    ) -> Tensor:
        if kind == "join":
            return module(x, other)
        if kind == "pair":
            left, right = module(x)
            return left * right
        if kind == "again":
            plain = [m for m in before if isinstance(m, nn.Conv2d | Block)]
            return plain[-1](x) if plain else module(x)
        if kind == "add_":
            x = module(x) + 0
            x += other
            return x
        if kind == "mul_":
            x = module(x) * 1
            x.mul_(0.5)
            return x
        if kind == "pad":
            return module(nn.functional.pad(x, (0, x.shape[-1] % 2))[..., : x.shape[-1]])
        if kind == "sizes":
            return nn.functional.interpolate(module(x), size=size)
        return module(x)


def random_networks() -> st.SearchStrategy[tuple[tuple[str, int], ...]]:
    return st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 5)), min_size=2, max_size=8).map(
        lambda steps: (("conv", 0), *steps)
    )
