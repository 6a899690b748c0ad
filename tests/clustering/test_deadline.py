"""A search's progress is drawn where it is asked for; time limits are kept."""

import pytest

from branchnet.clustering import search
from branchnet.clustering.deadline import Deadline, OutOfTime
from tests.clustering.toys import rsa_like_affinity


def test_progress_is_drawn_only_if_asked_for(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    for shown in (False, True):
        search(rsa_like_affinity(5, 2, 0), [1.0, 2.0], "60% params", progress=shown)
        captured = capfd.readouterr()
        assert captured.out == ""
        assert ("solving exactly" in captured.err) == shown


def test_steps_after_the_limit_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("branchnet.clustering.deadline.time.monotonic", lambda: now[0])
    deadline, free = Deadline(5.0), Deadline()
    now[0] = 104.9
    deadline.step()
    now[0] = 105.1
    free.step()
    with pytest.raises(OutOfTime, match="time limit"):
        deadline.step(0)


def test_the_time_left_is_bounded_and_never_negative() -> None:
    assert Deadline().left(5.0) == 5.0
    assert 0.0 < Deadline(100.0).left(1000.0) <= 100.0
    assert Deadline(100.0).left(5.0) == 5.0
    assert Deadline(0.0).left(5.0) == 0.0
