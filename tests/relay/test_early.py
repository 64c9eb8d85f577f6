"""After how much silence an answer begins early."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from proxy.early import TICKET_INTERVAL_S, early_interval_s

from proxy.model import Origin, Route, Timeouts
from tests.steps import finish

if TYPE_CHECKING:
    from proxy.routing.rules import Call


@pytest.mark.parametrize(
    ("is_in_band", "is_early", "heartbeat_s", "dialect", "interval_s"),
    [
        pytest.param(True, False, None, "openai", TICKET_INTERVAL_S, id="ticket"),
        pytest.param(True, False, 5.0, "openai", 5.0, id="ticket with a heartbeat"),
        pytest.param(True, True, None, "raw", TICKET_INTERVAL_S, id="ticket of a raw upstream"),
        pytest.param(True, True, None, "gemini", None, id="ticket of gemini"),
        pytest.param(False, True, 5.0, "openai", 5.0, id="stream"),
        pytest.param(False, True, None, "openai", None, id="stream without a heartbeat"),
        pytest.param(False, False, 5.0, "openai", None, id="stream where it is off"),
    ],
)
def test_early_interval_s(
    dialect: str, heartbeat_s: float | None, interval_s: float | None, *, is_in_band: bool, is_early: bool
) -> None:
    """A ticket's answer begins early always, any other where it is configured."""
    call = SimpleNamespace(is_old=False, is_in_band=is_in_band, rules=SimpleNamespace(early_heartbeat=is_early))
    origin = Origin("http", "vendor.example", 80)
    route = Route("main", dialect, origin, b"", Timeouts(), heartbeat_s, None, "POST", b"/", (), b'{"stream":true}')

    assert finish(early_interval_s(cast("Call", call), route)) == interval_s


def test_early_interval_of_tickets_is_below_what_balancers_wait() -> None:
    """Common balancers cut after 60 s."""
    assert TICKET_INTERVAL_S == 15
