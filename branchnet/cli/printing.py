"""Results on stdout: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from branchnet.reporting.tables import Table


def print_json(value: Any) -> None:
    """Print `value` as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_text(*lines: object) -> None:
    """Print lines as they are, without markup and without breaking them."""
    console = Console(highlight=False, soft_wrap=True)
    for line in lines:
        console.print(str(line), markup=False)


def print_tables(tables: Sequence[Table]) -> None:
    """Print tables."""
    console = Console()
    for table in tables:
        console.print(table.to_rich())


def say(text: str, *, quiet: bool) -> None:
    """Tell on stderr what was done, unless the user wants silence."""
    if not quiet:
        Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)
