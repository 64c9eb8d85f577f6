r"""Events by which an `EventSource` learns the status and the ending, which its API does not show.

Pure. Events have LF line ends, no `id` and no `retry`. Errors are messages without an `event:` line, with the dialect's
error body: a page could not tell an event *named* `error` from the one that the browser dispatches when a connection
fails (WHATWG HTML §9.2.6).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from proxy.protocol.sse_observer import encode_event

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.model import Ending

_LINE_END: Final = re.compile(rb"\r\n|\r|\n")


def end_event(
    id_: str,
    ending: Ending,
    status: int,
    *,
    code: str | None = None,
    retry_after_s: int | None = None,
    usage: Mapping[str, int | str] | None = None,
) -> bytes:
    """Encode the last event, `end`, on which the page closes its `EventSource`.

    Its data is never empty, or it would not be dispatched. `status` is what the answer to a POST would have had;
    `code` is for the proxy's own errors; `usage` is what the model took, where one was run.
    """
    said: dict[str, Any] = {"id": id_, "ending": ending.value, "status": status}
    if code is not None:
        said["code"] = code
    if retry_after_s is not None:
        said["retry_after"] = retry_after_s
    if usage is not None:
        said["usage"] = usage
    return encode_event(orjson.dumps(said), b"end")


def torn(*, in_line: bool) -> bytes:
    """End a truncated event so that no client takes it for a whole one: it gets the name `torn`.

    A client drops a truncated event only at the end of the body; any blank line before that dispatches it (WHATWG HTML
    §9.2.6), under the name of its last `event` field. No vendor uses that name, no page listens for it. `in_line`:
    the stream stands within a line, which has to be ended first.
    """
    return b"\nevent: torn\n\n" if in_line else b"event: torn\n\n"


class DataLines:
    """Encodes a body that is no event stream as one message, incrementally: each line becomes a `data` line.

    Line ends become LF, by which clients join `data` lines. Keeps no bytes, only whether a CR came last.
    """

    __slots__ = ("_after_cr", "_is_begun")

    def __init__(self) -> None:
        self._is_begun = False
        self._after_cr = False

    def feed(self, data: bytes) -> bytes:
        """Encode the next piece of the body."""
        if not data:
            return b""
        is_second_half = self._after_cr and data.startswith(b"\n")
        self._after_cr = data.endswith(b"\r")
        lines = _LINE_END.sub(b"\ndata: ", data[1:] if is_second_half else data)
        if self._is_begun:
            return lines
        self._is_begun = True
        return b"data: " + lines

    def end(self) -> bytes:
        """Return the bytes that end the message; empty if the body was empty."""
        return b"\n\n" if self._is_begun else b""
