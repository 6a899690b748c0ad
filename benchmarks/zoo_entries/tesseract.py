"""Four languages' recognisers of Tesseract, on images of lines of words.

`tesseract-ocr-eng/` and so on, the word lists `wamerican/` and so on, and `fonts-liberation/` hold the Debian packages
of these names. Only languages whose network has the same widths fit together. A line has a label for its own language
alone, and for others -1 everywhere. Each network misreads 1.1 to 1.4% of the characters of its held-out lines.
"""

from __future__ import annotations

import random
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo_entries.entry import ZooEntry
from zoo_entries.formats.traineddata import Recogniser, read_recogniser
from zoo_entries.inputs.text_lines import draw_line, fonts_in, words_of
from zoo_entries.networks.line_network import with_weights

WORDS = {
    "eng": "wamerican/usr/share/dict/american-english",
    "spa": "wspanish/usr/share/dict/spanish",
    "por": "wportuguese/usr/share/dict/portuguese",
    "nld": "wdutch/usr/share/dict/dutch",
}
LINES = 75
"""Of each language in the probe; as many are held out."""


def load(data: Path) -> ZooEntry:
    """Read the networks below `data` and draw the lines."""
    recognisers = {task: read_recogniser(traineddata(data, task)) for task in WORDS}
    networks: dict[str, nn.Module] = {task: with_weights(recogniser) for task, recogniser in recognisers.items()}
    probe, _ = draw(data, recognisers, seed=0)
    held_out, texts = draw(data, recognisers, seed=1)
    return ZooEntry(
        name="tesseract",
        networks=networks,
        probe=probe,
        held_out=held_out,
        kinds=dict.fromkeys(WORDS, "classification"),
        labels={task: labels_of(task, texts, recogniser) for task, recogniser in recognisers.items()},
        source="Debian tesseract-ocr-*; words of its word lists in its fonts-liberation",
        license="Apache-2.0",
        scores=dict.fromkeys(WORDS, ("characters wrong", character_error_rate)),
    )


def traineddata(data: Path, task: str) -> Path:
    (file,) = (data / f"tesseract-ocr-{task}").rglob(f"{task}.traineddata")
    return file


def draw(data: Path, recognisers: dict[str, Recogniser], seed: int) -> tuple[Tensor, list[tuple[str, str]]]:
    """Images (K, 1, 36, 360), and the language and text of each."""
    chance = random.Random(seed)
    fonts = fonts_in(data / "fonts-liberation" / "usr" / "share" / "fonts" / "truetype" / "liberation")
    lines = []
    for task, file in WORDS.items():
        words = words_of(data / file, recognisers[task].codes)
        lines += [(task, *draw_line(words, fonts, chance)) for _ in range(LINES)]
    chance.shuffle(lines)
    return torch.stack([image for _, image, _ in lines]), [(task, text) for task, _, text in lines]


def labels_of(task: str, texts: list[tuple[str, str]], recogniser: Recogniser) -> Tensor:
    """Classes of the characters, int64 (K, longest), filled up with -1."""
    classes = [
        [code for character in text for code in recogniser.codes[character]] if language == task else []
        for language, text in texts
    ]
    longest = max(map(len, classes))
    return torch.tensor([line + [-1] * (longest - len(line)) for line in classes])


def character_error_rate(logits: Tensor, labels: Tensor) -> float:
    """How many characters must be changed, added or removed, as a share of those of the lines that have labels.

    Args:
        logits: (K, classes, T); the last class is that of no character.
        labels: (K, longest), filled up with -1.
    """
    wrong = total = 0
    for line, wanted in zip(logits.argmax(1).tolist(), labels.tolist(), strict=True):
        if characters := [label for label in wanted if label >= 0]:
            found = [label for label, _ in groupby(line) if label != logits.shape[1] - 1]
            wrong += edit_distance(found, characters)
            total += len(characters)
    return wrong / total


def edit_distance(first: list[int], second: list[int]) -> int:
    """The fewest changes, additions and removals that make one the other."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        above, row = row, [i]
        for j, b in enumerate(second, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (a != b)))
    return row[-1]
