"""Random numbers of one's own for a while: the random state outside is as it was before.

Those of torch, NumPy's global generator and the module `random`, as data sets draw from any of the three.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

Item = TypeVar("Item")


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Start random numbers at `seed`, on the CPU and torch's on `device`; put their state back afterwards."""
    outside = _states_outside_torch()
    try:
        with torch.random.fork_rng(devices=[device] if device is not None and device.type == "cuda" else []):
            start_generators(seed, device)
            yield
    finally:
        _restore_outside_torch(outside)


def start_generators(seed: int, device: torch.device | None = None) -> None:
    """Start the generators of the CPU and of `device` at `seed`; `torch.manual_seed` does so on every device."""
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed([seed % 2**32, seed // 2**32 % 2**32])  # noqa: NPY002
    if device is not None and device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def mixed_seed(*numbers: int) -> int:
    """One seed of several numbers, no two lists of which give the same but by chance."""
    digest = hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


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
    own: list[Any] | None = None
    iterator: Iterator[Item] | None = None
    while True:
        outside = _states(used)
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
            own = _states(used)
        finally:
            _restore(used, outside)
        yield item


def _start(generators: Sequence[torch.Generator], seed: int) -> None:
    """The global one at `seed`, each other one where a number of the global one says, so that no two draw the same."""
    start_generators(seed)
    for generator in generators[1:]:
        generator.manual_seed(int(torch.randint(2**62, ())))


def _states(generators: Sequence[torch.Generator]) -> list[Any]:
    return [_states_outside_torch(), *(generator.get_state() for generator in generators)]


def _restore(generators: Sequence[torch.Generator], states: Sequence[Any]) -> None:
    _restore_outside_torch(states[0])
    for generator, state in zip(generators, states[1:], strict=True):
        generator.set_state(state)


def _states_outside_torch() -> tuple[Any, Any]:
    return random.getstate(), np.random.get_state()  # noqa: NPY002


def _restore_outside_torch(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
