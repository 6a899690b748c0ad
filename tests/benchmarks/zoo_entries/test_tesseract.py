"""Recognisers of lines: Tesseract's file format, written here byte by byte, and the network against plain numpy."""

from __future__ import annotations

import random
import struct
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import branchnet

from .modules import zoo

Floats = NDArray[Any]
WIDTHS = (4, 3, 5, 6, 7)
CHARACTERS = ["NULL", "Joined", "a", "é"]
CODES: list[tuple[int, ...]] = [(0,), (3,), (1,), (2, 1)]


def text(value: str) -> bytes:
    return struct.pack("<I", len(value.encode())) + value.encode()


def header(kind: str, flags: int = 128) -> bytes:
    return b"\0" + text(kind) + struct.pack("<bb4i", 0, 0, flags, 1, 2, 3) + text("a name")


def group(kind: str, *children: bytes, rates: bool = False) -> bytes:
    learning_rates = struct.pack("<I2f", 2, 0.1, 0.2) if rates else b""
    return header(kind, 128 + 64 * rates) + struct.pack("<I", len(children)) + b"".join(children) + learning_rates


def matrix(values: Floats, *, int8: bool) -> bytes:
    """In bytes each row's largest number is 127, and the scale is that of one."""
    size = struct.pack("<ii", *values.shape)
    if not int8:
        return struct.pack("<B", 128 + 4) + size + struct.pack("<d", 0) + values.astype("<f8").tobytes()
    scales = np.abs(values).max(1) / 127
    rounded = np.round(values / scales[:, None]).astype(np.int8)
    stored = struct.pack("<B", 128 + 4 + 1) + size + b"\0" + rounded.tobytes()
    return stored + struct.pack("<I", len(scales)) + scales.astype("<f8").tobytes()


def lstm(kind: str, gates: list[Floats], *, int8: bool) -> bytes:
    return header(kind) + struct.pack("<i", gates[0].shape[1] - 1) + b"".join(matrix(g, int8=int8) for g in gates)


def made(seed: int, classes: int) -> dict[str, list[Floats]]:
    """Weights of each layer; those of an LSTM for new values, input, forget and output gates."""
    generator = np.random.default_rng(seed)
    channels, column, first, second, third = WIDTHS
    sizes = {"columns": (channels, column), "first": (column, first), "second": (first, second)}
    sizes |= {"third": (second, third)}
    layers = {name: [generator.normal(size=(o, i + o + 1)) for _ in range(4)] for name, (i, o) in sizes.items()}
    return layers | {"tanh": [generator.normal(size=(channels, 10))], "output": [generator.normal(size=(classes, 8))]}


def network_bytes(w: dict[str, list[Floats]], *, int8: bool) -> bytes:
    def full(kind: str, name: str) -> bytes:
        return header(kind) + matrix(w[name][0], int8=int8)

    around = header("Convolve") + struct.pack("<ii", 1, 1)
    return group(
        "Series",
        header("Input") + struct.pack("<5i", 1, 36, 0, 1, 0),
        group("Series", around, full("Tanh", "tanh")),
        header("Maxpool") + struct.pack("<ii", 3, 3),
        group("XYTranspose", lstm("SummLSTM", w["columns"], int8=int8)),
        lstm("LSTM", w["first"], int8=int8),
        group("RTLReversed", lstm("LSTM", w["second"], int8=int8)),
        lstm("LSTM", w["third"], int8=int8),
        full("Softmax", "output"),
        rates=True,
    )


def traineddata(network: bytes) -> bytes:
    """A container of 24 places, filled in another order than that of their numbers."""
    parts = {
        17: network + text("[1,36 and so on]") + struct.pack("<4i3f", 65, 10, 20, 3, 0.9, 0.1, 0.5),
        22: struct.pack("<I", len(CODES)) + b"".join(struct.pack(f"<bi{len(c)}i", 1, len(c), *c) for c in CODES),
        21: "\n".join(["4", *(f"{name} 5 0,255 Latin" for name in CHARACTERS)]).encode(),
        23: b"a version",
    }
    starts, position = [-1] * 24, 4 + 8 * 24
    for number, content in parts.items():
        starts[number] = position
        position += len(content)
    return struct.pack("<i24q", 24, *starts) + b"".join(parts.values())


def read(folder: Path, content: bytes) -> Any:
    (folder / "xyz.traineddata").write_bytes(content)
    return zoo("formats.traineddata").read_recogniser(folder / "xyz.traineddata")


def sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def run_lstm(x: Floats, gates: list[Floats]) -> Floats:
    state = out = np.zeros(len(gates[0]))
    outs = []
    for step in x:
        values, input_gate, forget_gate, output_gate = (g @ np.concatenate([step, out, [1]]) for g in gates)
        state = sigmoid(forget_gate) * state + sigmoid(input_gate) * np.tanh(values)
        out = sigmoid(output_gate) * np.tanh(state)
        outs.append(out)
    return np.array(outs)


def logits_of(image: Floats, w: dict[str, list[Floats]]) -> Floats:
    """(36, W) to (W / 3, classes); neighbourhoods are stacked column by column, as Tesseract does."""
    padded = np.pad(image, 1)
    stacked = [padded[y : y + 36, x : x + image.shape[1]] for x in range(3) for y in range(3)]
    hidden = np.tanh(np.stack([*stacked, np.ones_like(image)], 2) @ w["tanh"][0].T)
    pooled = hidden.reshape(12, 3, -1, 3, hidden.shape[2]).max((1, 3))
    x = np.array([run_lstm(pooled[:, column], w["columns"])[-1] for column in range(pooled.shape[1])])
    x = run_lstm(x, w["first"])
    x = run_lstm(x[::-1], w["second"])[::-1]
    x = run_lstm(x, w["third"])
    return np.concatenate([x, np.ones((len(x), 1))], 1) @ w["output"][0].T


@pytest.mark.parametrize("int8", [False, True])
def test_a_file_becomes_the_network_that_numpy_computes(tmp_path: Path, int8: bool) -> None:
    w = made(0, classes=4)
    found = read(tmp_path, traineddata(network_bytes(w, int8=int8)))
    assert found.specification == "[1,36 and so on]" and found.blank == 3
    assert found.codes == {" ": (0,), "Joined": (3,), "a": (1,), "é": (2, 1)}
    if int8:  # each row has 255 levels, and that is all that is lost
        w = {name: [rounded(m) for m in matrices] for name, matrices in w.items()}
    image = torch.rand(2, 1, 36, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    logits = zoo("networks.line_network").with_weights(found)(image).detach()
    assert logits.shape == (2, 4, 4)
    for x, y in zip(image, logits, strict=True):
        np.testing.assert_allclose(y.T, logits_of(x[0].double().numpy(), w), atol=1e-4)


def rounded(values: Floats) -> Floats:
    steps = np.abs(values).max(1, keepdims=True) / 127
    return np.round(values / steps) * steps


def test_networks_that_are_none_of_these_are_refused(tmp_path: Path) -> None:
    w = made(0, classes=4)
    shorter = group("Series", header("Input") + struct.pack("<5i", 1, 36, 0, 1, 0), lstm("LSTM", w["first"], int8=True))
    with pytest.raises(ValueError, match="expected"):
        zoo("networks.line_network").with_weights(read(tmp_path, traineddata(shorter)))
    with pytest.raises(ValueError, match="layer 'Relu': expected"):
        read(tmp_path, traineddata(header("Relu")))
    old = bytearray(header("Tanh") + matrix(w["tanh"][0], int8=False))
    old[len(header("Tanh"))] = 0
    with pytest.raises(ValueError, match="mode 0: expected the format of Tesseract 4 and 5"):
        read(tmp_path, traineddata(bytes(old)))


def test_all_but_the_outputs_can_be_shared(tmp_path: Path) -> None:
    networks = {}
    for classes in (4, 6):
        file = traineddata(network_bytes(made(classes, classes), int8=True))
        networks[str(classes)] = zoo("networks.line_network").with_weights(read(tmp_path, file))
    staged = branchnet.split_all(networks, torch.zeros(1, 1, 36, 30))
    assert staged["4"].locations[-4:] == ("columns", "first", "second", "third")
    assert {name for name, _ in staged["4"].head.named_parameters()} == {"output.weight", "output.bias"}


@cache
def distance(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """As it is defined."""
    if not first or not second:
        return len(first) + len(second)
    changed = distance(first[1:], second[1:]) + (first[0] != second[0])
    return min(distance(first[1:], second) + 1, distance(first, second[1:]) + 1, changed)


SEQUENCES = st.lists(st.integers(0, 3), max_size=7)


@given(SEQUENCES, SEQUENCES)
def test_the_edit_distance_is_the_fewest_changes(first: list[int], second: list[int]) -> None:
    assert zoo("tesseract").edit_distance(first, second) == distance(tuple(first), tuple(second))


def test_error_rates_count_characters_of_lines_with_labels() -> None:
    read_as = torch.tensor([[0, 0, 3, 0, 1], [2, 2, 3, 3, 3], [1, 1, 1, 1, 1]])  # 3 is no character: 001, 2, 1
    logits = torch.nn.functional.one_hot(read_as, 4).transpose(1, 2).float()
    labels = torch.tensor([[0, 0, 1, 1], [2, -1, -1, -1], [-1, -1, -1, -1]])
    assert zoo("tesseract").character_error_rate(logits, labels) == 1 / 5


def test_labels_are_codes_of_the_lines_of_ones_own_language(tmp_path: Path) -> None:
    recogniser = read(tmp_path, traineddata(network_bytes(made(0, 4), int8=True)))
    labels = zoo("tesseract").labels_of("xyz", [("xyz", "a a"), ("other", "a"), ("xyz", "éé")], recogniser)
    assert labels.tolist() == [[1, 0, 1, -1], [-1, -1, -1, -1], [2, 1, 2, 1]]


def test_words_have_known_small_letters(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("ab\nba\nab\nAb\nb\nit's\nabc\nabababababababab\nß\n", encoding="utf-8")
    assert zoo("inputs.text_lines").words_of(tmp_path / "words", set("abABßS")) == ["ab", "ba"]


def test_lines_are_full_black_on_white_and_within_the_image() -> None:
    fonts = [Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"]
    lines = zoo("inputs.text_lines")
    for seed in range(5):
        image, text = lines.draw_line(["un", "mot", "parmi", "autres"], fonts, random.Random(seed))
        assert image.shape == (1, 36, 360) and image.dtype == torch.float32
        assert image.min() == -1 and image.max() == 1
        assert {word.lower() for word in text.split()} <= {"un", "mot", "parmi", "autres"}
        columns = (image[0] < 0).any(0).nonzero()
        assert columns[0] >= 5 and 330 <= columns[-1] <= 355
        assert not (image[0, [0, -1]] < 0).any()
