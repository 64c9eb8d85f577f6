"""Answers that come whole, head and body in one read: passed on at once, and in all else like those that come later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import token
from tests.peers import LAST, Upstream, chunk, event, request
from tests.whole.scenes import BODY, serves

if TYPE_CHECKING:
    from tests.conftest import Running

EVENTS = event("one") + event("two")
# What differs from request to request by itself.
OF_THE_MOMENT = {
    "date",
    "x-forward-sse-id",
    "ratelimit",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
}


def parts(status: int, framing: str, type_: str) -> tuple[bytes, bytes, bytes]:
    """An upstream's head, body without its end, and the body's end."""
    head = b"HTTP/1.1 %d X\r\nContent-Type: %b\r\n" % (status, type_.encode())
    if framing == "length":
        return head + b"Content-Length: %d\r\n\r\n" % len(EVENTS), EVENTS[:-1], EVENTS[-1:]
    return head + b"Transfer-Encoding: chunked\r\n\r\n", chunk(EVENTS), LAST


async def exchange(
    proxy: Running, upstream: Upstream, wire: tuple[bytes, bytes, bytes], version: bytes, *, at_once: bool
) -> tuple[Any, bytes]:
    """The head and the raw body that a client gets; its connection then serves another request, or is closed."""
    client = await proxy.client()
    client.write(request(body=BODY, token=token()).replace(b"HTTP/1.1", version, 1))
    vendor, _ = await upstream.take()
    vendor.write(b"".join(wire) if at_once else wire[0])
    answer = await client.read_head()
    if not at_once:
        vendor.write(wire[1] + wire[2])
    is_old = version == b"HTTP/1.0"
    if answer.get("transfer-encoding"):
        body = await client.read_until(LAST)
    else:
        body = await client.read_exactly(len(EVENTS))
    if is_old:
        assert await client.read_to_end() == b""
    else:
        client.write(request("/healthz", method="GET"))
        assert (await client.read_message()).status == 200
    await vendor.gone()
    fields = [(name, value) for name, value in answer.fields if name.lower() not in OF_THE_MOMENT]
    return (answer.start, fields), body


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
@pytest.mark.parametrize("type_", ["text/event-stream", "application/json"])
@pytest.mark.parametrize("framing", ["chunked", "length"])
@pytest.mark.parametrize("status", [200, 429])
async def test_whole_answer_is_like_any(
    proxy: Running, upstream: Upstream, status: int, framing: str, type_: str, version: bytes
) -> None:
    """Client, log and metrics cannot tell an answer that came in one read from one whose body came after its head."""
    wire = parts(status, framing, type_)
    at_once = await exchange(proxy, upstream, wire, version, at_once=True)
    in_pieces = await exchange(proxy, upstream, wire, version, at_once=False)
    once, later = await proxy.settled(2)

    assert at_once == in_pieces
    assert at_once[1] == (chunk(EVENTS) + LAST if (framing, version) == ("chunked", b"HTTP/1.1") else EVENTS)
    assert once["status"] == status
    assert once.keys() == later.keys()
    for line in (once, later):
        (attempt,) = line["attempts"]
        assert 0 <= attempt.pop("ms") <= line["duration_ms"]
    assert {name for name in once if once[name] != later[name]} <= {"id", "time", "ttfb_ms", "duration_ms"}
    assert once["ending"] == ("complete" if status == 200 else "upstream_error")
    assert (once["bytes"], once["events"]) == (len(EVENTS), 2 if type_ == "text/event-stream" else 0)
    assert 0 <= once["ttfb_ms"] <= once["duration_ms"]
    assert proxy.leases_held == 0
    metrics = proxy.service.metrics.render().decode()
    labels = f'ending="{once["ending"]}",status="{status}",upstream="main"'
    assert f"forward_sse_requests_total{{{labels}}} 2.0" in metrics
    assert 'forward_sse_time_to_first_byte_seconds_count{upstream="main"} 2.0' in metrics
    assert f'forward_sse_relayed_bytes_total{{upstream="main"}} {2.0 * len(EVENTS)}' in metrics
    assert 'forward_sse_active_streams{upstream="main"} 0.0' in metrics
    await serves(proxy)


async def test_whole_answer_keeps_the_upstream(proxy: Running, upstream: Upstream) -> None:
    """The upstream's connection goes back to the pool, and carries the next request."""
    wire = b"".join(parts(200, "chunked", "text/event-stream"))
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(wire)
    assert (await client.read_message()).body == EVENTS

    client.write(request(body=BODY, token=token()))
    await vendor.read_message()
    vendor.write(wire)

    assert (await client.read_message()).body == EVENTS
    assert [line["ending"] for line in await proxy.settled(2)] == ["complete"] * 2


async def test_whole_answer_of_one_write(proxy: Running, upstream: Upstream) -> None:
    """What came in one read leaves as one chunk, with its head before it and its end behind it."""
    head, _, last = parts(200, "chunked", "text/event-stream")
    client = await proxy.client()
    client.write(request(body=BODY, token=token()))
    vendor, _ = await upstream.take()
    vendor.write(head + chunk(event("one")) + chunk(event("two")) + last)

    answer = await client.read_message()

    assert answer.chunks == [EVENTS]
