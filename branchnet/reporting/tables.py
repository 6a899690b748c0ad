"""A table of plain values, and its forms: terminal, CSV, Markdown, HTML."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import rich.table
from rich.text import Text

from branchnet.utils.visible_text import visible

Cell = str | int | float | None


@dataclass(frozen=True)
class Column:
    """One column; numbers are aligned to the right, text to the left.

    Attributes:
        heading: what people read above it.
        written: how a value is written for people; as it is by default.
        unit: unit of the unrounded values in files; "" for none.
    """

    heading: str
    written: Callable[[Any], str] | None = None
    unit: str = ""

    @property
    def key(self) -> str:
        """The heading in files."""
        return f"{self.heading} ({self.unit})" if self.unit else self.heading

    def text(self, value: Cell) -> str:
        """Return `value` as a person reads it; nothing for None."""
        if value is None:
            return ""
        return str(value) if self.written is None else self.written(value)


@dataclass(frozen=True)
class Table:
    """Rows of values under headings.

    Attributes:
        title: one line.
        columns: headings and formats.
        rows: values; None is an empty cell.
        strong: indices of rows to stress, such as totals.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    strong: frozenset[int] = frozenset()

    def to_rich(self, caption: str = "") -> rich.table.Table:
        """Return the table for the terminal."""
        table = rich.table.Table(
            title=Text(visible(self.title)), caption=Text(caption) if caption else None, title_justify="left"
        )
        table.caption_justify = "left"
        for column, numeric in zip(self.columns, self._numeric(), strict=True):
            table.add_column(Text(visible(column.heading)), justify="right" if numeric else "left", overflow="fold")
        for i, row in enumerate(self.rows):
            table.add_row(*map(Text, self._texts(row)), style="bold" if i in self.strong else None)
        return table

    def to_csv(self) -> str:
        """Return comma-separated values, unrounded, with a line of headings."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(column.key for column in self.columns)
        writer.writerows(["" if cell is None else cell for cell in row] for row in self.rows)
        return buffer.getvalue()

    def to_markdown(self) -> str:
        """Return a pipe table under its title."""
        rule = ["---:" if numeric else "---" for numeric in self._numeric()]
        lines = [[column.heading for column in self.columns], rule, *(self._texts(row) for row in self.rows)]
        body = "\n".join("| " + " | ".join(map(_markdown, line)) + " |" for line in lines)
        return f"**{_markdown(self.title)}**\n\n{body}\n"

    def to_html(self) -> str:
        """Return a table element with a caption; everything is escaped."""
        classes = [' class="n"' if numeric else "" for numeric in self._numeric()]
        head = "".join(
            f"<th scope=col{css}>{html.escape(visible(column.heading))}</th>"
            for column, css in zip(self.columns, classes, strict=True)
        )
        rows = "".join(
            f"<tr{' class=strong' if i in self.strong else ''}>"
            + "".join(f"<td{css}>{html.escape(t)}</td>" for t, css in zip(self._texts(row), classes, strict=True))
            + "</tr>"
            for i, row in enumerate(self.rows)
        )
        caption = html.escape(visible(self.title))
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"

    def to_records(self) -> list[dict[str, Cell]]:
        """Return one dictionary of unrounded values for each row."""
        return [{c.key: cell for c, cell in zip(self.columns, row, strict=True)} for row in self.rows]

    def _texts(self, row: Sequence[Cell]) -> list[str]:
        return [visible(column.text(cell)) for column, cell in zip(self.columns, row, strict=True)]

    def _numeric(self) -> list[bool]:
        cells = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.columns)
        return [any(isinstance(c, int | float) for c in column) for column in cells]


def _markdown(text: str) -> str:
    escaped = html.escape(visible(text), quote=False).replace("\\", "\\\\").replace("|", "\\|")
    return escaped.replace("\n", " ").replace("*", "\\*").replace("_", "\\_").replace("`", "\\`")
