"""Files of slovnet and navec: tar archives of arrays, vocabularies, and JSON that says which array is what."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Weights = dict[str, Tensor]
"""Arrays by the path of names that leads to them, such as `encoder.layers.0.conv.weight`."""


@dataclass(frozen=True)
class Model:
    """What a slovnet archive holds.

    Attributes:
        weights: the arrays, without those of the word embedding, which navec holds.
        vocabularies: the names that numbers stand for: `word`, `shape`, and `tag` or `rel`.
    """

    weights: Weights
    vocabularies: dict[str, list[str]]


def read_slovnet(path: Path) -> Model:
    """Read a `slovnet_*.tar`."""
    with tarfile.open(path) as archive:
        weights = {name: _array(archive, entry) for name, entry in _arrays(json.loads(_bytes(archive, "model.json")))}
        vocabularies = {
            Path(name).stem: gzip.decompress(_bytes(archive, name)).decode().splitlines()
            for name in archive.getnames()
            if name.startswith("vocabs/")
        }
    return Model(weights, vocabularies)


def read_navec(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read word vectors: `codes[q, indexes[word, q]]` is part q of a word's vector.

    The words are those of the networks' own vocabulary.
    """
    with tarfile.open(path) as archive:
        content = _bytes(archive, "pq.bin")
    words, _, parts, centroids = np.frombuffer(content, "<u4", 4).tolist()
    indexes = np.frombuffer(content, np.uint8, words * parts, 16).reshape(words, parts)
    codes = np.frombuffer(content, "<f4", offset=16 + words * parts).reshape(parts, centroids, -1)
    return indexes, codes


def _arrays(node: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of the JSON tree that stand for arrays in the archive."""
    if isinstance(node, dict) and "array" in node:
        yield name[1:], node
    elif isinstance(node, dict | list):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _arrays(child, f"{name}.{key}")


def _array(archive: tarfile.TarFile, entry: dict[str, Any]) -> Tensor:
    content = _bytes(archive, f"arrays/{entry['array']}.bin")
    return torch.from_numpy(np.frombuffer(content, entry["dtype"]).reshape(entry["shape"]).copy())


def _bytes(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    if member is None:
        raise ValueError(f"{name} is no file of the archive")
    return member.read()
