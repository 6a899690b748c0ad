"""Files are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from branchnet.utils.files import atomic_write, remove_orphans, write_text


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a" / "file.txt"
    write_text(target, "old")
    with pytest.raises(KeyboardInterrupt), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_the_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_only_temporaries_are_orphans(tmp_path: Path) -> None:
    names = [".branchnet-a-x1.json", ".hidden", "branchnet-a.json"]
    for name in names:
        (tmp_path / name).write_text("x")
    (tmp_path / ".branchnet-folder").mkdir()
    remove_orphans(tmp_path, older_than=3600)
    assert (tmp_path / names[0]).exists()
    remove_orphans(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".branchnet-folder", *names[1:]]
    remove_orphans(tmp_path / "nowhere")
