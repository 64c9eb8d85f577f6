r"""What an `EventSource` is told in the stream, because it sees neither a status nor how a body ended.

Pure. Everything here is events with LF alone, without an id or a retry time. Errors are plain messages (no `event:`
line) in the words of the dialect: an event *named* `error` would come to the page as the error event that the browser
itself sends when a connection fails (WHATWG HTML §9.2.6 dispatches by that name).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import orjson

from proxy.protocol.sse_observer import encode_event

if TYPE_CHECKING:
    from proxy.model import Ending

_LINE_END: Final = re.compile(rb"\r\n|\r|\n")


def end_event(
    id_: str, ending: Ending, status: int, *, code: str | None = None, retry_after_s: int | None = None
) -> bytes:
    """The last event, named `end`: the page closes its `EventSource` on it.

    Its data is never empty, for then it would not be dispatched. `status` is the one that the answer to a POST would
    have had, `code` the contract's word where the fault is told by us.
    """
    said: dict[str, str | int] = {"id": id_, "ending": ending.value, "status": status}
    if code is not None:
        said["code"] = code
    if retry_after_s is not None:
        said["retry_after"] = retry_after_s
    return encode_event(orjson.dumps(said), b"end")


def torn(*, in_line: bool) -> bytes:
    """End an event that was cut in two, so that no client takes its half for what it was to be.

    A client drops such a half only at the end of the body; any blank line before that dispatches it as if it were whole
    (WHATWG HTML §9.2.6). But the last `event` field of an event names it: this half is dispatched under a name that no
    vendor uses and no page listens for. `in_line` says whether a line is under way, which is ended first; where none
    is, a line end would be the blank line.
    """
    return b"\nevent: torn\n\n" if in_line else b"event: torn\n\n"


class DataLines:
    """Makes one message of a body that is no event stream, as it comes: each of its lines becomes a `data` line.

    Line ends become LF, as every client would join them. Keeps no more than whether a CR came last.
    """

    __slots__ = ("_after_cr", "_is_begun")

    def __init__(self) -> None:
        self._is_begun = False
        self._after_cr = False

    def feed(self, data: bytes) -> bytes:
        """Take the next piece of the body, give the next piece of the message."""
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
        """End the message, if there is one."""
        return b"\n\n" if self._is_begun else b""
