"""Elements of HTML; whatever may come from a user is escaped here."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from branchnet.reporting.plots.figures import inline_svg
from branchnet.reporting.tables import Table
from branchnet.utils.visible_text import visible

_SHRINK = 0.8


@dataclass(frozen=True)
class Section:
    """A section of a page: its anchor, its heading, and its content as HTML."""

    id: str
    heading: str
    content: str

    def to_html(self) -> str:
        """Return the section element."""
        return f'<section id="{self.id}"><h2>{escaped(self.heading)}</h2>\n{self.content}</section>\n'


def escaped(text: str) -> str:
    """Return `text` made safe for element content and quoted attributes, with nothing hidden in it."""
    return html.escape(visible(text, lines=True), quote=True)


def paragraph(text: str) -> str:
    """Return a paragraph."""
    return f"<p>{escaped(text)}</p>\n"


def bullets(items: Sequence[str], css: str = "") -> str:
    """Return a list; items that begin with "Warning" are marked."""
    lines = (f"<li{' class=warning' if item.startswith('Warning') else ''}>{escaped(item)}</li>" for item in items)
    return f'<ul class="{css}">{"".join(lines)}</ul>\n'


def facts(pairs: Mapping[str, str]) -> str:
    """Return names and values in two columns."""
    rows = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in pairs.items())
    return f'<dl class="facts">{rows}</dl>\n'


def picture(figure: Figure, name: str, label: str, caption: str = "") -> str:
    """Return a figure that shrinks a little on narrow screens, and scrolls inside its own box beyond that."""
    svg, width = inline_svg(figure, name, label)
    svg = svg.replace("<svg ", f'<svg width="{width:.0f}" style="min-width:{_SHRINK * width:.0f}px" ', 1)
    text = f"<figcaption>{escaped(caption)}</figcaption>" if caption else ""
    return f"<figure>{scrolling(svg, label)}{text}</figure>\n"


def table(content: Table) -> str:
    """Return a table that scrolls inside its own box."""
    return scrolling(content.to_html(), content.title) + "\n"


def folded(summary: str, content: str) -> str:
    """Return content that opens on demand."""
    return f"<details><summary>{escaped(summary)}</summary>\n{content}</details>\n"


def preformatted(text: str) -> str:
    """Return text as it is, in a fixed-width font."""
    return f'<pre tabindex="0">{escaped(text)}</pre>\n'


def scrolling(content: str, label: str) -> str:
    """Return a box that keyboards can scroll."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(label)}">{content}</div>'
