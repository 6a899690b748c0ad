"""The page: what it holds, that it is safe and self-contained, and how a real browser lays it out."""

import html.parser

import pytest

from branchnet.reporting.pages.page import Page
from tests.reporting.browser import CHROMIUM, Browser
from tests.reporting.pages import HOSTILE, full_page

SECTIONS = [
    "asked",
    "tree",
    "results",
    "latency",
    "samples",
    "costs",
    "affinity",
    "front",
    "certainty",
    "commands",
]


class Reader(html.parser.HTMLParser):
    """Collects tags, ids, attributes that fetch or run something, and text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.ids, self.sections, self.dangerous, self.text = set(), [], [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        found = dict(attributes)
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "section":
            self.sections.append(found["id"])
        for name, value in attributes:
            local = (value or "").startswith(("#", "data:image/png"))
            if name.startswith("on") or (name in ("src", "href", "xlink:href", "action") and not local):
                self.dangerous.append((tag, name, value))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def small():
    return full_page(3).to_html()


@pytest.fixture(scope="module")
def large():
    return full_page(40).to_html()


def test_every_section_is_there(small):
    assert Reader(small).sections == SECTIONS


def test_stability_is_told(small):
    assert "The same tree is best in 50% of 2 replicates." in Reader(small).text


def test_only_the_title_is_needed(tmp_path):
    Page(title="Nothing yet").save(tmp_path / "page.html")
    page = Reader((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.sections == []
    assert "Nothing yet" in page.text


def test_hostile_text_is_shown_and_not_obeyed(small):
    page = Reader(small)
    assert not page.tags & {"script", "iframe", "object", "embed", "link", "base", "form", "img"}
    assert page.dangerous == []
    assert page.text.count(HOSTILE) > 10


def test_ids_are_unique(large):
    ids = Reader(large).ids
    assert len(ids) == len(set(ids))


def test_the_page_names_every_task_and_fits_in_a_mail(large):
    page = Reader(large)
    assert all(f"task_with_a_name_{i}" in page.text for i in range(1, 40))
    assert len(large) < 5_000_000


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def files(tmp_path_factory, small, large):
    folder = tmp_path_factory.mktemp("pages")
    for name, page in (("small", small), ("large", large)):
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return folder


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", ["small", "large"])
def test_no_complaint_and_no_sideways_scrolling(browser, files, name, width):
    browser.open((files / f"{name}.html").as_uri(), width=width)
    assert browser.complaints() == []
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_browser_complains_where_it_should(browser, tmp_path):
    (tmp_path / "bad.html").write_text("<script>console.error('no')</script><img src='missing.png'>")
    browser.open((tmp_path / "bad.html").as_uri())
    assert len(browser.complaints()) >= 2


@pytest.mark.parametrize("width", [1280, 400])
def test_texts_of_forty_tasks_do_not_overlap(browser, files, width):
    browser.open((files / "large.html").as_uri(), width=width)
    assert len(browser.evaluate(f"({_LEVEL_TEXTS})(document)")) > 400
    assert browser.evaluate(_OVERLAPS) == []


def test_overlapping_texts_are_noticed(browser, tmp_path):
    texts = "<text x=0 y=20>one word</text><text x=5 y=22>another</text>"
    (tmp_path / "bad.html").write_text(f"<svg width=200 height=50>{texts}</svg>")
    browser.open((tmp_path / "bad.html").as_uri())
    assert browser.evaluate(_OVERLAPS) == ["one word | another"]


def test_forty_task_names_are_large_enough_to_read(browser, files):
    browser.open((files / "large.html").as_uri(), width=400)
    heights = browser.evaluate(
        "[...document.querySelectorAll('#tree svg text')].filter(t => t.textContent.startsWith('task_with'))"
        ".map(t => t.getBoundingClientRect().height)"
    )
    assert len(heights) == 39
    assert min(heights) >= 9


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
def test_page_and_pictures_follow_the_colour_scheme(browser, files, scheme, dark):
    browser.open((files / "small.html").as_uri(), scheme=scheme)
    colours = browser.evaluate(
        "['body', '#tree svg text'].map((s, i) => getComputedStyle(document.querySelector(s))"
        "[i ? 'fill' : 'backgroundColor'].match(/[0-9.]+/g).map(Number))"
    )
    paper, ink = (sum(colour[:3]) / 3 for colour in colours)
    assert (paper < 60) is dark
    assert (ink > 195) is dark


# Rotated labels are left to the eye: their boxes overlap where their letters do not.
_LEVEL_TEXTS = """
root => [...root.querySelectorAll('text')]
  .filter(t => t.textContent.trim() && !/rotate\\((?!-?0\\b)/.test(t.outerHTML))
"""

_OVERLAPS = f"""
[...document.querySelectorAll('svg')].flatMap(svg => {{
  const texts = ({_LEVEL_TEXTS})(svg);
  const boxes = texts.map(t => t.getBoundingClientRect());
  const found = [];
  for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {{
    const a = boxes[i], b = boxes[j];
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const tall = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 1 && tall > 0.35 * Math.min(a.height, b.height))
      found.push(texts[i].textContent + ' | ' + texts[j].textContent);
  }}
  return found;
}})
"""
