"""The scripts in tools/: published numbers agree, disagreement is noticed, help is there."""

from __future__ import annotations

import csv
import importlib
import io
import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
REPRODUCTIONS = sorted(path.stem for path in TOOLS.glob("reproduce_*.py"))
MODULES = {"mutants", "mutation_trials", "published"}
"""What scripts import; the others are commands."""
COMMANDS = sorted(path for path in TOOLS.glob("*.py") if path.stem not in MODULES)


@pytest.fixture(autouse=True)
def _tools_on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(TOOLS))
    yield


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if "celeba" in name else ()) for name in REPRODUCTIONS],
)
def test_published_numbers_are_reproduced(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    published = importlib.import_module("published")
    module = importlib.import_module(name)
    with pytest.raises(SystemExit) as left:
        published.run(module.__doc__, module.reproduce, ["--json"])
    told = json.loads(capsys.readouterr().out)
    assert left.value.code == 0, [row for row in told["rows"] if not row["same"]]
    assert len(told["rows"]) >= 14 and told["source"]


def test_a_number_that_differs_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published = importlib.import_module("published")
    rows = (published.Row("a", 1.0, 1.0 + 1e-6, 1e-5), published.Row("b", 3, 4), published.Row("c", "x; y", "x; y"))
    with pytest.raises(SystemExit) as left:
        published.run(
            "Numbers.", lambda: published.Reproduction("Numbers", "me", rows), ["--out", str(tmp_path / "n.md")]
        )
    assert left.value.code == 1
    assert "| b | 3 | 4 | NO |" in (tmp_path / "n.md").read_text()
    assert [row.agrees for row in rows] == [True, False, True]


def test_cost_report_counts_what_the_libraries_publish(capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module("cost_report").main(["torchvision:resnet18", "--locations", "4", "--csv"])
    total = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))[-1]
    assert int(total["parameters"]) == 11_689_512  # torchvision's documentation of ResNet18_Weights
    assert float(total["FLOPs"]) == pytest.approx(1.814e9, rel=0.01)


def test_cost_report_reads_specifications(capsys: pytest.CaptureFixture[str]) -> None:
    root = TOOLS.parent / "architectures"
    importlib.import_module("cost_report").main([str(root / "celeba_40.yaml"), str(root / "autobrane_1.yaml")])
    printed = " ".join(capsys.readouterr().out.split())
    assert "celeba_40" in printed and "separate networks" in printed and "no costs are known" in printed


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_every_script_has_help(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    assert left.value.code == 0 and "usage:" in printed and len(printed.splitlines()) > 4
