"""Files damaged at random, under a seed: bits flipped, bytes overwritten, cut off, repeated, swapped or put in."""

from __future__ import annotations

import random
from collections.abc import Iterator


def damaged(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` damaged copies of a file's content, each other than it."""
    chance = random.Random(seed)
    made = 0
    while made < count:
        copy = bytearray(content)
        for _ in range(chance.choice((1, 1, 1, 2, 5, 20))):
            _DAMAGES[chance.randrange(len(_DAMAGES))](copy, chance)
        if bytes(copy) != content:
            made += 1
            yield bytes(copy)


def _flip(content: bytearray, chance: random.Random) -> None:
    if content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def _overwrite(content: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(content) + 1)
    content[start : start + 4] = chance.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", chance.randbytes(4)))


def _cut(content: bytearray, chance: random.Random) -> None:
    del content[chance.randrange(len(content) + 1) :]


def _drop(content: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(content) + 1)
    del content[start : start + chance.randrange(1, 16)]


def _repeat(content: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(content) + 1)
    content[start:start] = content[start : start + chance.randrange(1, 64)]


def _digit(content: bytearray, chance: random.Random) -> None:
    places = [index for index, byte in enumerate(content) if chr(byte) in "0123456789[]{},:'\"-"]
    if places:
        content[chance.choice(places)] = chance.choice(b"0123456789[]{},:'\"-")


_DAMAGES = (_flip, _flip, _overwrite, _cut, _drop, _repeat, _digit)
