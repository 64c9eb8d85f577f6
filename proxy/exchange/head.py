"""A request's head as plain values, judged before anything acts on it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from proxy.errors import HeaderTooLargeError, InvalidRequestError, NotFoundError, UpgradeNotSupportedError
from proxy.exchange.telemetry import begin_trace
from proxy.model import NOTHING_REPEATED, FieldIndex, RequestHead
from proxy.protocol import cors
from proxy.protocol.http_head import asks_for_websocket, check_request, origin_form
from proxy.protocol.paths import own_path
from proxy.protocol.trace_context import TRACEPARENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aiohttp import web

    from proxy.exchange.exchange import Exchange

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_METHOD: Final = re.compile(r"[A-Z]{1,16}")


class MeasuredFieldIndex(FieldIndex):
    """The fields of a message whose head is bounded: `size` is how many bytes all names and values have together."""

    __slots__ = ("size",)

    def __init__(self, fields: Sequence[tuple[bytes, bytes]]) -> None:
        # In the same pass: a second one takes as long as the first.
        size = 0
        for name, value in fields:
            self[name.lower()] = value
            size += len(name) + len(value)
        self.size = size
        self.repeated = NOTHING_REPEATED if len(self) == len(fields) else self._keep_first(fields)


def check_head(request: web.Request, exchange: Exchange | None = None, *, prefix: bytes = b"") -> RequestHead:
    """Check framing, target and method, and split the target as it came, never re-quoted.

    aiohttp's parser refuses most of what is malformed; two servers that disagree about where a request ends are how
    requests are smuggled, so what it lets pass is refused here. `prefix` is where the application is mounted.

    Raises:
        InvalidRequestError: the head is malformed; the connection must be closed.
        HeaderTooLargeError: its lines are too long together.
        UpgradeNotSupportedError: the client asks for a WebSocket.
        NotFoundError: the path is not below the prefix.
    """
    method, fields = request.method, request.raw_headers
    index = MeasuredFieldIndex(fields)
    if exchange is not None and (TRACEPARENT in index or exchange.registry.telemetry is not None):
        begin_trace(exchange, index, request)
    if exchange is not None and b"origin" in index:
        # A page may read the refusal of its malformed head, too.
        exchange.origin = cors.request_origin(index)
    if exchange is not None and exchange.rules.clients is not None:
        exchange.client = exchange.rules.clients.of(request.remote, index)
    check_request(request.version, index)
    path, query = origin_form(raw_target(request))
    if method not in _METHODS and _METHOD.fullmatch(method) is None:
        raise InvalidRequestError("The request method is malformed.")
    if prefix:
        if not path.startswith(prefix + b"/"):
            raise NotFoundError
        path = path.removeprefix(prefix)
    if path[-1:] == b"/":
        path = own_path(path)
    head = RequestHead(method, path, query, fields, index)
    if exchange is not None:
        exchange.head, exchange.prefix = head, prefix
        # The log learns the path only now: where a target should be may stand anything, a credential even.
        exchange.path = path.decode("latin-1")
        max_bytes = exchange.rules.max_head_bytes
        if index.size > max_bytes:
            raise HeaderTooLargeError.of_head(max_bytes)
        if (b"upgrade" in index or b"sec-websocket-key" in index) and asks_for_websocket(index):
            # Before anything is asked of a store or charged: no credential makes a difference.
            exchange.dialect = exchange.rules.router.dialect_name(head)
            raise UpgradeNotSupportedError
    return head


def raw_target(request: web.Request) -> bytes:
    """The request target, byte for byte: aiohttp decodes it as UTF-8, with escapes for bytes that are not."""
    return request.raw_path.encode("utf-8", "surrogateescape")
