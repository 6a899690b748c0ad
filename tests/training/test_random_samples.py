"""What samples draw at random depends on the seed, the epoch and their number, from whichever generator it comes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

import branchnet
from branchnet.data.sample_seeds import fetched

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
SETTINGS: dict[str, Any] = {"steps": 11, "learning_rate": 1e-2, "batch_size": 4, "progress": False, "every": 3}


class Noisy(Dataset[Any]):
    """Samples with noise from three generators."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        noise = np.random.normal() + random.random() + float(torch.rand(()))  # noqa: NPY002
        return X[number] + 0.1 * noise, X[number].sum().reshape(1)


class Several(Noisy):
    """They are read several at once."""

    def __getitems__(self, numbers: list[int]) -> list[Any]:
        return [self[number] for number in numbers]


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.2), nn.Tanh(), nn.Linear(6, 1))


def weights(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


@settings(max_examples=20, deadline=None)
@given(numbers=st.permutations(range(6)), seed=st.integers(0, 2**62), cut=st.integers(1, 5))
def test_a_sample_is_the_same_in_every_batch_and_nothing_outside_changes(
    numbers: list[int], seed: int, cut: int
) -> None:
    outside = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    whole = fetched(Noisy(), list(range(6)), seed)
    parts = fetched(Subset(Noisy(), range(24)), numbers[:cut], seed) + fetched(Noisy(), numbers[cut:], seed)
    for number, (inputs, _) in zip(numbers, parts, strict=True):
        assert torch.equal(inputs, whole[number][0])
    assert random.getstate() == outside[0]
    assert np.random.get_state()[1].tolist() == outside[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), outside[2])
    assert torch.equal(fetched(Several(), [3, 1], seed)[0][0], whole[3][0])


@pytest.mark.parametrize("data", [Noisy(), Several(), DataLoader(Noisy(), 4, shuffle=True)])
@pytest.mark.parametrize("at", [3, 8])
def test_a_run_that_was_interrupted_ends_in_the_same_bits(data: Any, at: int, tmp_path: Path) -> None:
    def train(net: nn.Module, interrupted_at: int | None = None) -> None:
        def interrupt(event: Any) -> None:
            random.random()
            np.random.rand()  # noqa: NPY002
            if event.kind == "step" and event.step == interrupted_at:
                raise KeyboardInterrupt

        checkpoint = {"checkpoint": tmp_path / "run", "checkpoint_every": 1} if interrupted_at else {}
        branchnet.fit(net, data, nn.MSELoss(), accumulate=2, ema=0.9, callbacks=interrupt, **checkpoint, **SETTINGS)

    whole, killed = network(), network()
    train(whole)
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    with pytest.raises(KeyboardInterrupt):
        train(killed, at)
    resumed = network()
    train(resumed, 99)
    assert torch.equal(weights(resumed), weights(whole))


def test_augmentation_is_the_same_with_workers_and_without() -> None:
    pytest.importorskip("torchvision")
    from branchnet.data import Augmented, LabelForm

    class Images(Dataset[Any]):
        label_forms: ClassVar = {"loss": LabelForm("regression")}

        def __len__(self) -> int:
            return 8

        def __getitem__(self, number: int) -> Any:
            return torch.full((1, 2, 2), float(number)), {"loss": torch.tensor([float(number)])}

    def train(workers: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
        data = Augmented(Images(), brighten)
        loader = DataLoader(data, 4, shuffle=True, num_workers=workers)
        branchnet.fit(net, loader, nn.MSELoss(), keep="last", **SETTINGS | {"steps": 5})
        return weights(net)

    assert torch.equal(train(0), train(2))


def brighten(image: Any, places: Any, boxes: Any) -> Any:
    """A transform that draws from NumPy and `random`."""
    return image + np.random.normal() + random.random(), places, boxes  # noqa: NPY002
