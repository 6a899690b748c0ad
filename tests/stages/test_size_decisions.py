"""Code that decides by sizes in every way that Python knows: another size gives the network's values, or is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from branchnet.errors import SplitError
from branchnet.stages import split
from tests.stages.test_sizes import image

Decision = Callable[[Tensor], Tensor]


class Deciding(nn.Module):
    """A convolution and what is decided of its result, as a module of its own."""

    def __init__(self, decide: Decision) -> None:
        super().__init__()
        self.conv, self.decide = nn.Conv2d(8, 8, 1), decide

    def forward(self, x: Tensor) -> Tensor:
        return self.decide(self.conv(x))


class Network(nn.Module):
    """Decides in its own code, or in that of a module."""

    def __init__(self, decide: Decision, inside: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)
        self.decide: Decision = Deciding(decide) if inside else decide

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.decide(torch.relu(self.a(x)))).mean((2, 3)))


def divisible(x: Tensor) -> Tensor:
    assert x.shape[2] % 32 == 0, "expected a height that 32 divides"
    return x * 2


def resized(x: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    return F.interpolate(x, size=(int(height * 0.5) + 1, max(7, width // 3)))


def padded(x: Tensor) -> Tensor:
    return F.pad(x, (0, divmod(x.shape[3], 8)[1]))


def hidden(x: Tensor) -> Tensor:
    try:
        return x[:, :, 32:] + 1 if x.shape[2] > 32 else x
    except Exception:
        return x


DECISIONS: dict[str, Decision] = {
    "wider": lambda x: x.flip(-1) * 2 if x.shape[-1] > 40 else x,
    "divisible": divisible,
    "cropped": lambda x: x[:, :, : min(x.shape[2], 16)],
    "resized": resized,
    "resized to 7": lambda x: F.interpolate(x, size=(int(math.sqrt(49)), 7)),
    "rounded up": lambda x: F.interpolate(x, size=(math.ceil(x.shape[2] / 3), math.floor(x.shape[3] * 0.3))),
    "rounded": lambda x: F.interpolate(x, size=(round(x.shape[2] / 3), x.shape[3])),
    "padded": padded,
    "hidden": hidden,
    "square": lambda x: x * 2 if x.shape[-1] == x.shape[-2] else x.flip(2),
    "one of": lambda x: x * 2 if x.shape[-1] in (32, 64) else x,
    "looked up": lambda x: x * {32: 2.0, 64: 3.0}.get(x.shape[2], 1.0),
    "as text": lambda x: x * len(str(tuple(x.shape))),
    "odd": lambda x: x * 2 if x.shape[2] % 2 else x,
    "several": lambda x: x - x.mean(0) if x.size(0) > 1 else x,
    "large": lambda x: x * 2 if x.numel() > 8 * 40 * 40 * 2 else x,
    "by length": lambda x: x / len(x),
    "by numpy": lambda x: x * float(np.prod(x.shape[2:])),
    "in twos": lambda x: torch.cat([rows.mean(0, keepdim=True) + rows for rows in x.split(2)]),
    "row by row": lambda x: torch.stack(torch.unbind(x, 0)),
    "numbered": lambda x: x * torch.arange(x.shape[-1]),
    "pooled": lambda x: F.avg_pool2d(x, (x.shape[2], x.shape[3])),
    "reshaped": lambda x: x.reshape(x.shape[0], 4, 2, *x.shape[2:]).transpose(1, 2).flatten(1, 2),
}
SIZES = [(2, 32, 32), (1, 32, 32), (3, 32, 48), (5, 64, 40), (2, 20, 41), (1, 32, 64), (2, 33, 64)]


def assert_every_size_is_right_or_refused(decide: Decision, inside: bool, example: Tensor) -> None:
    torch.manual_seed(0)
    network = Network(decide, inside).eval()
    staged = split(network, example)
    assert torch.allclose(staged(example), network(example), rtol=1e-5, atol=1e-6)
    for size in SIZES:
        x = image(*size)
        try:
            wanted = network(x)
        except (AssertionError, RuntimeError, ValueError):
            with pytest.raises((SplitError, AssertionError, RuntimeError, ValueError)):
                staged(x)
            continue
        try:
            found = staged(x)
        except SplitError as error:
            assert str(tuple(x.shape)) in str(error) and "the input has the shape" in str(error)
            assert "expected" in str(error)
        else:
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", DECISIONS)
def test_another_size_is_right_or_refused(kind: str) -> None:
    assert_every_size_is_right_or_refused(DECISIONS[kind], False, image(2, 32, 32))


@pytest.mark.slow
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("example", [(1, 32, 64), (2, 64, 48)])
@pytest.mark.parametrize("kind", DECISIONS)
def test_another_size_than_any_example_is_right_or_refused(
    kind: str, example: tuple[int, int, int], inside: bool
) -> None:
    assert_every_size_is_right_or_refused(DECISIONS[kind], inside, image(*example))
