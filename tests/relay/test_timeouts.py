"""Which responses may be asked seldom: those without a short timeout, the heartbeat included."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.relay.timeouts import StreamTimeouts
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
