"""Finished steps are read back only where nothing has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from branchnet.pipeline.workspace import Workspace, load_json, save_json


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
