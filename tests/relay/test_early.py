"""After how much silence a response begins early."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from aiohttp import HttpVersion10, HttpVersion11
from aiohttp.test_utils import make_mocked_request

from proxy.model import DIRECT, Origin, Route, Timeouts
from proxy.relay.early import TICKET_INTERVAL_S, early_interval_s
from tests.steps import finish

if TYPE_CHECKING:
    from proxy.exchange import Exchange


def interval_s(
    *,
    is_in_band: bool = False,
    is_early: bool = True,
    heartbeat_s: float | None = 5.0,
    dialect: str = "openai",
    body: bytes = b'{"stream":true}',
    is_old: bool = False,
) -> float | None:
    request = make_mocked_request("POST", "/forward-sse", version=HttpVersion10 if is_old else HttpVersion11)
    exchange = SimpleNamespace(is_in_band=is_in_band, rules=SimpleNamespace(early_heartbeat=is_early))
    origin = Origin("http", "vendor.example", 80)
    route = Route("main", dialect, origin, b"", Timeouts(), heartbeat_s, DIRECT, False, "POST", b"/", (), body)
    return finish(early_interval_s(request, cast("Exchange", exchange), route))


@pytest.mark.parametrize(
    ("is_in_band", "is_early", "heartbeat_s", "dialect", "expected_s"),
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
async def test_early_interval_s(
    dialect: str, heartbeat_s: float | None, expected_s: float | None, *, is_in_band: bool, is_early: bool
) -> None:
    """A ticket's response begins early always, any other where it is configured."""
    told = interval_s(is_in_band=is_in_band, is_early=is_early, heartbeat_s=heartbeat_s, dialect=dialect)
    assert told == expected_s


@pytest.mark.parametrize("body", [b'{"stream":false}', b"{}", b"no JSON"])
async def test_early_interval_of_what_is_no_stream(body: bytes) -> None:
    """A response that is no event stream has a status, which must be the vendor's."""
    assert interval_s(body=body) is None


async def test_early_interval_of_old_clients() -> None:
    """A client of HTTP/1.0 could not be told that a response breaks off."""
    assert interval_s(is_old=True) is None
    assert interval_s(is_old=True, is_in_band=True) is None


def test_early_interval_of_tickets_is_below_what_balancers_wait() -> None:
    """Common balancers cut after 60 s."""
    assert TICKET_INTERVAL_S == 15
