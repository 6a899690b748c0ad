"""The one command for a GPU: it runs without optional packages, survives what fails, and goes on where it stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
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
from pathlib import Path

def started_before(folder):
    (folder / "starts").open("a").write("x")
    return len((folder / "starts").read_text()) > 1

class Bad(types.ModuleType):
    units = property(lambda self: 1 / 0)

def measure(settings, what):
    settings.keep({{"seconds": {{"a side": [0.001] * 6}}, "preparation": {{}}, "batch": 1}})
    if what == "recovers" and not started_before(Path({folder!r})):
        raise MemoryError("the first time only")
    if what == "raises":
        raise KeyError("on purpose")
    if what == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "hangs":
        time.sleep(600)
    return {{"what": what}}

broken = types.ModuleType("gpu_parts.broken")
names = ("fine", "raises", "recovers", "crashes", "hangs", "fine, too")
broken.units = lambda settings: {{name: (name,) for name in names}}
broken.measure = measure
broken.page = lambda unit, result: [f"- it gave {{result['what']}}: met"]
sys.modules["gpu_parts.broken"] = broken
sys.modules["gpu_parts.bad"] = Bad("gpu_parts.bad")
limits = {{"expected": 1, "limit": 300, "least": 1, "unit_limit": 4}}
parts = [plan.Part(name, f"{{name}} part", **limits) for name in ("bad", "absent", "broken")]
gpu.PARTS = plan.PARTS = sys.modules["gpu_parts.pages"].PARTS = tuple(parts)
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
    assert not [*results.rglob("*.log"), *results.rglob("*.state.json")]
    return done.stdout


def units_of(results: Path, part: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((results / "rehearsal" / f"{part}.json").read_text())
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
    assert again.count("has been measured") == 7 and "==" not in again

    parts = ("marked_tests", "trees", "fusion", "ways", "latency", "rsa_and_distillation", "max_autotune")
    units = {part: units_of(results, part) for part in parts}
    for part, found in units.items():
        assert found, f"{part} is not complete"
        for unit, outcome in found.items():
            assert "error" not in outcome, f"{part}, {unit}: {outcome.get('error')}"
            for samples in outcome["result"].get("seconds", {}).values():
                assert len(samples) >= 6 and min(samples) > 0
        assert "its numbers mean nothing" in (results / "rehearsal" / f"{part}.md").read_text()
    ratio = "the tree against separate networks in one graph"
    assert ratio in (results / "rehearsal" / "trees.md").read_text()
    (tests,) = units["marked_tests"]["all files"]["result"]["files"].values()
    assert tests["passed"] and int(tests["summary"].split()[0]) >= 30
    assert set(units["ways"]["tiny, streams, batch 1"]["result"]["errors"]) == {"on streams"}
    others = [one["result"].get("errors", {}) for part in parts for one in units[part].values()]
    assert sum(map(len, others)) == 1


def test_a_unit_that_fails_crashes_or_hangs_costs_no_other(tmp_path: Path) -> None:
    script, results = tmp_path / "broken.py", tmp_path / "results"
    script.write_text(BROKEN.format(benchmarks=str(SCRIPT.parent), folder=str(tmp_path)))
    output = run(script, results, minutes=5)
    units = units_of(results, "broken")
    assert {name for name, one in units.items() if "error" in one} == {"raises", "crashes", "hangs"}
    assert "KeyError: 'on purpose'" in units["raises"]["error"] and "in measure" in units["raises"]["error"]
    assert "the process ended with -11" in units["crashes"]["error"]
    assert "Timeout" in units["hangs"]["error"] and "in measure" in units["hangs"]["error"]
    assert "result" in units["recovers"] and output.count("MemoryError: the first time only") == 1
    assert set(units["crashes"]["partial"]["seconds"]) == {"a side"}
    for part, reason in (("bad", "ZeroDivisionError"), ("absent", "ModuleNotFoundError")):
        content = json.loads((results / "rehearsal" / f"{part}.json").read_text())
        assert reason in content["units"]["start of the process"]["error"]
    page = (results / "rehearsal" / "broken.md").read_text()
    assert page.count("| a side | 1.000 (1.000 to 1.000)") == 3
    assert "on purpose" in page and "- it gave fine, too: met" in page
    assert output.count(": it gave recovers: met") == output.count("- recovers: it gave recovers: met") == 1
    assert "- raises: **failed**" in output and "- fine: it gave fine: met" in output


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from gpu_parts import records

    return records


def test_results_of_other_code_settings_or_machines_are_not_gone_on_with(records: Any, tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    first = started(records, path, "1")
    assert first.missing is None
    first.plan(["a", "b", "c"])
    first.finish("a", {"result": 1})
    first.finish("b", {"error": "out of memory"})
    assert first.missing == ["c"]
    first.begin("c")
    assert first.blame("killed") and first.missing == [] and not first.blame("nothing is left")
    assert first.read()["units"]["c"] == {"error": "killed"}
    first.retry()
    assert first.missing == ["b", "c"]
    assert started(records, path, "1").missing == ["b", "c"]
    assert started(records, path, "2").missing is None
    first.start(again=True)
    assert first.missing == ["a", "b", "c"]


def test_nothing_is_written_over_before_a_unit_has_ended(records: Any, tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    first = started(records, path, "1")
    first.plan(["a", "b"])
    first.finish("a", {"result": 1})
    path.with_suffix(".md").write_text("the page")
    before = path.read_text()
    first.start(again=True)
    other = started(records, path, "2")
    other.plan(["a"])
    other.begin("a")
    assert path.read_text() == before
    other.finish("a", {"error": "out of memory"})
    assert other.read()["units"] == {"a": {"error": "out of memory"}}
    assert (tmp_path / "part.earlier.json").read_text() == before
    assert (tmp_path / "part.earlier.md").read_text() == "the page"
    started(records, path, "3").finish("a", {"result": 3})
    assert (tmp_path / "part.earlier.json").read_text() == before


def test_a_result_outlives_a_later_failure(records: Any, tmp_path: Path) -> None:
    record = started(records, tmp_path / "part.json", "1")
    record.plan(["a"])
    record.finish("a", {"result": 1})
    record.start(again=True)
    record.finish("a", {"error": "out of memory"})
    assert record.read()["units"]["a"] == {"result": 1, "later error": "out of memory"}
    record.retry()
    assert record.missing == ["a"]


def test_a_process_that_ends_between_units_leaves_a_trace(records: Any, tmp_path: Path) -> None:
    record = started(records, tmp_path / "part.json", "1")
    record.plan(["a", "b"])
    record.finish("a", {"result": 1})
    assert record.blame("the process ended with -9")
    assert record.read()["units"]["start of the process"] == {"error": "the process ended with -9"}
    assert record.missing == []
    record.retry()
    assert record.missing == ["b"]
    record.finish("b", {"result": 2})
    assert list(record.read()["units"]) == ["a", "b"]


def test_a_slow_file_of_tests_costs_no_other(records: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_parts import marked_tests
    from gpu_parts.settings import Settings

    (tmp_path / "test_fast.py").write_text("import pytest\n@pytest.mark.gpu\ndef test(): pass\n")
    (tmp_path / "test_slow.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(marked_tests, "FOLDER", tmp_path)
    monkeypatch.setattr(marked_tests, "_groups", lambda files, settings: [[file] for file in files])
    kept: list[list[str]] = []
    settings = Settings(
        "cpu", keep=lambda found: kept.append(list(found["files"])), until=time.time() + marked_tests.MARGIN + 12
    )
    files = marked_tests.measure(settings)["files"]
    assert files["test_fast.py"]["passed"] and not files["test_slow.py"]["passed"]
    assert "stopped after" in files["test_slow.py"]["output"]
    assert kept == [["test_fast.py"], ["test_fast.py", "test_slow.py"]]


def test_every_kind_of_device_has_a_folder_of_its_own(records: Any) -> None:
    from gpu_parts.settings import Settings, folder_name

    names = {
        folder_name(Settings("cuda"), {"device": "NVIDIA H100 80GB HBM3"}),
        folder_name(Settings("cuda"), {"device": "NVIDIA H200"}),
        folder_name(Settings("cpu"), {"device": "x86_64"}),
    }
    assert names == {"nvidia-h100-80gb-hbm3", "nvidia-h200", "rehearsal"}


def started(records: Any, path: Path, code: str) -> Any:
    record = records.Record(path, {"code": code})
    record.start(again=False)
    return record


def test_the_code_of_a_part_is_not_that_of_another(records: Any) -> None:
    codes = [records.code_of(part.name) for part in records.PARTS]
    assert len(set(codes)) == len(codes) and codes == [records.code_of(part.name) for part in records.PARTS]
