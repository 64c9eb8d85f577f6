"""The body as typed events: a translation of what the upstream sends, always ended in order.

docs/behaviour.md#typed-events describes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.dialects import DIALECTS
from proxy.dialects.typed.translator import Translator
from proxy.errors import UpstreamProtocolError
from proxy.model import Ending
from proxy.protocol.header_fields import fold, single, to_client
from proxy.protocol.sse_observer import is_event_stream
from proxy.relay.transform import ERROR_FOR_ENDING, OF_THE_BODY, Completion, Epilogue

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.errors import Field
    from proxy.model import Route
    from proxy.protocol.typed_events import Usage
    from proxy.relay.transform import StreamError
    from proxy.upstream import UpstreamResponse

_REPLACED: Final = OF_THE_BODY | {b"content-encoding", b"content-type"}
_CONTENT_TYPE: Final[Field] = (b"Content-Type", b"text/event-stream")


def begin_translation(route: Route, response: UpstreamResponse, told: Callable[[], Usage | None]) -> Translator | None:
    """What translates the response's body; None where it passes untouched. `told` is what `End` says of usage.

    Only a success that is an event stream is translated. An error keeps its status and its words, and a response that
    is no stream is what the client asked for.

    Raises:
        UpstreamProtocolError: the stream is compressed, though nobody asked for that; its connection is closed.
    """
    if route.typed_names is None or response.framing == "none" or not 200 <= response.status < 300:  # noqa: PLR2004 - RFC 9110 §15.3
        return None
    if not is_event_stream(single(response.fields, b"content-type")):
        return None
    reader = DIALECTS[route.dialect].reader(route.body)
    if reader is None:
        return None
    encoding = single(response.fields, b"content-encoding")
    if encoding is not None and encoding.strip().lower() not in {b"", b"identity"}:
        response.abort()
        raise UpstreamProtocolError("The upstream compressed its stream, which cannot be translated.")
    return Translator(reader, route.typed_names, told)


def translated_fields(response: UpstreamResponse) -> list[Field]:
    """An upstream's fields as the client of a translation gets them."""
    passed = to_client(response.fields, response.index)
    return [_CONTENT_TYPE, *(field for field in passed if fold(field[0]) not in _REPLACED)]


class TypedEvents:
    """A translation. `Error` says that it is not whole, so the body ends in order and the connection lives on."""

    allows_fast_path = False

    __slots__ = ("_translator",)

    def __init__(self, translator: Translator) -> None:
        self._translator = translator

    @property
    def events(self) -> int:
        """How many typed events the client was given."""
        return self._translator.events

    @property
    def at_boundary(self) -> bool:
        """Every write is whole events; after the last one nothing may follow."""
        return self._translator.last is None

    @property
    def allows_ping(self) -> bool:
        """As `at_boundary`: nothing of the upstream's own is written."""
        return self._translator.last is None

    @property
    def has_failed(self) -> bool:
        """The vendor reported an error, or sent nonsense: what may follow is of no use, and costs money."""
        return self._translator.last == "Error"

    def transform(self, data: bytes) -> bytes:
        """The typed events that one read completes."""
        return self._translator.feed(data)

    def complete(self) -> Completion:
        """`End` where the vendor had said that its answer was whole, else `Error`."""
        if self.has_failed:
            return Completion(Ending.UPSTREAM_ERROR, reason="body_invalid" if self._translator.is_unreadable else None)
        last = self._translator.finish(*ERROR_FOR_ENDING[Ending.UPSTREAM_CLOSED])
        if self._translator.last == "End":
            return Completion(Ending.COMPLETE, last)
        return Completion(Ending.UPSTREAM_CLOSED, last, reason="incomplete")

    def epilogue(self, ending: Ending, error: StreamError, *, is_behind: bool) -> Epilogue:  # noqa: ARG002 - the interface's
        """The last event says why: `Cancelled` where somebody stopped it. The log has the true ending."""
        if error is ERROR_FOR_ENDING[Ending.STOPPED]:
            return Epilogue(self._translator.cancel(), is_clean=True)
        return Epilogue(self._translator.finish(*error), is_clean=True)
