"""One self-contained HTML page about a search and its result: no script, no font, nothing fetched.

Pictures are SVG elements that follow the page's light or dark scheme. All text that comes from the user is escaped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING

from branchnet.reporting.comparison import Comparison
from branchnet.reporting.measured_tree import MeasuredTree
from branchnet.reporting.pages import page_sections as sections
from branchnet.reporting.pages.markup import escaped
from branchnet.reporting.plots.front_plot import FrontPlot
from branchnet.reporting.plots.samples_plot import SamplesPlot
from branchnet.utils.files import write_text
from branchnet.utils.version import __version__

if TYPE_CHECKING:
    from branchnet.affinity.tensor import Affinity
    from branchnet.clustering.certainty.tree_stability import Stability
    from branchnet.clustering.search_result import SearchResult
    from branchnet.reporting.summary import Report

# Whatever a name of a task may hold, the browser runs and fetches nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True, eq=False)
class Page:
    """What a page shows; only the title is needed, and each section that has nothing to show is left out.

    Attributes:
        title: the heading.
        summary: one or two sentences under it.
        asked: what was asked, e.g. `{"budget": "60% params", "images": "500 of ./photos"}`.
        chosen: the search result that was built.
        report: costs and latency of the branched network.
        affinity: what the tree was found from.
        front: the Pareto front.
        measured: the trees that were tried, and what they did before any training.
        comparison: the branched network compared with the separate networks and others.
        samples: predictions next to the truth.
        stability: how often the tree and its nodes came back on other data.
        certainty: sentences on how sure the choice is, in addition to those that the fields above give.
        commands: shell or Python lines that make all of this again.
    """

    title: str
    summary: str = ""
    asked: Mapping[str, str] = field(default_factory=dict)
    chosen: SearchResult | None = None
    report: Report | None = None
    affinity: Affinity | None = None
    front: FrontPlot | None = None
    measured: Sequence[MeasuredTree] = ()
    comparison: Comparison | None = None
    samples: SamplesPlot | None = None
    stability: Stability | None = None
    certainty: Sequence[str] = ()
    commands: Sequence[str] = ()

    def to_html(self) -> str:
        """Write the page as text; equal pages give equal text.

        Returns:
            the HTML document.
        """
        tree = self.report.tree if self.report else self.chosen.tree if self.chosen else None
        every = [
            sections.asked(self.asked, self.chosen),
            sections.tree(tree, self.report, self.affinity),
            sections.results(self.comparison),
            sections.tried(self.measured),
            sections.latency(self.comparison, self.report),
            sections.samples(self.samples),
            sections.costs(self.report),
            sections.affinity(self.affinity, tree),
            sections.front(self.front),
            sections.certainty(self.certainty, self.chosen, self.affinity, self.stability),
            sections.commands(self.commands),
        ]
        shown = [section for section in every if section is not None]
        links = "".join(f'<a href="#{section.id}">{escaped(section.heading)}</a>' for section in shown)
        style = files("branchnet.reporting.pages").joinpath("page.css").read_text(encoding="utf-8")
        head = (
            f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escaped(self.title)}</title><style>\n{style}</style>"
        )
        summary = f"<p>{escaped(self.summary)}</p>" if self.summary else ""
        return (
            f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n'
            f"<header><h1>{escaped(self.title)}</h1>{summary}{sections.cards(self.report, self.comparison)}"
            f'<nav aria-label="Sections">{links}</nav></header>\n'
            f"<main>\n{''.join(section.to_html() for section in shown)}</main>\n"
            f"<footer>Made with branchnet {escaped(__version__)}.</footer>\n</body>\n</html>\n"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page.

        Args:
            path: the file, written atomically.
        """
        write_text(path, self.to_html())
