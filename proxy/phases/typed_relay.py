"""The relay of typed events: as the relay, but what is written is a translation of what the upstream sends.

It is the relay's other form, not another phase: the same callbacks, clocks and back pressure, and one read of the
upstream is still at most one write. Which answers are translated, and what becomes of their fields, is decided here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from proxy.clocks import LONG_S
from proxy.dialects import DIALECTS
from proxy.dialects.typed.translator import Translator
from proxy.errors import UpstreamProtocolError
from proxy.exchange import Ending
from proxy.phases.relay import BROKEN, LAST_CHUNK, Relay
from proxy.protocol.fields import fold, single, to_client
from proxy.protocol.sse import PING, is_event_stream

if TYPE_CHECKING:
    from proxy.errors import Field
    from proxy.exchange import Route
    from proxy.phases.relay import Framing, StreamClocks
    from proxy.upstream.answer import Answer

# RFC 9110 §7.7, §8: what describes the body that the upstream sent, not the one that the client gets.
_OF_THE_BODY = frozenset(
    {
        b"accept-ranges",
        b"content-digest",
        b"content-encoding",
        b"content-md5",
        b"content-range",
        b"content-type",
        b"digest",
        b"etag",
        b"last-modified",
        b"repr-digest",
    }
)
_CONTENT_TYPE: Field = (b"Content-Type", b"text/event-stream")


def begin_translation(route: Route, answer: Answer) -> Translator | None:
    """What translates the answer's body; None where it passes untouched.

    Only a success that is an event stream is translated. An error keeps its status and its words, and an answer that
    is no stream is what the client asked for.

    Raises:
        UpstreamProtocolError: the stream is compressed, though nobody asked for that; its connection is closed.
    """
    if route.typed_names is None or answer.framing == "none" or not 200 <= answer.status < 300:  # noqa: PLR2004 - RFC 9110 §15.3
        return None
    if not is_event_stream(single(answer.fields, b"content-type")):
        return None
    reader = DIALECTS[route.dialect].reader(route.body)
    if reader is None:
        return None
    encoding = single(answer.fields, b"content-encoding")
    if encoding is not None and encoding.strip().lower() not in {b"", b"identity"}:
        answer.abort()
        raise UpstreamProtocolError("The upstream compressed its stream, which cannot be translated.")
    return Translator(reader, route.typed_names)


def translated_fields(answer: Answer) -> list[Field]:
    """An upstream's fields as the client of a translation gets them."""
    passed = to_client(answer.fields, answer.index)
    return [_CONTENT_TYPE, *(field for field in passed if fold(field[0]) not in _OF_THE_BODY)]


class TypedRelay(Relay):
    """One running answer that is translated.

    `bytes` and `events` are those that the client is given. Where the relay would break the body off, this one says
    why in a last event and ends the body in order: `Error` is the sign that the answer is not whole, so that the
    client's connection can be used again. Only a client that has left, or does not read, is left without.
    """

    joins_head = False
    may_be_passed_by = False

    __slots__ = ("_has_ended_body", "_has_written", "_ping_s", "_silent_since_s", "_translator")

    def __init__(
        self,
        translator: Translator,
        answer: Answer,
        transport: asyncio.Transport,
        head: bytes,
        *,
        framing: Framing,
        clocks: StreamClocks,
    ) -> None:
        super().__init__(
            answer,
            transport,
            head,
            framing=framing,
            observer=None,
            error_event=lambda _code, _message: None,
            clocks=clocks._replace(heartbeat_s=None),
        )
        self._translator = translator
        self._has_ended_body = False
        self._ping_s = clocks.heartbeat_s if self._is_chunked else None
        self._silent_since_s = clocks.now_s
        self._has_written = False

    @property
    def is_whole(self) -> bool:
        """True with an `Error` too."""
        return self._has_ended_body

    @property
    def events(self) -> int:
        """How many typed events the client was given."""
        return self._translator.events

    def body(self, data: bytes, *, is_last: bool = False) -> None:
        """Write what one read's worth of body says; the stream ends with it, or with the vendor's word for an error."""
        if self.ending is not None:
            return
        translator = self._translator
        self._touched = True
        given = translator.feed(data)
        if translator.last == "Error":
            # Told by the vendor, or nonsense: what may follow is of no use, and costs money.
            if translator.is_unreadable:
                self.reason = "body_invalid"
            self._end(Ending.UPSTREAM_ERROR)
            self._answer.abort()
            self._write_last(given)
        elif is_last:
            given += translator.finish(*BROKEN[Ending.UPSTREAM_CLOSED])
            is_whole = translator.last == "End"
            if not is_whole:
                self.reason = "incomplete"
            self._end(Ending.COMPLETE if is_whole else Ending.UPSTREAM_CLOSED)
            self._write_last(given)
        elif given:
            self._write(given)

    @property
    def has_long_clocks(self) -> bool:
        """See `Relay`; its heartbeat is its own."""
        return super().has_long_clocks and (self._ping_s is None or self._ping_s >= LONG_S)

    def check(self, now_s: float) -> None:
        """Ask for a heartbeat, too: the client's silence is not the upstream's, which may send what says nothing."""
        super().check(now_s)
        if self._ping_s is None or self.ending is not None:
            return
        if self._has_written or self._paused:
            self._has_written = False
            self._silent_since_s = now_s
        elif (
            now_s - self._silent_since_s >= self._ping_s
            and self._translator.last is None
            and self._transport.get_write_buffer_size() == 0
        ):
            self._silent_since_s = now_s
            self._transport.write(b"%x\r\n%b\r\n" % (len(PING), PING))

    def finish(self, ending: Ending) -> None:
        """End a running answer before its end; idempotent. The log has the true ending, the client the last event."""
        if self.ending is not None:
            return
        self._end(ending)
        self._answer.abort()
        words = BROKEN.get(ending)
        if words is None or self._transport.is_closing():
            self._transport.abort()
        elif ending is Ending.STOPPED:
            self._write_last(self._translator.cancel())
        else:
            self._write_last(self._translator.finish(*words))

    def _write(self, given: bytes, last: bytes = b"") -> None:
        self._has_written = True
        if not self._bytes:
            self.first_byte_s = asyncio.get_running_loop().time()
        self._bytes += len(given)
        self._transport.write(b"%x\r\n%b\r\n%b" % (len(given), given, last) if self._is_chunked else given)

    def _write_last(self, given: bytes) -> None:
        self._has_ended_body = True
        if given:
            self._write(given, LAST_CHUNK)
        elif self._is_chunked:
            self._transport.write(LAST_CHUNK)
