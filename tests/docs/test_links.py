"""Links within the documentation, the README and the other pages of the repository lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "architectures/**/*.md", "examples/*.md")
    for path in ROOT.glob(pattern)
    if "_build" not in path.parts and "generated" not in path.parts
)
GENERATED = {"command", "reproduced"}
"""Pages that the documentation's build writes itself."""
_CODE = re.compile(r"^ *(`{3,}).*?^ *\1 *$|`[^`\n]+`", re.DOTALL | re.MULTILINE)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and MyST make it."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading.strip().lower()).replace("`", "")
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain))


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^ *(`{3,}).*?^ *\1 *$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {slug(heading) for heading in re.findall(r"^#{1,6} (.*)$", text, re.MULTILINE)}


def broken(page: Path, text: str) -> list[str]:
    """The links of a page's text that lead nowhere."""
    links = re.findall(r"\[[^]]*\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)", _CODE.sub("", text))
    links += re.findall(r"```\{image\} (\S+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    found = [link for link in links if not re.match(r"[a-z][a-z+.-]*:", link) and not _leads_somewhere(page, link)]
    for target in re.findall(r"\{doc\}`(?:[^`<]*<)?([^`>]+)>?`", text):
        base = ROOT / "docs" if target.startswith("/") else page.parent
        document = (base / target.lstrip("/")).with_suffix(".md")
        if not document.exists() and not (document.parent.name == "generated" and document.stem in GENERATED):
            found.append(target)
    return found


def _leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if target.parent.name == "generated" and target.stem in GENERATED:
        return True
    if not target.exists():
        return False
    return not anchor or target.suffix != ".md" or anchor in anchors(target)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page, page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[a](missing.md)", ["missing.md"]),
        ("[a](limits.md) [b](limits.md#limits) [c](https://example.org/x)", []),
        ("[a](limits.md#nowhere)", ["limits.md#nowhere"]),
        ("{doc}`limits` {doc}`the map <reference/map>` {doc}`generated/command`", []),
        ("{doc}`howto/nothing`", ["howto/nothing"]),
        ("```python\nrows[0](missing)\n```\n`x[0](y)`", []),
        ("```{image} ../missing.png\n```", ["../missing.png"]),
        ('<img src="missing.png">', ["missing.png"]),
    ],
)
def test_broken_links_are_found(text: str, found: list[str]) -> None:
    assert broken(ROOT / "docs" / "page.md", text) == found
