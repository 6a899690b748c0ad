"""What the scripts that reproduce published numbers have in common: facts, rows of published and ours, a table."""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from branchnet.reporting.tables import Column, Table
from branchnet.utils.files import write_text

FACTS = Path(__file__).resolve().parents[1] / "tests" / "facts"


@dataclass(frozen=True)
class Row:
    """One published number, or text, and ours.

    Attributes:
        what: what it is.
        published: as published.
        ours: as computed now.
        tolerance: largest absolute difference that still counts as the same number.
    """

    what: str
    published: float | int | str
    ours: float | int | str
    tolerance: float = 0.0

    @property
    def agrees(self) -> bool:
        """Whether both are the same, as far as the tolerance asks."""
        if isinstance(self.published, str) or isinstance(self.ours, str):
            return self.published == self.ours
        return math.isclose(self.published, self.ours, rel_tol=0, abs_tol=self.tolerance)


@dataclass(frozen=True)
class Reproduction:
    """Published numbers of one source.

    Attributes:
        title: what is reproduced.
        source: where the published numbers are from.
        rows: the comparison.
    """

    title: str
    source: str
    rows: tuple[Row, ...]

    def table(self) -> Table:
        """One row for each number."""
        columns = (Column("number"), Column("published", written), Column("ours", written), Column("same"))
        rows = tuple((row.what, row.published, row.ours, "yes" if row.agrees else "NO") for row in self.rows)
        return Table(self.title, columns, rows)

    def to_markdown(self) -> str:
        """A section of a page."""
        return f"## {self.title}\n\nSource: {self.source}.\n\n{self.table().to_markdown().split(chr(10), 2)[2]}"


def written(value: float | int | str) -> str:
    """A number with ten significant digits at most, or text."""
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.10g}"


def facts_json(name: str) -> Any:
    """A JSON file of tests/facts."""
    return json.loads((FACTS / name).read_text(encoding="utf-8"))


def facts_rows(name: str) -> list[dict[str, str]]:
    """The rows of a CSV file of tests/facts."""
    with (FACTS / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def run(description: str | None, reproduce: Callable[[], Reproduction], arguments: Sequence[str] | None = None) -> None:
    """Print the comparison; exit 1 where a number is not the published one."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, help="also write the comparison there, as Markdown")
    options = parser.parse_args(arguments)
    found = reproduce()
    if options.out is not None:
        write_text(options.out, found.to_markdown())
    if options.json:
        rows = [
            {"number": row.what, "published": row.published, "ours": row.ours, "same": row.agrees} for row in found.rows
        ]
        print(json.dumps({"title": found.title, "source": found.source, "rows": rows}, indent=2))
    else:
        Console().print(found.table().to_rich(f"source: {found.source}"))
    sys.exit(0 if all(row.agrees for row in found.rows) else 1)
