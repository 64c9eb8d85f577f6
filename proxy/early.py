"""The early answer: 200 and heartbeats while a vendor is still silent, and what then becomes of the vendor's answer.

Reasoning models think for minutes before they send a head, and what stands between cuts silent connections after one.
The price is the vendor's status and fields: they come too late to be passed on, so whatever goes wrong from here on is
told in the stream. Only for requests whose answer is an event stream, and only where the operator asks for it, but for
tickets, whose answers are always 200.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import orjson

from proxy.answering import early_head
from proxy.dialects import DIALECTS
from proxy.dialects.stream_request import asks_for_stream
from proxy.dialects.typed.reader import UNKNOWN_CODE, Failure, UnreadableError
from proxy.errors import UpstreamProtocolError, UpstreamTimeoutError
from proxy.exchange import Ending
from proxy.protocol.chunks import one_chunk
from proxy.protocol.sse import BYTE_ORDER_MARK, PING, is_event_stream
from proxy.replies import break_off, refuse

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from proxy.call import Call
    from proxy.errors import ProxyError
    from proxy.exchange import Route
    from proxy.phases.answer import Settled
    from proxy.protocol.json_text import Steps
    from proxy.upstream.answer import Answer
    from proxy.upstream.lane import Lane

# For tickets where no heartbeat is configured: below the 60 s after which common balancers cut.
TICKET_INTERVAL_S: Final = 15.0
# How much of a vendor's error is read to be told in the stream, and for how long.
MAX_ERROR_BYTES: Final = 16 * 1024
_ERROR_S: Final = 5.0


def early_interval_s(call: Call, route: Route) -> Steps[float | None]:
    """After how much silence the client's answer begins without the vendor's, and is kept alive; None for never."""
    if not (call.is_in_band or (call.rules.early_heartbeat and route.heartbeat_s is not None)):
        return None
    # A client of HTTP/1.0 could not be told that an answer breaks off.
    if call.is_old or not DIALECTS[route.dialect].heartbeat_allowed:
        return None
    if call.is_in_band:
        return route.heartbeat_s or TICKET_INTERVAL_S
    asks = yield from asks_for_stream(route.dialect, route.method, route.fields, route.body)
    return route.heartbeat_s if asks else None


async def reach(
    call: Call, route: Route, connecting: Coroutine[Any, Any, Answer], *, interval_s: float, deadline_s: float | None
) -> Answer | Settled:
    """Await the vendor's answer, and keep the client's alive meanwhile.

    Where the vendor is in time, its answer is as if nobody had waited. Where it is not, and the answer is no event
    stream, the client is told what it is, and its exchange is settled. Cancelling closes the upstream's connection
    before it is passed on.

    Raises:
        ProxyError: as `connect` does; an early answer may have begun.
        UpstreamProtocolError: a stream that was to follow heartbeats is compressed.
        UpstreamTimeoutError: the answer's body did not begin before `idle` or `total` was over.
    """
    task = asyncio.get_running_loop().create_task(connecting)
    try:
        await _wait(call, route, task, interval_s)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            task.result().abort()
        raise
    given = task.result()
    if call.early_target is None:
        return given
    try:
        if _is_stream(given):
            await _await_first_bytes(call, route, given, interval_s, deadline_s)
            return given
        return given if call.is_in_band else await _tell(call, route, given)
    except BaseException:
        given.abort()
        raise


async def _wait(
    call: Call, route: Route, waited: asyncio.Future[Any], interval_s: float, *, ends_s: float | None = None
) -> None:
    """Wait for a future, for ever or until `ends_s`, with a heartbeat at each interval."""
    now = asyncio.get_running_loop().time
    while not waited.done():
        left_s = interval_s if ends_s is None else min(interval_s, ends_s - now())
        if left_s <= 0:
            return
        done, _ = await asyncio.wait([waited], timeout=left_s)
        if not done and (ends_s is None or now() < ends_s):
            _beat(call, route)


def _beat(call: Call, route: Route) -> None:
    """Begin the answer, or keep it alive; not for a client that is behind, nor for one that is gone."""
    transport = call.client.transport
    if transport is None or transport.is_closing():
        return
    if call.early_target is None:
        call.early_target = route.target
        call.typed_names = route.typed_names
        call.exchange.status = 200
        transport.write(early_head(call) + one_chunk(PING))
    elif transport.get_write_buffer_size() == 0:
        transport.write(one_chunk(PING))


def _is_stream(given: Answer) -> bool:
    is_success = 200 <= given.status < 300  # noqa: PLR2004 - RFC 9110 §15.3
    return is_success and given.framing != "none" and is_event_stream(given.index.single(b"content-type"))


async def _await_first_bytes(
    call: Call, route: Route, given: Answer, interval_s: float, deadline_s: float | None
) -> None:
    """Wait for the stream's first bytes, and take a byte order mark off: it may stand at the very beginning only.

    Raises:
        UpstreamProtocolError: they are compressed: heartbeats are not.
        UpstreamTimeoutError: they did not come before `idle` or `total` was over.
    """
    if _is_encoded(given):
        raise UpstreamProtocolError("The upstream compressed its stream, which has begun uncompressed.")
    loop = asyncio.get_running_loop()
    begin = _Body(given, enough=len(BYTE_ORDER_MARK))
    idle_s = route.timeouts.idle_s
    ends = [] if idle_s is None else [(loop.time() + idle_s, "idle")]
    ends_s, clock = min(ends if deadline_s is None else [*ends, (deadline_s, "total")], default=(None, "idle"))
    await _wait(call, route, begin.done, interval_s, ends_s=ends_s)
    if not begin.done.done():
        raise UpstreamTimeoutError("idle" if clock == "idle" else "total")
    given.sink = None
    given.held = bytes(begin.data).removeprefix(BYTE_ORDER_MARK)


async def _tell(call: Call, route: Route, given: Answer) -> Settled:
    """Tell in the stream what the vendor has answered instead of one, in its own words where they can be read."""
    if given.status < 400:  # noqa: PLR2004 - RFC 9110 §15: the error classes
        given.abort()
        return refuse(call, UpstreamProtocolError("The upstream's answer is no event stream."))
    value: object = None
    if not _is_encoded(given):
        body = _Body(given, enough=MAX_ERROR_BYTES)
        await asyncio.wait([body.done], timeout=_ERROR_S)
        with contextlib.suppress(orjson.JSONDecodeError):
            value = orjson.loads(body.data) if len(body.data) <= MAX_ERROR_BYTES else None
    given.abort()
    call.exchange.ending = Ending.UPSTREAM_ERROR
    dialect = DIALECTS[route.dialect]
    failure = Failure(UNKNOWN_CODE, f"The upstream answered with status {given.status}.")
    event = None
    if isinstance(value, dict):
        failure = _failure(route, value) or failure
        event = dialect.vendor_error_event(given.status, value)
    return break_off(call, *failure, event=event or dialect.error_event(*failure, route.target))


def _failure(route: Route, value: dict[str, Any]) -> Failure | None:
    """What the vendor's error says, as the dialect's reader would understand it in a stream."""
    reader = DIALECTS[route.dialect].reader(b"")
    if reader is None:
        return None
    try:
        reader.read(b"error", value)
    except UnreadableError:
        return None
    return reader.failure


def _is_encoded(given: Answer) -> bool:
    encoding = given.index.single(b"content-encoding")
    return encoding is not None and encoding.strip().lower() not in {b"", b"identity"}


class _Body:
    """Takes an answer's body until it has enough of it, or all; then the upstream is not read.

    `done` is set then, and where the body breaks off.
    """

    lane: Lane | None = None

    def __init__(self, given: Answer, *, enough: int) -> None:
        self.data = bytearray()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._given = given
        self._enough = enough
        given.attach(self)
        if self.done.done():
            # `attach` lets the upstream be read, after it has given what was held.
            given.pause()

    def body(self, data: bytes, *, is_last: bool = False) -> None:
        self.data += data
        if is_last or len(self.data) >= self._enough:
            self._given.pause()
            self._finish()

    def failed(self, error: ProxyError) -> None:  # noqa: ARG002 - the answer keeps it for who takes the rest
        self._finish()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
