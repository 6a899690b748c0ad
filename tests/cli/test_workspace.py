"""Finished steps are read back only where nothing has changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from branchnet.errors import BranchnetError, DataError
from branchnet.inference import Latency, LatencyTable
from branchnet.pipeline import distillation_steps
from branchnet.pipeline.network_timing import load_seconds
from branchnet.pipeline.search_inputs import read_latency
from branchnet.pipeline.workspace import Workspace, load_json, save_json
from tests.damage import damaged


def step(folder: Path, inputs: object, value: int, log: list[str]) -> int:
    def make(unfinished: Path) -> int:
        log.append("made")
        return value

    result: int = Workspace(folder, quiet=True).step("a.json", inputs, make=make, save=save_json, load=load_json)
    return result


def test_a_step_is_made_once_for_equal_inputs(tmp_path: Path) -> None:
    log: list[str] = []
    assert [step(tmp_path, {"x": 1}, 5, log), step(tmp_path, {"x": 1}, 6, log)] == [5, 5]
    assert step(tmp_path, {"x": 2}, 7, log) == 7
    assert log == ["made", "made"]


def test_a_damaged_result_is_made_again(tmp_path: Path) -> None:
    log: list[str] = []
    step(tmp_path, 1, 5, log)
    (tmp_path / ".steps" / "a.json").write_text("6")
    assert step(tmp_path, 1, 5, log) == 5
    assert log == ["made", "made"]


def test_an_unfinished_state_is_kept_for_the_same_inputs_only(tmp_path: Path) -> None:
    def interrupted(unfinished: Path) -> int:
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text("half")
        raise KeyboardInterrupt

    def resumed(unfinished: Path) -> int:
        return int(unfinished.exists())

    workspace = Workspace(tmp_path, quiet=True)
    for inputs, expected in ((1, 1), (2, 0)):
        with pytest.raises(KeyboardInterrupt):
            workspace.step("b.json", 1, make=interrupted, save=save_json, load=load_json)
        assert workspace.step("b.json", inputs, make=resumed, save=save_json, load=load_json) == expected
        (tmp_path / ".steps" / "b.json").unlink()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b"null", b'["a"]', b"{}"])
def test_a_damaged_record_makes_the_step_again(tmp_path: Path, content: bytes) -> None:
    log: list[str] = []
    step(tmp_path, 1, 5, log)
    record = tmp_path / ".steps" / "a.json.json"
    whole = record.read_bytes()
    record.write_bytes(content)
    assert step(tmp_path, 1, 5, log) == 5
    assert log == ["made", "made"]
    assert record.read_bytes() == whole


def test_a_result_that_cannot_be_read_back_is_made_again(tmp_path: Path) -> None:
    """Its record certifies it: it was written so by another version, or by someone else."""
    log: list[str] = []
    step(tmp_path, 1, 5, log)
    content, record = b"no JSON", tmp_path / ".steps" / "a.json.json"
    (tmp_path / ".steps" / "a.json").write_bytes(content)
    record.write_text(json.dumps([json.loads(record.read_text())[0], hashlib.sha256(content).hexdigest()]))
    assert step(tmp_path, 1, 5, log) == 5
    assert log == ["made", "made"]


def test_the_record_certifies_what_was_written_not_what_lies_there(tmp_path: Path) -> None:
    """Another process that replaces the file between its writing and its record is not certified."""
    log: list[str] = []
    real = Path.replace

    def replaced(self: Path, target: Path) -> Path:
        done = real(self, target)
        if target.name == "a.json":
            target.write_text("6")
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replaced)
        step(tmp_path, 1, 5, log)
    assert (tmp_path / ".steps" / "a.json").read_text() == "6"
    assert step(tmp_path, 1, 5, log) == 5
    assert log == ["made", "made"]


_OTHER = """
import sys, time
from pathlib import Path
from branchnet.pipeline.workspace import Workspace, load_json, save_json

def make(unfinished):
    print("locked", flush=True)
    time.sleep(60)

with Workspace(sys.argv[1], quiet=True) as workspace:
    workspace.step("slow.json", 1, make=make, save=save_json, load=load_json)
"""


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", _OTHER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(DataError, match=f"another run is writing into {re.escape(str(tmp_path))}; expected one"):
            step(tmp_path, 1, 5, [])
        assert step(tmp_path / "elsewhere", 1, 5, []) == 5
    finally:
        other.kill()
        other.communicate()
    assert step(tmp_path, 1, 5, []) == 5


def test_a_folder_is_free_again_after_the_context(tmp_path: Path) -> None:
    with Workspace(tmp_path, quiet=True) as workspace:
        assert not list(tmp_path.iterdir())
        workspace.step("a.json", 1, make=lambda _: 1, save=save_json, load=load_json)
        with pytest.raises(DataError, match="another run"):
            step(tmp_path, 1, 1, [])
    assert step(tmp_path, 1, 1, []) == 1


_KILLED = """
import os, signal, sys
from branchnet.utils.files import atomic_write

with atomic_write(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_temporaries_of_killed_runs_are_removed_by_the_next(tmp_path: Path) -> None:
    for path in (tmp_path / "metrics.json", tmp_path / ".steps" / "b.safetensors"):
        subprocess.run([sys.executable, "-c", _KILLED, str(path)], check=False)
    assert len(list(tmp_path.rglob(".branchnet-*"))) == 2
    (tmp_path / ".steps" / "b.safetensors.0.unfinished").write_text("of another step")
    step(tmp_path, 1, 5, [])
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock")
    assert left == ["a.json", "a.json.json", "b.safetensors.0.unfinished"]


@pytest.mark.parametrize("content", ["5", "[]", '{"eager": 1}', '{"eager": {"a": []}}', '{"eager": {"a": ["1"]}}', "{"])
def test_other_json_is_no_seconds_and_no_latency_table(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    for load in (load_seconds, read_latency):
        with pytest.raises(BranchnetError, match=r"a\.json"):
            load(tmp_path / "a.json")


def damaged_tables_are_refused(folder: Path, count: int) -> None:
    times = Latency((0.1, 0.2))
    table = LatencyTable(("a", "b"), ("x",), (1, 2), ((times, times),), ((None, times),), {"a": times, "b": times}, "")
    save_json(table.to_dict(), folder / "table.json")
    assert read_latency(folder / "table.json") == table
    for content in damaged((folder / "table.json").read_bytes(), count):
        (folder / "table.json").write_bytes(content)
        with suppress(BranchnetError):
            found = read_latency(folder / "table.json")
            assert len(found.costs) == len(found.locations) and len(found.head_costs) == len(found.tasks)
            assert "milliseconds" in str(found)


def damaged_steps_are_made_again(folder: Path, count: int) -> None:
    step(folder, 1, 5, [])
    for name in ("a.json", "a.json.json"):
        for content in damaged((folder / ".steps" / name).read_bytes(), count):
            (folder / ".steps" / name).write_bytes(content)
            assert step(folder, 1, 5, []) == 5


def test_damaged_files_raise_only_our_errors(tmp_path: Path) -> None:
    damaged_tables_are_refused(tmp_path, 500)
    damaged_steps_are_made_again(tmp_path, 30)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands_of_damaged_files_raise_only_our_errors(tmp_path: Path) -> None:
    damaged_tables_are_refused(tmp_path, 5000)
    damaged_steps_are_made_again(tmp_path, 5000)


def test_an_unfinished_state_stays_until_the_result_is_saved(tmp_path: Path) -> None:
    def make(unfinished: Path | None) -> int:
        assert unfinished is not None
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text("all steps")
        return 1

    def fails(value: int, path: Path) -> None:
        raise OSError(28, "No space left on device")

    workspace = Workspace(tmp_path, quiet=True)
    with pytest.raises(OSError, match="No space"):
        workspace.step("value.json", 1, make=make, save=fails, load=load_json)
    assert len(list(tmp_path.rglob("*.unfinished"))) == 1
    workspace.step("value.json", 1, make=make, save=save_json, load=load_json)
    assert not list(tmp_path.rglob("*.unfinished"))


def test_all_files_of_an_unfinished_state_stay_for_the_same_inputs_and_go_with_others(tmp_path: Path) -> None:
    """The stitches are trained into a file of their own."""

    def interrupted(unfinished: Path | None) -> int:
        assert unfinished is not None
        distillation_steps._first_checkpoint(unfinished).touch()
        raise KeyboardInterrupt

    def found(_: Path | None) -> int:
        return len(list(tmp_path.rglob("*stitches*")))

    workspace = Workspace(tmp_path, quiet=True)
    for inputs, expected in ((1, 1), (2, 0)):
        with pytest.raises(KeyboardInterrupt):
            workspace.step("b.json", 1, make=interrupted, save=save_json, load=load_json)
        assert workspace.step("b.json", inputs, make=found, save=save_json, load=load_json) == expected
        (tmp_path / ".steps" / "b.json").unlink()
