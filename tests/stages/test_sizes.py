"""Other sizes than the example's give the network's values, or an error that names the size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from branchnet.errors import SplitError
from branchnet.stages import split


class Centred(nn.Module):
    """Does something only in batches of more than one."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2, self.l3, self.l4 = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.l1(x)
        if h.shape[0] > 1:
            h = h - h.mean(0)
        return self.l4(self.l3(torch.relu(self.l2(h))))


class Rows(Centred):
    """One row after the other, in a loop."""

    def forward(self, x: Tensor) -> Tensor:
        return self.l4(self.l3(torch.stack([self.l2(torch.relu(self.l1(row))) for row in x])))


class Steps(nn.Module):
    """A recurrent cell in a loop over the time steps."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.last = nn.Embedding(20, 8), nn.LSTMCell(8, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.embed(tokens)
        hidden = embedded.new_zeros(len(tokens), 8)
        cell = hidden
        for step in range(tokens.shape[1]):
            hidden, cell = self.cell(embedded[:, step], (hidden, cell))
        return self.last(hidden)


class Padded(nn.Module):
    """Pads to a multiple of eight where that is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        missing = (8 - h.shape[-1] % 8) % 8
        if missing:
            h = nn.functional.pad(h, (0, missing))
        return self.c(self.b(h).mean((2, 3)))


class Halved(nn.Module):
    """Goes another way with long inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        h = h[..., ::2] if h.shape[-1] > 24 else h
        return self.c(self.b(h).mean((2, 3)))


def rows(count: int) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(count))


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(0, 20, (batch, length), generator=torch.Generator().manual_seed(length))


def image(batch: int, height: int, width: int) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(width))


CASES: list[tuple[Callable[[], nn.Module], Tensor, list[Tensor]]] = [
    (Centred, rows(1), [rows(1), rows(2), rows(5)]),
    (Centred, rows(4), [rows(1), rows(2), rows(7)]),
    (Rows, rows(4), [rows(1), rows(3), rows(4), rows(7)]),
    (Steps, tokens(4, 5), [tokens(4, 5), tokens(4, 9), tokens(4, 1), tokens(2, 5)]),
    (Padded, image(2, 16, 16), [image(2, 16, 16), image(2, 16, 20), image(1, 8, 24), image(2, 8, 1)]),
    (Padded, image(2, 16, 20), [image(2, 16, 16), image(2, 16, 20), image(1, 8, 28)]),
    (Halved, image(2, 16, 16), [image(3, 8, 24), image(2, 16, 25), image(2, 16, 32), image(1, 16, 8)]),
    (Halved, image(2, 16, 32), [image(3, 8, 24), image(2, 16, 25), image(2, 16, 32), image(1, 16, 8)]),
]


@pytest.mark.parametrize(("make", "example", "others"), CASES)
def test_other_sizes_are_right_or_refused(make: Callable[[], nn.Module], example: Tensor, others: list[Tensor]) -> None:
    torch.manual_seed(0)
    network = make().eval()
    staged = split(network, example)
    torch.testing.assert_close(staged(example), network(example), rtol=1e-5, atol=1e-6)
    for other in others:
        assert_right_or_refused(network, staged, other)


def assert_right_or_refused(network: nn.Module, staged: nn.Module, other: Tensor) -> None:
    try:
        found = staged(other)
    except SplitError as error:
        assert str(tuple(other.shape)) in str(error)
        assert "expected" in str(error)
    else:
        torch.testing.assert_close(found, network(other), rtol=1e-5, atol=1e-6)


class TwoInputs(Centred):
    """Adds two inputs of one length, or one twice as long."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.twice = twice

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        y = torch.stack([*y.unbind(-1)], -1)  # torch.fx cannot iterate over a tensor
        other = self.l2(y)
        return self.l4(self.l3(self.l1(x) + (other.unflatten(0, (-1, 2)).mean(1) if self.twice else other)))


@pytest.mark.parametrize("twice", [False, True])
def test_lengths_that_depend_on_each_other_are_free_together(twice: bool) -> None:
    network = TwoInputs(twice).eval()
    staged = split(network, (rows(4), rows(8 if twice else 4)))
    x, y = rows(6), rows(12 if twice else 6)
    try:
        torch.testing.assert_close(staged(x, y), network(x, y), rtol=1e-5, atol=1e-6)
    except SplitError as error:
        assert "expected" in str(error)
    with pytest.raises((SplitError, RuntimeError)):
        staged(x, rows(5))


@pytest.mark.parametrize(
    ("make", "example", "other"),
    [(Halved, image(2, 16, 16), image(3, 8, 24)), (Padded, image(2, 16, 16), image(4, 8, 24))],
)
def test_sizes_for_which_the_code_decides_alike_are_free(
    make: Callable[[], nn.Module], example: Tensor, other: Tensor
) -> None:
    network = make().eval()
    torch.testing.assert_close(split(network, example)(other), network(other), rtol=1e-5, atol=1e-6)


def test_one_text_is_taken_where_two_were_the_example_and_mixed_batches_are_not() -> None:
    """The mask is read at each text's number: a batch of one mask fits one text alone."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=50
    )
    network = transformers.BertForSequenceClassification(config).eval()

    def texts(count: int, length: int) -> dict[str, torch.Tensor]:
        mask = torch.ones(count, length, dtype=torch.long)
        mask[0, length // 2 :] = 0
        return {"input_ids": torch.randint(0, 50, (count, length)), "attention_mask": mask}

    staged = split(network, texts(2, 7))
    for count in (1, 2, 5):
        given = texts(count, 7)
        torch.testing.assert_close(staged(**given).logits, network(**given).logits)
    mixed = texts(3, 7) | {"attention_mask": torch.ones(1, 7, dtype=torch.long)}
    with pytest.raises(SplitError, match="more than 1 in dimension 0, or 1 in all inputs"):
        staged(**mixed)
