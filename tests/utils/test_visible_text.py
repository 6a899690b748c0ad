"""Nothing in a printed name is hidden."""

from __future__ import annotations

import io
import json
import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

import branchnet
from branchnet.cli import main, printing
from branchnet.clustering import Tree
from branchnet.errors import SpecError, TreeError
from branchnet.inference import make_schedule
from branchnet.reporting.pages.markup import escaped
from branchnet.reporting.tables import Column, Table
from branchnet.specification import Architecture
from branchnet.stages import split_all
from branchnet.utils.visible_text import invisible, visible

HIDDEN = "a\x1b[31m\u202eb\x00\x9b\n\u2028\ufeff\u2066"
SHOWN = r"a\u001b[31m\u202eb\u0000\u009b\n\u2028\ufeff\u2066"


def hidden_in(text: str) -> list[str]:
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != "\n"]


@given(st.text())
def test_the_shown_text_is_json_for_the_text(text: str) -> None:
    """Where it holds no backslash or quote of its own, JSON reads back what was hidden."""
    shown = visible(text)
    assert not hidden_in(shown) and "\n" not in shown
    plain = text.replace("\\", "").replace('"', "")
    assert json.loads(f'"{visible(plain)}"') == plain
    assert visible(shown) == shown


def test_what_is_seen_stays() -> None:
    for text in ("depth", "名前", "é", "e\u0301", "😀", "نقش", "$x_1$", "a\\nb", " "):
        assert visible(text) == text and not invisible(text)
    assert visible("a\nb", lines=True) == "a\nb"
    assert visible("\U000e0041") == r"\udb40\udc41"


@pytest.mark.parametrize("character", ["\u200b", "\u202e", "\u2066", "\ufeff", "\u2028", "\u3164", "\ufe0f", "\u00ad"])
def test_invisible_and_bidirectional_characters_are_refused_in_specifications(character: str) -> None:
    for changed in ({"tasks": [f"a{character}"]}, {"locations": [f"x{character}"]}):
        content = {"tasks": ["a"], "locations": ["x"]} | changed
        tree = [{"until": content["locations"][0], "branches": content["tasks"]}]
        with pytest.raises(SpecError, match=rf"holds U\+{ord(character):04X}, which nobody sees"):
            Architecture.create(**content, tree=tree)


def test_trees_and_schedules_show_it() -> None:
    tree = Tree([HIDDEN, "b"], [[[HIDDEN, "b"]], [[HIDDEN], ["b"]]])
    for text in (str(tree), str(make_schedule(tree)), tree.to_dot()):
        assert not hidden_in(text)
    assert f"stage 1: {SHOWN}" in str(tree)


def test_errors_and_warnings_show_it() -> None:
    def network(last: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), last, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))

    name, shown = HIDDEN.replace("\n", ""), SHOWN.replace("\\n", "")  # messages may have several lines
    x = torch.randn(2, 4)
    staged = split_all({"a": network(nn.ReLU()), name: network(nn.ReLU())}, x, locations=["0", "2"])
    with pytest.warns(UserWarning, match="another network than they were trained on") as caught:
        branchnet.build(Tree.shared(["a", name], 2), staged)
    parted = split_all({"a": network(nn.ReLU()), name: network(nn.Tanh())}, x)
    with pytest.raises(TreeError, match="more than once") as error:
        Tree.shared([name, name], 2)
    for text in (str(caught[0].message), str(parted["a"].first_difference), str(error.value)):
        assert not hidden_in(text) and shown in text
    assert error.value.args[0].count(name) == 1


def test_tables_show_it_in_every_form_for_people() -> None:
    table = Table(HIDDEN, (Column(HIDDEN), Column("value")), ((HIDDEN, 1.0),))
    terminal = io.StringIO()
    Console(file=terminal, width=400).print(table.to_rich())
    for text in (terminal.getvalue(), table.to_markdown(), table.to_html(), escaped(HIDDEN)):
        assert not hidden_in(text) and "u202e" in text
    assert terminal.getvalue().count(SHOWN) == 3


def test_the_command_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    printing.print_text(HIDDEN)
    printing.print_json({HIDDEN: HIDDEN})
    printing.say(HIDDEN, quiet=False)
    assert main(["show", "nowhere\x1b[31m"]) == 2
    printed = capsys.readouterr()
    assert not hidden_in(printed.out) and not hidden_in(printed.err)
    assert json.loads(printed.out.split("\n", 2)[2]) == {HIDDEN: HIDDEN}
    assert r"nowhere\u001b[31m" in printed.err
