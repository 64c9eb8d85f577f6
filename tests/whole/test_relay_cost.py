"""What an event may cost: calls, not time, so that the same code gives the same figures on every machine.

Calls of Python functions are counted, the proxy's and those of the libraries that it would call for it; not which they
are, so that the code may take any shape that costs no more.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import aiohttp

import proxy as package
from tests.peers import LAST, Upstream, chunk, event
from tests.whole.scenes import begin, check_settled

if TYPE_CHECKING:
    from types import FrameType

    from tests.conftest import Running

COUNTED = (str(Path(package.__file__).parent), str(Path(aiohttp.__file__).parent))
EVENTS = 50
# More than this for an event in a chunk of its own means a parser, a task's turn or a queue between the two sockets.
# The timers' ticks may fall into the count: four a second, each a few calls.
# One call of each looks for usage, and of an event now and then for how much text it has.
CALLS_PER_EVENT = 8
# A read of many events: what the parser, the observer and the relay cost once, whatever their number.
CALLS_PER_READ = 20
MANY = 200


class Calls:
    """Counts the calls of Python functions of the proxy and of aiohttp."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        sys.setprofile(self._seen)
        return self

    def __exit__(self, *_exc: object) -> None:
        sys.setprofile(None)

    def _seen(self, frame: FrameType, kind: str, _arg: Any) -> None:
        self.count += kind == "call" and frame.f_code.co_filename.startswith(COUNTED)


async def calls_of(proxy: Running, upstream: Upstream, *reads: tuple[bytes, bytes], events: int) -> int:
    """The calls that it takes to relay these reads, each written once the one before has arrived whole."""
    client, vendor, _ = await begin(proxy, upstream, first=event("first"))
    with Calls() as calls:
        for read, last in reads:
            vendor.write(read)
            await client.read_until(last + b"\r\n")
    vendor.write(LAST)
    await client.read_until(LAST)
    await check_settled(proxy, "complete", events=events + 1)
    return calls.count


async def test_calls_of_an_event(proxy: Running, upstream: Upstream) -> None:
    """An event in a chunk of its own passes in a handful of calls, not through parsers, tasks or queues."""
    reads = [(chunk(event(f"event {number}")), event(f"event {number}")) for number in range(EVENTS)]
    calls = await calls_of(proxy, upstream, *reads, events=EVENTS)
    assert EVENTS <= calls <= EVENTS * CALLS_PER_EVENT


async def test_calls_of_a_named_event(proxy: Running, upstream: Upstream) -> None:
    """So does one with a name, as Anthropic sends them."""
    named = b"event: content_block_delta\ndata: {}\n\n"
    calls = await calls_of(proxy, upstream, *[(chunk(named), named)] * EVENTS, events=EVENTS)
    assert EVENTS <= calls <= EVENTS * CALLS_PER_EVENT


async def test_calls_of_a_read_of_many_events(proxy: Running, upstream: Upstream) -> None:
    """However many events a read brings, no function runs for each."""
    many = b"".join(chunk(event(f"event {number}")) for number in range(MANY))
    calls = await calls_of(proxy, upstream, (many, event(f"event {MANY - 1}")), events=MANY)
    # One read, or two where the system cuts it.
    assert calls <= 2 * CALLS_PER_READ
