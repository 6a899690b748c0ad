# ruff: noqa: RUF001  (Cyrillic)
"""Russian sentences of one length out of Debian's `fortunes-ru`, as the numbers that slovnet gives words."""

from __future__ import annotations

import re
from pathlib import Path

LENGTH = 16
"""So many words and marks has each sentence: of 2 to 40, one with many sentences and room for syntax."""

TOKEN = re.compile(r"\w+(?:-\w+)*|\.{2,}|[^\w\s]")
END_OF_SENTENCE = re.compile(r"(?<=[.!?…])\s+(?=[А-ЯЁ«\"—-])")
AUTHOR = re.compile(r"\n\s+--.*", re.DOTALL)
MARKS = "!#$%&()[]\\/*+,.:;<=>?@^_{|}~-‐−‒⁃–—―`\"'«»„“ʼʻ”№…"


def sentences(folder: Path, *, held_out: bool) -> list[list[str]]:
    """Different sentences of LENGTH tokens; those of every other file are held out."""
    files = sorted(path for path in folder.iterdir() if path.suffix != ".dat" and not path.is_symlink())
    quotes = "\n%\n".join(path.read_text(encoding="utf-8") for path in files[held_out::2]).split("\n%\n")
    found: dict[str, list[str]] = {}
    for quote in quotes:
        for sentence in END_OF_SENTENCE.split(" ".join(AUTHOR.sub("", quote).split())):
            tokens = TOKEN.findall(sentence)
            if len(tokens) == LENGTH:
                found[sentence] = tokens
    return list(found.values())


def shape(word: str) -> str:
    """What slovnet sees of a word besides its letters: alphabet and capitals, or which mark it is."""
    if re.match("[а-яё]", word, re.IGNORECASE):
        return f"RU_{outline(word)}"
    if re.match("[a-z]", word, re.IGNORECASE):
        return f"EN_{outline(word)}"
    if re.match(r"[+-]?\d", word):
        return "NUM"
    if word[0] in MARKS:
        return f"PUNCT_{word if len(word) == 1 else 'OTHER'}"
    return "OTHER"


def outline(word: str) -> str:
    """Where capitals are."""
    if len(word) == 1:
        return "X" if word.isupper() else "x"
    if word.isupper():
        return "XX"
    if word.islower():
        return "xx"
    if is_title(word):
        return "Xx"
    parts = word.split("-", 1)
    return "Xx-Xx" if len(parts) == 2 and all(map(is_title, parts)) else "OTHER"


def is_title(word: str) -> bool:
    return len(word) > 1 and word[0].isupper() and word[1:].islower()
