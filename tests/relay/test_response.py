"""Which relays may be asked seldom: those without a short clock, a heartbeat of either kind included."""

from __future__ import annotations

from typing import Any, cast

import pytest
from proxy.phases.relay import Relay, StreamClocks
from proxy.phases.typed_relay import TypedRelay

from proxy.protocol.sse_observer import EventStreamObserver
from proxy.timers import LONG_S

NOW_S = 1000.0
SHORT_S = LONG_S - 0.001
NOBODY: Any = None


def plain(clocks: StreamClocks, *, framing: Any = "chunked") -> Relay:
    observer = EventStreamObserver()
    return Relay(NOBODY, NOBODY, b"", framing=framing, observer=observer, error_event=NOBODY, clocks=clocks)


def typed(clocks: StreamClocks, *, framing: Any = "chunked") -> Relay:
    return TypedRelay(NOBODY, NOBODY, NOBODY, b"", framing=framing, clocks=clocks)


@pytest.mark.parametrize("make", [plain, typed])
@pytest.mark.parametrize(
    ("clocks", "is_long"),
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
def test_relay_has_long_clocks(make: Any, clocks: tuple[float | None, ...], is_long: bool) -> None:
    """One short clock is enough to be asked at every tick."""
    relay = make(StreamClocks(NOW_S, *cast("tuple[Any, Any, Any, Any]", clocks)))
    assert relay.has_long_clocks is is_long


@pytest.mark.parametrize("make", [plain, typed])
def test_relay_that_cannot_have_a_heartbeat(make: Any) -> None:
    """A heartbeat that is never sent, as without chunks, makes nobody ask for it."""
    relay = make(StreamClocks(NOW_S, 120.0, 60.0, None, 15.0), framing="close")
    assert relay.has_long_clocks
