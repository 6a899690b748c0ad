"""Places in a nested document, as error messages name them."""

from __future__ import annotations

import re

Keys = tuple[str | int, ...]
"""Where a value stands in a document: mapping keys and list indices from the top."""


def show_keys(keys: Keys) -> str:
    """Write a place in a document as `tree[0].branches["a b"]`."""
    text = ""
    for key in keys:
        if isinstance(key, int):
            text += f"[{key}]"
        elif re.fullmatch(r"\w+", key):
            text += f".{key}" if text else key
        else:
            text += f"[{key!r}]"
    return text
