"""The map of the API names every public name once."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import branchnet

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "map.md"


def test_every_public_name_is_on_the_map_once() -> None:
    named = Counter(re.findall(r"`branchnet\.(\w+)`", PAGE.read_text(encoding="utf-8")))
    assert {name: count for name, count in named.items() if count > 1} == {}
    public = {name for name in branchnet.__all__ if not name.startswith("_")}
    assert public - set(named) == set(), "not on docs/reference/map.md"
    assert set(named) - public == set(), "on docs/reference/map.md, and not public"
