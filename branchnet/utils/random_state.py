"""Random numbers of one's own for a while: the random state outside is as it was before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

Item = TypeVar("Item")


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Start torch's random numbers at `seed`, on the CPU and on `device`; put their state back afterwards."""
    with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
        start_generators(seed, device)
        yield


def start_generators(seed: int, device: torch.device | None = None) -> None:
    """Start the generators of the CPU and of `device` at `seed`; `torch.manual_seed` does so on every device."""
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def with_own_state(
    items: Iterable[Item], seed: int | None = None, generators: Sequence[torch.Generator] = ()
) -> Iterator[Item]:
    """Give `items`, drawn with random numbers of their own: what happens between two of them changes nothing in them.

    Args:
        items: what draws random numbers on the CPU as it is read.
        seed: where their random numbers start; None: where those outside are when the first item is read.
        generators: those that it draws from besides the global one; each is left as it was, too.

    Yields:
        The items.
    """
    used = [torch.default_generator, *generators]
    own: list[torch.Tensor] | None = None
    iterator: Iterator[Item] | None = None
    while True:
        outside = [generator.get_state() for generator in used]
        try:
            if own is not None:
                _restore(used, own)
            elif seed is not None:
                _start(used, seed)
            iterator = iter(items) if iterator is None else iterator
            try:
                item = next(iterator)
            except StopIteration:
                return
            own = [generator.get_state() for generator in used]
        finally:
            _restore(used, outside)
        yield item


def _start(generators: Sequence[torch.Generator], seed: int) -> None:
    """The global one at `seed`, each other one where a number of the global one says, so that no two draw the same."""
    start_generators(seed)
    for generator in generators[1:]:
        generator.manual_seed(int(torch.randint(2**62, ())))


def _restore(generators: Sequence[torch.Generator], states: Sequence[torch.Tensor]) -> None:
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
