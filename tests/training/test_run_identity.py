"""What counts as the same run: every part by itself, in this process and in another one."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from branchnet.data.samples import read_samples
from branchnet.training.resuming.code_hash import code_hash
from branchnet.training.resuming.run_identity import labels_hash, network_hash, samples_hash, spread, teachers_hash

X = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
FACTOR = 3.0


class Mode(Enum):
    MEAN = 1
    SUM = 2


class Weighted(nn.Module):
    def __init__(self, weight: float = 1.0, inner: Callable[..., Any] = F.mse_loss) -> None:
        super().__init__()
        self.weight, self.inner = weight, inner
        self.register_buffer("scale", torch.ones(2))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return self.weight * self.inner(output, target)  # type: ignore[no-any-return]

    def doubled(self, output: Tensor, target: Tensor) -> Tensor:
        return 2 * self(output, target)  # type: ignore[no-any-return]


class Changed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = Weighted()
        self.scale.scale[1] = 2  # type: ignore[operator]


def times(factor: float) -> Callable[..., Any]:
    return lambda output, target: factor * F.mse_loss(output, target)


def helper(value: Any) -> Any:
    return value.abs()


def other_helper(value: Tensor) -> Tensor:
    return value.square()


def with_helper(output: Tensor, target: Tensor) -> Any:
    return helper(output - target).mean()


LOSSES: dict[str, Callable[[], Any]] = {
    "library": lambda: F.mse_loss,
    "another of the library": lambda: F.l1_loss,
    "lambda": lambda: lambda output, target: F.mse_loss(output, target),
    "another constant": lambda: lambda output, target: 3 * F.mse_loss(output, target),
    "another name": lambda: lambda output, target: F.l1_loss(output, target),
    "a global": lambda: lambda output, target: FACTOR * F.mse_loss(output, target),
    "closure": lambda: times(1.0),
    "another closure": lambda: times(2.0),
    "partial": lambda: partial(F.mse_loss, reduction="sum"),
    "another partial": lambda: partial(F.mse_loss, reduction="mean"),
    "module of torch": lambda: nn.CrossEntropyLoss(),
    "its argument": lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
    "its tensor": lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0])),
    "its other tensor": lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])),
    "module": lambda: Weighted(),
    "its weight": lambda: Weighted(2.0),
    "its function": lambda: Weighted(inner=F.l1_loss),
    "its lambda": lambda: Weighted(inner=lambda a, b: (a - b).mean()),
    "its buffer": lambda: Changed().scale,
    "its method": lambda: Weighted().doubled,
    "with helper": lambda: with_helper,
    "enum": lambda: partial(helper, Mode.MEAN),
    "another enum": lambda: partial(helper, Mode.SUM),
    "dtype": lambda: partial(torch.Tensor.to, dtype=torch.float32),
    "another dtype": lambda: partial(torch.Tensor.to, dtype=torch.float64),
}


def test_losses_have_one_hash_exactly_where_they_are_the_same() -> None:
    hashes = {name: code_hash(make()) for name, make in LOSSES.items()}
    assert {name: code_hash(make()) for name, make in LOSSES.items()} == hashes
    assert len(set(hashes.values())) == len(hashes)


def test_a_function_that_a_loss_calls_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_hash(with_helper)
    monkeypatch.setitem(with_helper.__globals__, "helper", other_helper)
    assert code_hash(with_helper) != before
    monkeypatch.undo()
    assert code_hash(with_helper) == before


def test_where_a_loss_is_written_and_comments_do_not_count() -> None:
    source = "def loss(output, target):\n    return (output - target).abs().mean()\n"
    moved = "# elsewhere\n\n\ndef loss(output, target):\n    # absolute\n    return (output - target).abs().mean()\n"
    hashes = []
    for text in (source, moved, source.replace("abs", "square")):
        names: dict[str, Any] = {"__name__": "users_file"}
        exec(compile(text, f"{len(text)}.py", "exec"), names)
        hashes.append(code_hash(names["loss"]))
    assert hashes[0] == hashes[1] != hashes[2]


def test_objects_that_hold_each_other_have_a_hash() -> None:
    class Holder:
        def __init__(self) -> None:
            self.other: Any = None

    first, second = Holder(), Holder()
    first.other, second.other = second, first
    assert code_hash(first) == code_hash(second)


def test_another_process_finds_the_same_hashes(tmp_path: Path) -> None:
    script = tmp_path / "prints.py"
    script.write_text(
        textwrap.dedent(
            """
            import torch, torch.nn.functional as F
            from torch import nn
            from branchnet.data.samples import read_samples
            from branchnet.training.resuming.code_hash import code_hash
            from branchnet.training.resuming.run_identity import labels_hash, samples_hash

            class Loss(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.names = {"one", "two", "three", "four"}
                    self.options = {"a": [1, 2.5], "f": lambda x: x if x in {"p", "q", "r"} else -x}
                def forward(self, output, target):
                    return F.mse_loss(output, target)

            x = torch.arange(12.0).view(6, 2)
            print(code_hash(Loss()), samples_hash(read_samples(x)), labels_hash({"b": x, "a": x.long()}))
            """
        )
    )
    found = {
        subprocess.run([sys.executable, script], check=True, capture_output=True, text=True, cwd=Path.cwd()).stdout
        for _ in range(3)
    }
    assert len(found) == 1 and len(next(iter(found)).split()) == 3


def test_each_label_counts_and_so_does_the_task() -> None:
    labels = torch.randint(5, (500,), generator=torch.Generator().manual_seed(1))
    other = labels.clone()
    other[317] += 1
    hashes = [labels_hash({"a": labels}), labels_hash({"a": other}), labels_hash({"b": labels})]
    assert len(set(hashes)) == 3
    assert labels_hash({"a": labels.clone(), "b": other}) == labels_hash({"b": other, "a": labels})
    assert labels_hash({"a": labels.numpy()}) == hashes[0]


class Augmented(Dataset[Tensor]):
    """Adds noise, from torch's generator or from nowhere that a seed reaches."""

    def __init__(self, x: Tensor, *, seeded: bool) -> None:
        self.x, self.calls, self.seeded = x, 0, seeded

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, number: int) -> Tensor:
        self.calls += 1
        return self.x[number] + (torch.rand(self.x.shape[1]) if self.seeded else self.calls)


class Stream(IterableDataset[Tensor]):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __iter__(self) -> Any:
        return iter(self.x)


@pytest.mark.parametrize(
    "source",
    [
        lambda x: x,
        lambda x: TensorDataset(x),
        lambda x: list(x),
        lambda x: Augmented(x, seeded=True),
        Stream,
        lambda x: DataLoader(TensorDataset(x), batch_size=32),
        lambda x: DataLoader(TensorDataset(x), batch_size=500, shuffle=True),
    ],
)
def test_the_last_sample_counts_too_where_it_can_be_reached(source: Callable[[Tensor], Any]) -> None:
    changed = X.clone()
    changed[-1 if not isinstance(source(X), Stream | DataLoader) else 31] += 1
    first, again, other = (samples_hash(read_samples(source(x))) for x in (X, X.clone(), changed))
    assert first == again != other
    if not isinstance(source(X), Stream):  # which does not tell its length
        assert samples_hash(read_samples(source(X[:499]))) != first


def test_augmentation_that_no_seed_reaches_does_not_make_another_run() -> None:
    hashes = {samples_hash(read_samples(Augmented(x, seeded=False))) for x in (X, X + 1)}
    assert len(hashes) == 1
    assert samples_hash(read_samples(Augmented(X[:, :2], seeded=True))) not in hashes


def test_reading_leaves_random_numbers_alone() -> None:
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(X), batch_size=8, shuffle=True, generator=generator)
    states = generator.get_state(), torch.get_rng_state()
    samples_hash(read_samples(loader))
    assert torch.equal(generator.get_state(), states[0]) and torch.equal(torch.get_rng_state(), states[1])


def test_labels_that_are_read_along_count() -> None:
    pairs = [TensorDataset(X, labels) for labels in (torch.zeros(500), torch.ones(500))]
    hashes = [samples_hash(read_samples(pair, labels=True)) for pair in pairs]
    assert hashes[0] != hashes[1]
    assert samples_hash(read_samples(pairs[0])) == samples_hash(read_samples(pairs[1]))


def test_weights_of_networks_and_teachers_count() -> None:
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    assert network_hash(one) != network_hash(other) != network_hash(other, {"heads.0"})
    assert teachers_hash({"a": one, "b": other}) == teachers_hash({"b": other, "a": one})
    assert teachers_hash({"a": one, "b": other}) != teachers_hash({"a": other, "b": one})


@pytest.mark.parametrize(("count", "most"), [(1, 5), (5, 0), (33, 32), (1000, 10), (50, 10_000)])
def test_numbers_are_spread_from_the_first_to_the_last(count: int, most: int) -> None:
    numbers = spread(count, most).tolist()
    assert numbers[0] == 0 and numbers[-1] == count - 1
    assert len(set(numbers)) == len(numbers) == min(count, max(most, 32))
