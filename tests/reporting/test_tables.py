import csv
import html.parser
import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from branchnet.reporting.tables import Column, Table
from branchnet.reporting.units import binary, milliseconds, percent, si, signed
from branchnet.utils.visible_text import invisible

TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)


def table(rows):
    return Table(
        "T", (Column("name"), Column("size", si), Column("time", milliseconds, "s")), tuple(rows), frozenset({0})
    )


@given(st.lists(st.tuples(TEXTS, st.integers(0, 10**12), st.floats(1e-6, 1e3)), max_size=4))
def test_csv_gives_back_the_unrounded_values(rows):
    read = list(csv.reader(io.StringIO(table(rows).to_csv())))
    assert read[0] == ["name", "size", "time (s)"]
    assert [(name, int(size), float(time)) for name, size, time in read[1:]] == rows


class Texts(html.parser.HTMLParser):
    def __init__(self, tag):
        super().__init__()
        self.tag, self.inside, self.found, self.tags = tag, False, [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.inside = tag == self.tag
        if self.inside:
            self.found.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != self.tag

    def handle_data(self, data):
        if self.inside:
            self.found[-1] += data


@given(TEXTS.filter(lambda text: not invisible(text)))
def test_html_shows_any_text_as_it_is(text):
    page = Table(text, (Column(text),), ((text,),)).to_html()
    for tag in ("caption", "th", "td"):
        reader = Texts(tag)
        reader.feed(page)
        assert reader.found == [text]
        assert reader.tags == {"table", "caption", "thead", "tr", "th", "tbody", "td"}


@given(TEXTS)
def test_markdown_keeps_its_columns(text):
    lines = Table("T", (Column("a"), Column("b")), ((text, "x"),)).to_markdown().splitlines()[2:]
    assert [line.replace("\\\\", "").replace("\\|", "").count("|") for line in lines] == [3, 3, 3]


def test_markdown_by_hand():
    assert table([("a_b", 1500, 0.0123)]).to_markdown() == (
        "**T**\n\n| name | size | time |\n| --- | ---: | ---: |\n| a\\_b | 1.50 k | 12.3 ms |\n"
    )


def test_terminal_shows_markup_as_text():
    console = Console(file=io.StringIO(), width=60)
    console.print(table([("[red]x[/red]", 1, 1.0)]).to_rich("a [b] caption"))
    shown = console.file.getvalue()
    assert "[red]x[/red]" in shown
    assert "a [b] caption" in shown


def test_records_and_empty_cells():
    assert table([("a", None, 0.5)]).to_records() == [{"name": "a", "size": None, "time (s)": 0.5}]
    assert table([("a", None, 0.5)]).to_csv().splitlines()[1] == "a,,0.5"
    assert table([]).to_csv() == "name,size,time (s)\n"


def test_numbers_as_people_read_them():
    assert [si(n) for n in (0, 7, 999, 1000, 11_176_512, 999_999, 2.5e12, 0.25)] == [
        "0",
        "7",
        "999",
        "1.00 k",
        "11.2 M",
        "1.00 M",
        "2.50 T",
        "0.250",
    ]
    assert [binary(n) for n in (512, 2048, 3 * 2**20 + 2**19)] == ["512 B", "2.00 KiB", "3.50 MiB"]
    assert [milliseconds(s) for s in (0.0123, 1.5)] == ["12.3 ms", "1500 ms"]
    assert (percent(0.583), signed(-1.25), signed(2)) == ("58.3 %", "\N{MINUS SIGN}1.25", "+2.00")
