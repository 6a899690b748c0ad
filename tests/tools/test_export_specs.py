"""The ready specifications are what tools/export_specs.py writes, and the README's examples are run as they stand."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path

import pytest

from branchnet import Architecture

ROOT = Path(__file__).parents[2]
QUICK = ("taskonomy_rsa", "autobrane_final", "autobrane_1", "autobrane_gat", "resnet18")
ALL = sorted(path.stem for path in (ROOT / "architectures").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _tools_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ALL])
def test_a_ready_specification_is_what_the_script_writes(name: str) -> None:
    if name in ("bert_base", "segformer_b0"):
        pytest.importorskip("transformers")
    written = importlib.import_module("export_specs").SPECS[name]().to_dict()
    kept = Architecture.load(ROOT / "architectures" / f"{name}.yaml").to_dict()
    for content in (written, kept):
        content.pop("versions", None)  # of the packages that were installed
    assert written == kept


def test_the_script_writes_what_is_asked_for_and_the_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["export_specs.py", "autobrane_gat", "--out", str(tmp_path)])
    importlib.import_module("export_specs").main()
    assert {path.name for path in tmp_path.iterdir()} == {"autobrane_gat.yaml", "branchnet.schema.json"}
    monkeypatch.setattr("sys.argv", ["export_specs.py", "resnet19", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        importlib.import_module("export_specs").main()
    assert left.value.code == 2


@pytest.mark.parametrize(("second", "works"), [("print('fine')", True), ("1 / 0", False)])
def test_every_example_of_a_readme_is_run(
    second: str, works: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = importlib.import_module("run_readme")
    (tmp_path / "README.md").write_text(f"```python\nopen('mark', 'w')\n```\nText.\n```python\n{second}\n```\n")
    monkeypatch.setattr(script, "README", tmp_path / "README.md")
    monkeypatch.setattr("sys.argv", ["run_readme.py"])
    if works:
        assert script.main() == 0
    else:
        with pytest.raises(subprocess.CalledProcessError):
            script.main()
    assert {path.name for path in tmp_path.iterdir()} == {"README.md"}  # each example has a folder of its own
