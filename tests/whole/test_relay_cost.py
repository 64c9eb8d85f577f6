"""What an event may cost: calls, not time, so that the same code gives the same figures on every machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import proxy as package
from tests.peers import LAST, Upstream, chunk, event
from tests.whole.scenes import begin, check_settled

if TYPE_CHECKING:
    from types import FrameType

    from tests.conftest import Running

OURS = str(Path(package.__file__).parent)
EVENTS = 50
# The lane's one call. A tick of the clocks may fall into the count: four of them a second, each a few calls.
CALLS_PER_EVENT = 1.5
# A read of many events: what the parser, the observer and the relay cost once, whatever their number.
CALLS_PER_READ = 40
# The length before and after the two cuts, and no more (but for that tick); the write is the transport's.
C_CALLS_PER_EVENT = 5


class Calls:
    """Counts the calls of the proxy's own functions, and those that they make into C."""

    def __init__(self) -> None:
        self.python = 0
        self.c = 0

    def __enter__(self) -> Self:
        sys.setprofile(self._seen)
        return self

    def __exit__(self, *_exc: object) -> None:
        sys.setprofile(None)

    def _seen(self, frame: FrameType, kind: str, _arg: Any) -> None:
        if frame.f_code.co_filename.startswith(OURS):
            self.python += kind == "call"
            self.c += kind == "c_call"


async def test_event_costs_one_call(proxy: Running, upstream: Upstream) -> None:
    """An event in a chunk of its own passes in one call, not through the parser, the relay and the observer."""
    client, vendor, _ = await begin(proxy, upstream, first=event("first"))

    with Calls() as calls:
        for number in range(EVENTS):
            vendor.write(chunk(event(f"event {number}")))
            await client.read_until(event(f"event {number}") + b"\r\n")

    assert EVENTS <= calls.python <= EVENTS * CALLS_PER_EVENT
    assert calls.c <= EVENTS * C_CALLS_PER_EVENT
    vendor.write(LAST)
    await client.read_until(LAST)
    await check_settled(proxy, "complete", events=EVENTS + 1)


async def test_named_event_costs_little_more(proxy: Running, upstream: Upstream) -> None:
    """So does one with a name, as Anthropic sends them: one call more, to look at its two lines."""
    client, vendor, _ = await begin(proxy, upstream, first=event("first"))
    named = b"event: content_block_delta\ndata: {}\n\n"

    with Calls() as calls:
        for _ in range(EVENTS):
            vendor.write(chunk(named))
            await client.read_until(named + b"\r\n")

    assert calls.python <= EVENTS * (CALLS_PER_EVENT + 1)
    vendor.write(LAST)
    await client.read_until(LAST)
    await check_settled(proxy, "complete", events=EVENTS + 1)


async def test_read_of_many_events_costs_calls_once(proxy: Running, upstream: Upstream) -> None:
    """However many events a read brings, no function of ours runs for each."""
    client, vendor, _ = await begin(proxy, upstream, first=event("first"))
    many = b"".join(chunk(event(f"event {number}")) for number in range(200))

    with Calls() as calls:
        vendor.write(many)
        await client.read_until(event("event 199") + b"\r\n")

    # One read, or two where the system cuts it.
    assert calls.python <= 2 * CALLS_PER_READ
    vendor.write(LAST)
    await client.read_until(LAST)
    await check_settled(proxy, "complete", events=201)
