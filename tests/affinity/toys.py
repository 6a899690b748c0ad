"""Small networks that are split by hand."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """One stage: a tensor in, a tensor out."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.inner(x),)


class Staged(nn.Module):
    """What a split network looks like to the affinity room."""

    def __init__(self, *stages: nn.Module, locations: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.head = nn.Identity()
        self.locations = locations or tuple(f"layer{d}" for d in range(len(stages)))


def small_cnn(seed: int, *, width: int = 6, dtype: torch.dtype = torch.float64) -> Staged:
    """Three stages on 3 x 8 x 8 images, with BatchNorm and dropout, in train mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        stages = [
            Block(nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())),
            Block(nn.Sequential(nn.Conv2d(width, 2 * width, 3, stride=2), nn.BatchNorm2d(2 * width), nn.Tanh())),
            Block(nn.Sequential(nn.Conv2d(2 * width, width, 3), nn.Dropout(0.5), nn.Sigmoid())),
        ]
    return Staged(*stages).to(dtype)


def images(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random images (count, 3, 8, 8)."""
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def features_at(network: Staged, probe: Tensor, location: int) -> Tensor:
    """Features (K, F) in eval mode, computed apart from the library."""
    network = copy.deepcopy(network).eval()
    cut = (probe,)
    with torch.no_grad():
        for stage in network.stages[: location + 1]:
            cut = stage(*cut)
    return cut[0].flatten(1)


class Given(nn.Module):
    """A stage that looks its features up: probe inputs are row numbers."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", features)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.table[x.long().flatten()],)


def given(features: Tensor) -> Staged:
    """A network of one stage with the given features (K, F); its probe is `rows(K)`."""
    return Staged(Given(features), locations=("only",))


def rows(count: int) -> Tensor:
    """The probe of `given` networks."""
    return torch.arange(count, dtype=torch.float64)[:, None]
