"""When a running response has taken too long, and which may be asked seldom."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.model import Ending
from proxy.relay.timeouts import Progress, StreamTimeouts
from proxy.timers import LONG_S

NOW_S = 1000.0
SHORT_S = LONG_S - 0.001


@pytest.mark.parametrize(
    ("timeouts", "are_long"),
    [
        pytest.param((None, None, None, None), True, id="none"),
        pytest.param((120.0, 60.0, None, None), True, id="defaults"),
        pytest.param((LONG_S, LONG_S, NOW_S + LONG_S, LONG_S), True, id="just long"),
        pytest.param((SHORT_S, 60.0, None, None), False, id="idle"),
        pytest.param((120.0, SHORT_S, None, None), False, id="write"),
        pytest.param((120.0, 60.0, NOW_S + SHORT_S, None), False, id="total"),
        pytest.param((120.0, 60.0, None, 15.0), False, id="heartbeat"),
    ],
)
def test_are_long(timeouts: tuple[Any, Any, Any, Any], *, are_long: bool) -> None:
    """One short timeout is enough to be asked at every tick."""
    assert StreamTimeouts(*timeouts).are_long(NOW_S) is are_long


def test_progress_idle() -> None:
    """What was received begins the idle timeout anew, and so does a client that caught up."""
    progress = Progress(StreamTimeouts(10.0, None, None, None), NOW_S)
    assert progress.overdue(NOW_S + 9, 1, 0) is None
    assert progress.overdue(NOW_S + 18, 1, 0) is None
    assert progress.overdue(NOW_S + 19, 1, 0) is Ending.TIMEOUT_IDLE
    progress.resumed()
    assert progress.overdue(NOW_S + 28, 1, 0) is None


def test_progress_total() -> None:
    """Nothing postpones the end of the whole response."""
    progress = Progress(StreamTimeouts(None, None, NOW_S + 10, None), NOW_S)
    assert [progress.overdue(NOW_S + s, s, s) for s in (9, 10)] == [None, Ending.TIMEOUT_TOTAL]
    assert [progress.is_over(NOW_S + s) for s in (9, 10)] == [False, True]


def test_progress_write() -> None:
    """A client is stuck when no byte of what waits has left for that long; with nothing waiting it never is."""
    progress = Progress(StreamTimeouts(None, 10.0, None, None), NOW_S)
    progress.paused()
    looks = [(0, 100), (9, 100), (10, 99), (19, 99), (20, 99)]
    assert [progress.is_stuck(NOW_S + s, unsent) for s, unsent in looks] == [False, False, False, False, True]
    progress.paused()
    assert [progress.is_stuck(NOW_S + s, 0) for s in (21, 99)] == [False, False]


def test_progress_heartbeat() -> None:
    """One is wanted when nothing was written for its interval, itself included."""
    progress = Progress(StreamTimeouts(None, None, None, 10.0), NOW_S)
    assert [progress.overdue(NOW_S + 5, 0, 1), progress.wants_heartbeat(NOW_S + 14)] == [None, False]
    assert progress.wants_heartbeat(NOW_S + 15)
    progress.wrote(NOW_S + 15)
    assert [progress.wants_heartbeat(NOW_S + s) for s in (24, 25)] == [False, True]
