"""Images of lines of random words, out of Debian's word lists and fonts."""

from __future__ import annotations

import random
from collections.abc import Container
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from zoo_entries.networks.line_network import HEIGHT

WIDTH = 360
MARGIN = 6
SIZES = range(22, 28)
FONTS = ("Sans", "Serif")
TRIES = 50
STYLES = ("Regular", "Bold", "Italic")


def words_of(file: Path, known: Container[str]) -> list[str]:
    """The words of a list that have 2 to 12 small letters, all of them known, also as capitals."""
    words = set(file.read_text(encoding="utf-8").split())
    return sorted(
        word
        for word in words
        if word.isalpha() and word.islower() and 2 <= len(word) <= 12 and all(c in known for c in word + word.upper())
    )


def fonts_in(folder: Path) -> list[Path]:
    """Serif and sans-serif fonts in three styles."""
    return [folder / f"Liberation{font}-{style}.ttf" for font in FONTS for style in STYLES]


def draw_line(words: list[str], fonts: list[Path], chance: random.Random) -> tuple[Tensor, str]:
    """A line of random words, (1, HEIGHT, WIDTH) with ink at -1 and paper at 1, and what they are.

    Of many lines it is the one that fills the width best: where there is much paper, networks read what is not there.
    """
    font = ImageFont.truetype(chance.choice(fonts), chance.choice(SIZES))
    text = max((random_words(words, font, chance) for _ in range(TRIES)), key=font.getlength)
    image = Image.new("L", (WIDTH, HEIGHT), 255)
    place = (MARGIN, HEIGHT // 2 + chance.randint(-1, 1))
    ImageDraw.Draw(image).text(place, text, 0, font, anchor="lm")
    return torch.from_numpy(np.asarray(image) / np.float32(127.5) - 1).unsqueeze(0), text


def random_words(words: list[str], font: ImageFont.FreeTypeFont, chance: random.Random) -> str:
    """As many random words as fit, some with a capital letter."""
    text = ""
    while True:
        word = chance.choice(words)
        longer = f"{text} {word.capitalize() if chance.random() < 0.2 else word}".strip()
        if font.getlength(longer) > WIDTH - 2 * MARGIN:
            return text
        text = longer
