"""A response that runs: its timeouts, heartbeats, back pressure and ends, against times that the test hands to it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from proxy.errors import UpstreamUnreachableError
from proxy.model import Ending
from proxy.protocol.sse_observer import PING
from tests.relay.one_client import HEAD, LAST, NO_TIMEOUTS, OneRelay, error_event, turns

if TYPE_CHECKING:
    from proxy.relay.response import Framing, RelayResponse
    from proxy.relay.timeouts import StreamTimeouts

EVENT = b"data: one\n\n"
CHUNK = b"b\r\n" + EVENT + b"\r\n"
PING_CHUNK = b"%x\r\n%b\r\n" % (len(PING), PING)
# Far behind what the loop's clock may say: what it says is no part of the test.
LATER_S = 1e9


def timeouts(**changes: float) -> StreamTimeouts:
    return NO_TIMEOUTS._replace(**changes)


def ending_of(response: RelayResponse) -> Ending | None:
    """Its ending at the moment: not narrowed by what a test has asserted before."""
    return response.ending


def error_chunk(code: str) -> bytes:
    event = error_event(code, "")
    return b"%x\r\n%b\r\n" % (len(event), event)


@pytest.fixture
async def one() -> OneRelay:
    return OneRelay()


# What runs out of time.


@pytest.mark.parametrize(
    ("changes", "ending", "code"),
    [
        pytest.param({"idle_s": 5.0}, Ending.TIMEOUT_IDLE, "upstream_timeout", id="idle"),
        pytest.param({"deadline_s": LATER_S + 5.0}, Ending.TIMEOUT_TOTAL, "upstream_timeout", id="total"),
    ],
)
async def test_timeout_of_upstream(one: OneRelay, changes: dict[str, float], ending: Ending, code: str) -> None:
    """It fires at its time and no sooner: the client is told in an event, and the body lacks its end."""
    response = await one.begin(HEAD + CHUNK, timeouts=timeouts(**changes))
    response.check(LATER_S)
    response.check(LATER_S + 4.99)
    assert ending_of(response) is None

    response.check(LATER_S + 5.0)

    assert await one.end() is ending
    assert one.client.body == CHUNK + error_chunk(code)
    assert one.vendor.is_closed
    assert not response.is_whole


async def test_idle_timeout_restarts(one: OneRelay) -> None:
    """Any byte of the upstream's begins it anew, an event of the fast path as well as any other."""
    response = await one.begin(HEAD + CHUNK, timeouts=timeouts(idle_s=5.0))
    for now_s, read in ((LATER_S, CHUNK), (LATER_S + 4, CHUNK), (LATER_S + 8, b"5\r\n: on\n\r\n")):
        response.check(now_s)
        one.hear(read)
    response.check(LATER_S + 12)
    response.check(LATER_S + 16)
    assert ending_of(response) is None

    response.check(LATER_S + 17)

    assert await one.end() is Ending.TIMEOUT_IDLE


async def test_no_timeouts(one: OneRelay) -> None:
    """What is off never fires."""
    response = await one.begin(HEAD + CHUNK)
    response.check(LATER_S)
    response.check(LATER_S * 2)
    assert ending_of(response) is None
    one.hear(LAST)
    assert await one.end() is Ending.COMPLETE


async def test_write_timeout(one: OneRelay) -> None:
    """A client that takes nothing is given up: the connection is aborted, and nothing more is written."""
    response = await one.begin(HEAD + CHUNK, timeouts=timeouts(write_s=5.0, idle_s=1.0))
    one.client.fall_behind(unsent=1000)
    one.hear(CHUNK)
    await turns()
    response.check(LATER_S)
    one.client.wire.unsent = 999  # any byte is progress
    response.check(LATER_S + 4)
    response.check(LATER_S + 8.99)
    # The upstream is not idle: it is not read.
    assert ending_of(response) is None

    response.check(LATER_S + 9)

    assert ending_of(response) is Ending.TIMEOUT_WRITE
    assert one.client.wire.is_closed
    assert one.client.body == CHUNK + CHUNK
    one.client.protocol.connection_lost(None)
    await one.end()


async def test_total_timeout_of_a_client_that_is_behind(one: OneRelay) -> None:
    """The total timeout counts while the client does not read, too."""
    response = await one.begin(HEAD + CHUNK, timeouts=timeouts(deadline_s=LATER_S + 5))
    one.client.fall_behind()
    one.hear(CHUNK)
    await turns()
    response.check(LATER_S)
    assert ending_of(response) is None

    response.check(LATER_S + 5)

    assert ending_of(response) is Ending.TIMEOUT_TOTAL
    one.client.catch_up()
    assert await one.end() is Ending.TIMEOUT_TOTAL


# Heartbeats.


async def test_heartbeat(one: OneRelay) -> None:
    """A silent stream has a comment at each interval, as a chunk of its own; it is not counted as the upstream's."""
    response = await one.begin(HEAD + CHUNK, timeouts=timeouts(heartbeat_s=5.0))
    for now_s in (LATER_S, LATER_S + 4.9, LATER_S + 5, LATER_S + 9.9, LATER_S + 10):
        response.check(now_s)
    one.hear(LAST)

    assert await one.end() is Ending.COMPLETE
    assert one.client.body == CHUNK + PING_CHUNK * 2 + LAST
    assert (response.sent, response.events) == (len(EVENT), 1)


@pytest.mark.parametrize(
    ("reads", "framing"),
    [
        pytest.param((HEAD,), "chunked", id="before the first byte, which may be a byte order mark"),
        pytest.param((HEAD + b"8\r\ndata: ha\r\n",), "chunked", id="within an event"),
        pytest.param((HEAD + CHUNK,), "close", id="where the response has no chunks"),
    ],
)
async def test_heartbeat_is_not_written(one: OneRelay, reads: tuple[bytes, ...], framing: Framing) -> None:
    """Nor where it would damage the stream."""
    response = await one.begin(*reads, timeouts=timeouts(heartbeat_s=5.0), framing=framing)
    before = one.client.wire.written
    response.check(LATER_S)
    response.check(LATER_S + 100)
    assert one.client.wire.written == before
    response.finish(Ending.CLIENT_CLOSED)
    await one.end()


async def test_heartbeat_does_not_hide_silence(one: OneRelay) -> None:
    """Our own comments are no sign of life of the upstream's."""
    response = await one.begin(HEAD + CHUNK, timeouts=timeouts(heartbeat_s=1.0, idle_s=3.0))
    for second in range(4):
        response.check(LATER_S + second)
    assert await one.end() is Ending.TIMEOUT_IDLE
    assert one.client.body == CHUNK + PING_CHUNK * 2 + error_chunk("upstream_timeout")


# Back pressure.


async def test_client_that_falls_behind(one: OneRelay) -> None:
    """While the client has something to take, the upstream is not read; then it is read again."""
    response = await one.begin(HEAD + CHUNK)
    seen = [one.vendor.is_reading]
    one.client.fall_behind()
    one.hear(CHUNK)
    seen.append(one.vendor.is_reading)
    await turns()
    seen.append(one.vendor.is_reading)

    one.client.catch_up()
    await turns()

    assert [*seen, one.vendor.is_reading] == [True, False, False, True]
    one.hear(CHUNK + LAST)
    assert await one.end() is Ending.COMPLETE
    assert one.client.body == CHUNK * 3 + LAST
    assert response.events == 3


# Ends.


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        (Ending.DRAINED, "draining"),
        (Ending.STOPPED, "stopped"),
        (Ending.UPSTREAM_CLOSED, "upstream_unreachable"),
        (Ending.TIMEOUT_IDLE, "upstream_timeout"),
        (Ending.TIMEOUT_TOTAL, "upstream_timeout"),
    ],
)
async def test_finish(one: OneRelay, ending: Ending, code: str) -> None:
    """It ends a stream between two events with one that says why, once; the vendor's connection is closed."""
    response = await one.begin(HEAD + CHUNK)

    response.finish(ending)
    response.finish(Ending.STOPPED)

    assert one.vendor.is_closed
    assert await one.end() is ending
    assert one.client.body == CHUNK + error_chunk(code)
    assert response.keep_alive is False


async def test_finish_within_an_event(one: OneRelay) -> None:
    """An event of the upstream's is not touched: its body breaks off without a word."""
    response = await one.begin(HEAD + CHUNK + b"8\r\ndata: ha\r\n")
    before = one.client.body
    response.finish(Ending.STOPPED)
    assert await one.end() is Ending.STOPPED
    assert one.client.body == before
    assert response.keep_alive is False


@pytest.mark.parametrize("ending", [Ending.CLIENT_CLOSED, Ending.TIMEOUT_WRITE])
async def test_finish_of_client_that_is_gone(one: OneRelay, ending: Ending) -> None:
    """It is told nothing."""
    response = await one.begin(HEAD + CHUNK)
    response.finish(ending)
    assert await one.end() is ending
    assert one.client.body == CHUNK
    assert one.client.wire.is_closed


async def test_finish_without_chunks(one: OneRelay) -> None:
    """Where only the connection's end marks the body's (HTTP/1.0), it is aborted: an orderly end would look whole."""
    response = await one.begin(HEAD + CHUNK, framing="close")
    response.finish(Ending.DRAINED)
    assert one.client.wire.is_closed
    assert one.client.body == EVENT
    await one.end()


async def test_end_comes_once(one: OneRelay) -> None:
    """After a body's end nothing changes it: neither a timer, nor a stop, nor the upstream's connection."""
    response = await one.begin(HEAD + CHUNK, timeouts=timeouts(idle_s=1.0))
    one.hear(LAST)
    response.check(LATER_S)
    response.check(LATER_S + 100)
    response.finish(Ending.STOPPED)
    response.failed(UpstreamUnreachableError(reason="closed"))
    response.body(b"more")
    assert await one.end() is Ending.COMPLETE
    await response.write_eof()
    assert one.client.body == CHUNK + LAST
    assert response.failure_reason is None


async def test_upstream_breaks_off(one: OneRelay) -> None:
    """The reason is kept for the log; the client is told the same of every break."""
    response = await one.begin(HEAD + CHUNK)
    one.connection.connection_lost(ConnectionResetError())
    assert await one.end() is Ending.UPSTREAM_CLOSED
    assert response.failure_reason == "reset"
    assert one.client.body == CHUNK + error_chunk("upstream_unreachable")


async def test_client_that_left(one: OneRelay) -> None:
    """Its closed connection is found by the next event; the upstream's is closed with it."""
    response = await one.begin(HEAD + CHUNK)
    one.client.wire.is_closed = True
    one.hear(CHUNK)
    assert ending_of(response) is Ending.CLIENT_CLOSED
    assert one.vendor.is_closed
    await one.end()


async def test_client_that_left_a_silent_stream(one: OneRelay) -> None:
    """Without any event it is found by the timers, for runners that do not cancel."""
    response = await one.begin(HEAD + CHUNK)
    one.client.wire.is_closed = True
    response.check(LATER_S)
    assert ending_of(response) is Ending.CLIENT_CLOSED
    assert one.vendor.is_closed
    await one.end()


async def test_cancelled(one: OneRelay) -> None:
    """Cancelling the handler closes the upstream's connection before it has ended."""
    response = await one.begin(HEAD + CHUNK)
    one.running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await one.running
    assert ending_of(response) is Ending.CLIENT_CLOSED
    assert one.vendor.is_closed
    assert one.timers.watched_count == 0
    one.timers.close()


@pytest.mark.parametrize(("status", "ending"), [(200, Ending.COMPLETE), (500, Ending.UPSTREAM_ERROR)])
async def test_ending_of_a_whole_body(one: OneRelay, status: int, ending: Any) -> None:
    """Whether a response that came whole was an error is told by its status."""
    await one.begin(HEAD + CHUNK, status=status)
    one.hear(LAST)
    assert await one.end() is ending
    assert one.timers.watched_count == 0
