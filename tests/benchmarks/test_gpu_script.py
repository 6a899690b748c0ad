"""The one command for a GPU: it runs without optional packages, survives what fails, and goes on where it stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"
MISSING = {
    "cyclopts",
    "fvcore",
    "hypothesis",
    "iopath",
    "lazy_loader",
    "matplotlib",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pandas",
    "PIL",
    "pydantic",
    "pydantic_core",
    "rich",
    "rsatoolbox",
    "threadpoolctl",
    "transformers",
    "yacs",
    "yaml",
}
"""What a machine that is lent for minutes may lack, though some of it comes with timm and torchvision."""
BLOCKING = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {missing} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""
BROKEN = """
import os, signal, sys, time, types
sys.path[:0] = [{benchmarks!r}]
import gpu
from gpu_parts import plan

def measure(settings, what):
    if what == "raises":
        raise KeyError("on purpose")
    if what == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "hangs":
        time.sleep(600)
    return {{"what": what}}

broken = types.ModuleType("gpu_parts.broken")
broken.units = lambda settings: {{name: (name,) for name in ("fine", "raises", "crashes", "hangs", "fine, too")}}
broken.measure = measure
broken.page = lambda unit, result: [f"- it gave {{result['what']}}: met"]
sys.modules["gpu_parts.broken"] = broken
part = plan.Part("broken", "what fails", expected=1, limit=300, least=1, unit_limit=4)
gpu.PARTS = plan.PARTS = sys.modules["gpu_parts.pages"].PARTS = (part,)
gpu.rehearsed = lambda part: part
gpu.main()
"""


def run(script: Path, results: Path, *, blocking: Path | None = None, minutes: float = 1.0) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if blocking is not None:
        environment["PYTHONPATH"] = str(blocking)
    command = [sys.executable, str(script), "--device", "cpu", "--minutes", str(minutes), "--results", str(results)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=results.parent, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def units_of(results: Path, part: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((results / f"{part}.json").read_text())
    assert list(content["units"]) and set(content["units"]) <= set(content["planned"])
    return content["units"] if set(content["units"]) == set(content["planned"]) else {}


def test_every_part_runs_with_tiny_networks_and_without_optional_packages(tmp_path: Path) -> None:
    blocking, results = tmp_path / "blocking", tmp_path / "results"
    blocking.mkdir()
    (blocking / "sitecustomize.py").write_text(BLOCKING.format(missing=MISSING))
    look = f"import importlib.util as u; raise SystemExit(any(map(u.find_spec, {sorted(MISSING)})))"
    subprocess.run([sys.executable, "-c", look], env=os.environ | {"PYTHONPATH": str(blocking)}, check=True)
    # A minute is enough where nothing else runs. It ends when it is done.
    assert "skipped" not in run(SCRIPT, results, blocking=blocking, minutes=8)
    again = run(SCRIPT, results, blocking=blocking)
    assert again.count("has been measured") == 6 and "==" not in again

    parts = ("marked_tests", "trees", "fusion", "ways", "latency", "rsa_and_distillation")
    units = {part: units_of(results, part) for part in parts}
    for part, found in units.items():
        assert found, f"{part} is not complete"
        for unit, outcome in found.items():
            assert "error" not in outcome, f"{part}, {unit}: {outcome.get('error')}"
            for samples in outcome["result"].get("seconds", {}).values():
                assert len(samples) >= 6 and min(samples) > 0
        assert "its numbers mean nothing" in (results / f"{part}.md").read_text()
    (tests,) = units["marked_tests"]["all files"]["result"]["files"].values()
    assert tests["passed"] and int(tests["summary"].split()[0]) >= 30
    assert set(units["ways"]["tiny, streams, batch 1"]["result"]["errors"]) == {"on streams"}
    others = [one["result"].get("errors", {}) for part in parts for one in units[part].values()]
    assert sum(map(len, others)) == 1
    assert not list(results.glob("*.log"))


def test_a_unit_that_fails_crashes_or_hangs_costs_no_other(tmp_path: Path) -> None:
    script, results = tmp_path / "broken.py", tmp_path / "results"
    script.write_text(BROKEN.format(benchmarks=str(SCRIPT.parent)))
    output = run(script, results, minutes=5)
    units = units_of(results, "broken")
    assert {name for name, one in units.items() if "error" in one} == {"raises", "crashes", "hangs"}
    assert "KeyError: 'on purpose'" in units["raises"]["error"] and "in measure" in units["raises"]["error"]
    assert "the process ended with -11" in units["crashes"]["error"]
    assert "Timeout" in units["hangs"]["error"] and "in measure" in units["hangs"]["error"]
    page = (results / "broken.md").read_text()
    assert "on purpose" in page and "- it gave fine, too: met" in page
    assert "- raises: **failed**" in output and "- fine: it gave fine: met" in output


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from gpu_parts import records

    return records


def test_results_of_other_code_settings_or_machines_are_not_gone_on_with(records: Any, tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    first = records.Record(path, {"code": "1"})
    assert first.missing is None
    first.plan(["a", "b", "c"])
    first.finish("a", {"result": 1})
    first.finish("b", {"error": "out of memory"})
    assert first.missing == ["c"]
    first.begin("c")
    assert first.blame("killed") and first.missing == [] and not first.blame("nothing runs")
    assert first.read()["units"]["c"] == {"error": "killed"}
    first.forget(failed_only=True)
    assert first.missing == ["b", "c"]
    assert records.Record(path, {"code": "2"}).missing is None
    first.forget(failed_only=False)
    assert first.missing == ["a", "b", "c"]


def test_the_code_of_a_part_is_not_that_of_another(records: Any) -> None:
    codes = [records.code_of(part.name) for part in records.PARTS]
    assert len(set(codes)) == len(codes) and codes == [records.code_of(part.name) for part in records.PARTS]
