"""Russian named entities, morphology and syntax: three networks of slovnet, on aphorisms.

`natasha/` holds the source archive of PyPI's `natasha`, unpacked, and `fortunes-ru/` Debian's package of that name. Of
the syntax network the second output, relations, depends on which governors the first one chooses. 98% of the words
are no named entity.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from zoo_entries.entry import ZooEntry
from zoo_entries.formats.slovnet_files import Model, read_navec, read_slovnet
from zoo_entries.inputs.russian_text import sentences, shape
from zoo_entries.networks.text_network import with_weights

TASKS = ("ner", "morph", "syntax")
MOST = 400
"""Sentences of the probe, and of what is held out."""


def load(data: Path) -> ZooEntry:
    """Read the networks and the text below `data`."""
    archives = data / "natasha" / "natasha" / "data"
    models = {task: read_slovnet(archives / "model" / f"slovnet_{task}_news_v1.tar") for task in TASKS}
    for name in ("word", "shape"):
        assert len({tuple(model.vocabularies[name]) for model in models.values()}) == 1, "inputs differ between tasks"
    vectors = read_navec(archives / "emb" / "navec_news_v1_1B_250K_300d_100q.tar")
    networks: dict[str, nn.Module] = {task: with_weights(model.weights) for task, model in models.items()}
    probe, held_out = chosen(data / "fortunes-ru" / "usr" / "share" / "games" / "fortunes" / "ru")
    return ZooEntry(
        name="natasha",
        networks=networks,
        probe=inputs_of(probe, models["ner"], vectors),
        held_out=inputs_of(held_out, models["ner"], vectors),
        kinds=dict.fromkeys(TASKS, "classification"),
        labels=None,
        source="PyPI natasha (slovnet, navec); sentences of Debian fortunes-ru",
        license="MIT (text: GPL-2)",
    )


def inputs_of(tokens: list[list[str]], model: Model, vectors: tuple[np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor]:
    """Word vectors (K, T, 300) and numbers of word shapes (K, T)."""
    indexes, codes = vectors
    words, shapes = ({name: i for i, name in enumerate(model.vocabularies[kind])} for kind in ("word", "shape"))
    numbers = np.array([[words.get(word.lower(), words["<unk>"]) for word in sentence] for sentence in tokens])
    parts = codes[np.arange(len(codes)), indexes[numbers]]
    return torch.from_numpy(parts.reshape(*numbers.shape, -1)), torch.tensor(
        [[shapes[shape(word)] for word in sentence] for sentence in tokens]
    )


def chosen(text: Path) -> tuple[list[list[str]], list[list[str]]]:
    """At most MOST sentences to fit on and to hold out, in a fixed random order."""
    probe = _mixed(sentences(text, held_out=False))
    held_out = [sentence for sentence in _mixed(sentences(text, held_out=True)) if sentence not in probe]
    return probe[:MOST], held_out[:MOST]


def _mixed(found: list[list[str]]) -> list[list[str]]:
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    return [found[i] for i in order.tolist()]
