"""Tesseract's files: a container of numbered parts, of which one is a network and two say what its outputs mean.

All numbers are little-endian. A matrix is int8 with one scale for each row, or float64; its last column is the bias.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LSTM, CHARACTERS, CODES = 17, 21, 22
"""The parts of the container that are read."""
INT8, FLOAT64 = 1, 128
"""Bits of a matrix's mode."""
OWN_LEARNING_RATES = 64
"""Bit of a layer's flags: rates for each child follow the children."""
GROUPS = ("Series", "Parallel", "RTLReversed", "TTBReversed", "XYTranspose")
MATRICES = {"LSTM": 4, "SummLSTM": 4, "Tanh": 1, "Softmax": 1}
NUMBERS = {"Input": 5, "Convolve": 2, "Maxpool": 2, "LSTM": 1, "SummLSTM": 1}
"""How many further numbers a layer has: of its input's shape, its half width and height, its scales, its inputs."""


@dataclass(frozen=True)
class Layer:
    """One layer, or several in a row or side by side.

    Attributes:
        kind: its name in the file.
        numbers: what `NUMBERS` says.
        matrices: (outputs, inputs + 1) each; of an LSTM those of new values, input gate, forget gate and output gate,
            whose inputs are the layer's, then its own outputs of the step before.
        children: the layers of a group.
    """

    kind: str
    numbers: tuple[int, ...]
    matrices: tuple[np.ndarray, ...]
    children: tuple[Layer, ...]


@dataclass(frozen=True)
class Recogniser:
    """A network for lines of text.

    Attributes:
        layers: the whole network.
        specification: the network in Tesseract's own words.
        blank: the output that stands for no character.
        codes: the outputs that a character has, one after another.
    """

    layers: Layer
    specification: str
    blank: int
    codes: dict[str, tuple[int, ...]]


@dataclass
class Reader:
    """Bytes, and how many of them have been read."""

    content: bytes
    position: int = 0

    def numbers(self, form: str) -> tuple[int, ...]:
        """Numbers as `struct` names them."""
        values = struct.unpack_from(f"<{form}", self.content, self.position)
        self.position += struct.calcsize(f"<{form}")
        return values

    def number(self, form: str) -> int:
        """One number."""
        return self.numbers(form)[0]

    def text(self) -> str:
        """A text after its length."""
        return bytes(self.numbers(f"{self.number('I')}B")).decode()

    def array(self, dtype: str, count: int) -> np.ndarray:
        """An array of `count` numbers."""
        values = np.frombuffer(self.content, dtype, count, self.position)
        self.position += values.nbytes
        return values


def read_recogniser(path: Path) -> Recogniser:
    """Read a `.traineddata` file."""
    parts = _parts(path.read_bytes())
    reader = Reader(parts[LSTM])
    layers = _layer(reader)
    specification = reader.text()
    *_, blank = reader.numbers("4i")
    return Recogniser(layers, specification, blank, _codes(parts[CHARACTERS].decode(), Reader(parts[CODES])))


def _parts(content: bytes) -> dict[int, bytes]:
    """The container's parts: it begins with where each starts, -1 for those that it lacks."""
    reader = Reader(content)
    starts = reader.numbers(f"{reader.number('i')}q")
    present = sorted((start, number) for number, start in enumerate(starts) if start >= 0)
    ends = [start for start, _ in present[1:]] + [len(content)]
    return {number: content[start:end] for (start, number), end in zip(present, ends, strict=True)}


def _layer(reader: Reader) -> Layer:
    reader.number("b")
    kind = reader.text()
    training, _, flags, _, _, _ = reader.numbers("bb4i")
    reader.text()
    if training or kind not in (*GROUPS, *MATRICES, *NUMBERS):
        raise ValueError(f"layer {kind!r}: expected a layer of a network that is ready for use")
    if kind in GROUPS:
        children = tuple(_layer(reader) for _ in range(reader.number("I")))
        if flags & OWN_LEARNING_RATES:
            reader.array("<f4", reader.number("I"))
        return Layer(kind, (), (), children)
    numbers = reader.numbers(f"{NUMBERS.get(kind, 0)}i")
    return Layer(kind, numbers, tuple(_matrix(reader) for _ in range(MATRICES.get(kind, 0))), ())


def _matrix(reader: Reader) -> np.ndarray:
    mode, rows, columns = reader.numbers("B2i")
    if not mode & FLOAT64:
        raise ValueError(f"a matrix of mode {mode}: expected the format of Tesseract 4 and 5")
    dtype = "<i1" if mode & INT8 else "<f8"
    reader.array(dtype, 1)  # what an empty place would hold
    values = reader.array(dtype, rows * columns).reshape(rows, columns)
    return values * reader.array("<f8", reader.number("I"))[:rows, None] if mode & INT8 else values


def _codes(characters: str, reader: Reader) -> dict[str, tuple[int, ...]]:
    """The codes by character; the first line of `characters` is how many there are, NULL is a space."""
    names = [line.split(" ")[0] for line in characters.splitlines()[1:]]
    codes = []
    for _ in range(reader.number("I")):
        _, length = reader.numbers("bi")
        codes.append(reader.numbers(f"{length}i"))
    return {" " if name == "NULL" else name: code for name, code in zip(names, codes, strict=True)}
