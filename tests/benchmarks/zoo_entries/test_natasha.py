# ruff: noqa: RUF001  (Cyrillic)
"""Russian networks: the archives of slovnet and navec, the networks against plain numpy, and what they see of words."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import branchnet

from .modules import zoo

Floats = NDArray[Any]
SHAPES, SHAPE_WIDTH, TAGS, WIDTH, RELATIONS = 5, 4, 3, 6, 7


def archive(path: Path, content: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, stored in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(stored)
            tar.addfile(info, io.BytesIO(stored))
    return path


def test_arrays_and_vocabularies_of_slovnet_have_their_names(tmp_path: Path) -> None:
    first, second = np.array([[1.5, 2], [3, 4]], np.float32), np.array([7, 8], np.uint8)
    model = {
        "emb": {"word": {"id": "x", "codes": {"shape": [9, 9], "dtype": "float32"}}},
        "layers": [{"relu": {}}, {"conv": {"bias": {"shape": [2], "dtype": "uint8", "array": 1}}}],
        "proj": {"shape": [2, 2], "dtype": "float32", "array": 0},
    }
    content = {
        "meta.json": b"{}",
        "model.json": json.dumps(model).encode(),
        "arrays/0.bin": first.tobytes(),
        "arrays/1.bin": second.tobytes(),
        "vocabs/tag.gz": gzip.compress("<pad>\nдом".encode()),
    }
    found = zoo("formats.slovnet_files").read_slovnet(archive(tmp_path / "a.tar", content))
    assert {name: values.tolist() for name, values in found.weights.items()} == {
        "layers.1.conv.bias": [7, 8],
        "proj": [[1.5, 2], [3, 4]],
    }
    assert found.vocabularies == {"tag": ["<pad>", "дом"]}


def test_a_word_vector_of_navec_is_put_together_from_parts(tmp_path: Path) -> None:
    indexes = np.array([[0, 1], [2, 0], [1, 1]], np.uint8)
    codes = np.arange(2 * 3 * 2, dtype=np.float32).reshape(2, 3, 2)
    stored = np.array([3, 4, 2, 3], np.uint32).tobytes() + indexes.tobytes() + codes.tobytes()
    vectors = zoo("formats.slovnet_files").read_navec(archive(tmp_path / "a.tar", {"pq.bin": stored}))
    np.testing.assert_array_equal(vectors[0], indexes)
    np.testing.assert_array_equal(vectors[1], codes)

    vocabularies = {"word": ["дом", "кот", "<unk>"], "shape": ["<pad>", "RU_xx", "RU_Xx"]}
    model = zoo("formats.slovnet_files").Model({}, vocabularies)
    words, shapes = zoo("natasha").inputs_of([["Кот", "лес"]], model, vectors)
    assert words.tolist() == [[[4, 5, 6, 7], [2, 3, 8, 9]]]
    assert shapes.tolist() == [[2, 1]]


def made_weights(seed: int, *, syntax: bool) -> dict[str, torch.Tensor]:
    """With the names of the published archives, which store linear layers as (inputs, outputs)."""
    shapes: dict[str, tuple[int, ...]] = {"emb.shape.weight": (SHAPES, SHAPE_WIDTH)}
    widths = (300 + SHAPE_WIDTH, 256, 128, 64)
    for i in range(3):
        shapes[f"encoder.layers.{i}.conv.weight"] = (widths[i + 1], widths[i], 3)
        for name in ("conv.bias", "norm.weight", "norm.bias", "norm.mean", "norm.std"):
            shapes[f"encoder.layers.{i}.{name}"] = (widths[i + 1],)
    if syntax:
        for part, relations in (("head", 1), ("rel", RELATIONS)):
            for name in ("head", "tail"):
                shapes |= {f"{part}.{name}.proj.weight": (64, WIDTH), f"{part}.{name}.proj.bias": (WIDTH,)}
            shapes |= {f"{part}.root": (64,), f"{part}.kernel": (WIDTH, relations * WIDTH)}
    else:
        shapes |= {"head.proj.weight": (64, TAGS), "head.proj.bias": (TAGS,), "head.crf.transitions": (TAGS, TAGS)}
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, values in weights.items():
        if name.endswith("conv.weight"):
            weights[name] = values / 30
        elif name.endswith("std"):
            weights[name] = values.abs() + 0.5
    return weights


def features(words: Floats, shapes: NDArray[np.int64], w: dict[str, Floats]) -> Floats:
    """(T, 300) and (T,) to (T, 64)."""
    x = np.concatenate([words, w["emb.shape.weight"][shapes]], 1)
    for i in range(3):
        name = f"encoder.layers.{i}"
        padded = np.pad(x, [(1, 1), (0, 0)])
        windows = np.stack([padded[t : t + 3] for t in range(len(x))])
        x = np.einsum("tkc,ock->to", windows, w[f"{name}.conv.weight"]) + w[f"{name}.conv.bias"]
        x = (np.maximum(x, 0) - w[f"{name}.norm.mean"]) / w[f"{name}.norm.std"]
        x = x * w[f"{name}.norm.weight"] + w[f"{name}.norm.bias"]
    return x


def compared(x: Floats, w: dict[str, Floats], name: str) -> Floats:
    return np.maximum(x @ w[f"{name}.proj.weight"] + w[f"{name}.proj.bias"], 0)


@pytest.fixture(scope="module")
def sentences() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 9, 300, generator=generator), torch.randint(SHAPES, (2, 9), generator=generator)


def test_scores_of_tags_are_those_of_numpy(sentences: tuple[torch.Tensor, torch.Tensor]) -> None:
    weights = made_weights(0, syntax=False)
    w = {name: values.double().numpy() for name, values in weights.items()}
    scores = zoo("networks.text_network").with_weights(weights)(*sentences)
    for words, shapes, found in zip(*sentences, scores.detach(), strict=True):
        expected = features(words.numpy(), shapes.numpy(), w) @ w["head.proj.weight"] + w["head.proj.bias"]
        np.testing.assert_allclose(found.T, expected, atol=1e-4)


def test_scores_of_governors_and_relations_are_those_of_numpy(sentences: tuple[torch.Tensor, torch.Tensor]) -> None:
    weights = made_weights(1, syntax=True)
    w = {name: values.double().numpy() for name, values in weights.items()}
    governors, relations = zoo("networks.text_network").with_weights(weights)(*sentences)
    assert governors.shape == (2, 10, 9) and relations.shape == (2, RELATIONS, 9)
    for words, shapes, heads, rels in zip(*sentences, governors.detach(), relations.detach(), strict=True):
        x = features(words.numpy(), shapes.numpy(), w)
        both = np.concatenate([w["head.root"][None], x])
        for t in range(9):
            governed = compared(both[t + 1], w, "head.head") @ w["head.kernel"]
            np.testing.assert_allclose(heads[:, t], compared(both, w, "head.tail") @ governed, rtol=1e-4, atol=1e-3)
            chosen = int(heads[:, t].argmax())
            governor = w["rel.root"] if chosen == 0 else x[chosen - 1]
            kernel = w["rel.kernel"].reshape(WIDTH, RELATIONS, WIDTH)
            of_each = np.einsum("h,hrt->rt", compared(governor, w, "rel.head"), kernel)
            expected = of_each @ compared(x[t], w, "rel.tail")
            np.testing.assert_allclose(rels[:, t], expected, rtol=1e-4, atol=1e-3)


def test_the_encoder_can_be_shared(sentences: tuple[torch.Tensor, torch.Tensor]) -> None:
    networks = {
        str(syntax): zoo("networks.text_network").with_weights(made_weights(2, syntax=syntax))
        for syntax in (False, True)
    }
    staged = branchnet.split_all(networks, sentences)
    assert staged["False"].locations[-1] == "encoder"
    assert {name for name, _ in staged["False"].head.named_parameters()} == {"head.proj.weight", "head.proj.bias"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("Я", "RU_X"),
        ("и", "RU_x"),
        ("США", "RU_XX"),
        ("ёлка", "RU_xx"),
        ("Москва", "RU_Xx"),
        ("Любовь-это", "RU_Xx"),
        ("Санкт-Петербург", "RU_Xx-Xx"),
        ("СИЗО-6", "RU_XX"),
        ("МиГ", "RU_OTHER"),
        ("iPhone", "EN_OTHER"),
        ("2011-2020", "NUM"),
        (",", "PUNCT_,"),
        ("...", "PUNCT_OTHER"),
        ("€", "OTHER"),
    ],
)
def test_shapes_of_words_are_those_of_slovnet(word: str, expected: str) -> None:
    """Expected: what slovnet 0.6.0's `word_shape` gives."""
    assert zoo("inputs.russian_text").shape(word) == expected


def test_sentences_of_every_other_file_are_held_out(tmp_path: Path) -> None:
    sentence = " ".join(["слово"] * 14)  # with two more tokens each has the length that is asked for
    (tmp_path / "a").write_text(f"Первое {sentence}! И нет.\n\t\t-- Автор\n%\nКороткое.\n", encoding="utf-8")
    (tmp_path / "a.dat").write_bytes(b"\xff\xfe")
    (tmp_path / "b").write_text(f"А Второе {sentence}\n%\nВторое {sentence}.\n", encoding="utf-8")
    (tmp_path / "c.u8").symlink_to(tmp_path / "a")
    text = zoo("inputs.russian_text")
    assert text.sentences(tmp_path, held_out=False) == [["Первое", *["слово"] * 14, "!"]]
    assert [found[0] for found in text.sentences(tmp_path, held_out=True)] == ["А", "Второе"]
