"""A client's bytes to requests: llhttp, strict, with the bounds that it lacks.

A head is handed on as soon as it is whole, with the body that is still to come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import httptools

from proxy.errors import HeaderTooLargeError, InvalidRequestError
from proxy.exchange import FieldIndex
from proxy.phases.accept import ClientConnection, Incoming
from proxy.request_body import RequestBody, Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from proxy.errors import Field, ProxyError

# Of one line of a head, where the configuration does not say.
MAX_LINE_BYTES = 16 * 1024
MAX_FIELDS = 100
# What may come without a head, a piece of a body or an end becoming whole by it: of a head, of chunk extensions, of
# trailers. The parser bounds none of these. A head may be of four of its longest lines, where those are longer.
MAX_OVERHEAD_BYTES = 64 * 1024
_LINES_OF_A_HEAD = 4

# `GET /x HTTP/1.1` without the method and the target, `name: value` without either.
_AROUND_TARGET = 10
_BETWEEN = 2
_FRAMING_FIELDS = frozenset({b"content-length", b"transfer-encoding"})
_VERSIONS = {"1.1": (1, 1), "1.0": (1, 0)}
_UNKNOWN_VERSION = (0, 0)


class Client(ClientConnection, Source, Protocol):
    """Whose bytes they are, and who takes the requests."""

    def arrived(self, request: Incoming) -> None:
        """A head is whole."""
        ...


class RequestParser:
    """Parses the bytes of one connection.

    Attributes:
        body: Of the request whose end has not come yet, None between two.
    """

    __slots__ = (
        "_body_framing",
        "_client",
        "_fault",
        "_fields",
        "_has_progressed",
        "_is_resuming",
        "_max_line_bytes",
        "_max_overhead_bytes",
        "_overhead",
        "_parser",
        "_size",
        "_target",
        "body",
    )

    def __init__(self, client: Client, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        """`max_line_bytes` bounds the request line and each field of a head, without their line ends."""
        self._client = client
        self._max_line_bytes = max_line_bytes
        self._max_overhead_bytes = max(MAX_OVERHEAD_BYTES, _LINES_OF_A_HEAD * max_line_bytes)
        # What a callback raised: the parser raises an error of its own instead.
        self._fault: ProxyError | None = None
        self._parser = httptools.HttpRequestParser(self)
        self.body: RequestBody | None = None
        self._target = b""
        self._fields: list[Field] = []
        # How the body is framed that follows a declined upgrade, and whether a parser is being told so.
        self._body_framing = b""
        self._is_resuming = False
        self._has_progressed = False
        # What came since anything became whole, and what is being parsed.
        self._overhead = 0
        self._size = 0

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes.

        Raises:
            HeaderTooLargeError: a line of a head is too long, or the head.
            InvalidRequestError: they are no HTTP/1.1, or too much of it. Nothing more can be parsed after either.
        """
        self._has_progressed = False
        self._size = len(data)
        try:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._decline(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            # `from None`: the cause may quote the request.
            raise (self._fault or InvalidRequestError()) from None
        if self._has_progressed:
            # How much of this read stands behind what became whole in it is not known: a next head may begin there.
            self._overhead = self._size
            return
        self._overhead += self._size
        if len(self._fields) > MAX_FIELDS:
            raise InvalidRequestError
        if self._overhead > self._max_overhead_bytes:
            raise InvalidRequestError if self.body is not None else self._too_large(self._fields)

    def close(self) -> None:
        """Let the parser go, which holds this as this holds it."""
        del self._parser

    def _too_long(self, target: bytes, fields: Iterable[Field]) -> HeaderTooLargeError | None:
        """What is wrong with the first line that is too long, if one is."""
        bound = self._max_line_bytes
        method = self._parser.get_method()
        if len(method) + len(target) + _AROUND_TARGET > bound:
            return HeaderTooLargeError.of_request_line(bound)
        for name, value in fields:
            if len(name) + len(value) + _BETWEEN > bound:
                return HeaderTooLargeError.of_field(name, bound)
        return None

    def _too_large(self, fields: Sequence[Field]) -> HeaderTooLargeError:
        """What is wrong with a head that has come to its bound and has no end yet."""
        error = self._too_long(self._target, fields)
        if error is None:
            read = len(self._target) + sum(len(name) + len(value) + _BETWEEN for name, value in fields)
            # The parser keeps the last whole field until another begins: of the rest that is one line, or two.
            if self._overhead - read > 2 * self._max_line_bytes:
                error = HeaderTooLargeError.of_field(None, self._max_line_bytes)
        return error or HeaderTooLargeError.of_head(self._max_overhead_bytes)

    def _decline(self, data: bytes | memoryview) -> None:
        """Parse on as HTTP behind a head that asked for another protocol: it does not get it (RFC 9110 §7.8).

        The parser has taken the head's end for the message's. Where a body follows, as Java's client sends one when it
        asks for h2c, another parser is told how that body is framed, and no more.
        """
        while True:
            framing, self._body_framing = self._body_framing, b""
            if framing:
                self._is_resuming = True
                self._parser = httptools.HttpRequestParser(self)
                self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n" % framing)
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            else:
                return

    # httptools' callbacks. What they raise ends the parsing.

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One field; those that come behind a body are trailers, and are dropped (RFC 9110 §6.5.1)."""
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """A head is there: its request can be served while its body arrives."""
        parser = self._parser
        target, self._target = self._target, b""
        fields = tuple(self._fields)
        self._fields = []
        if self._is_resuming:
            self._is_resuming = False
            return
        if len(fields) > MAX_FIELDS:
            raise InvalidRequestError
        if self._overhead + self._size > self._max_line_bytes:
            # Only now may a line of it be too long.
            self._fault = self._too_long(target, fields)
            if self._fault is not None:
                raise self._fault
        self._has_progressed = True
        self.body = RequestBody(self._client)
        self._client.arrived(
            Incoming(
                parser.get_method().decode(),
                target,
                _VERSIONS.get(parser.get_http_version(), _UNKNOWN_VERSION),
                fields,
                not parser.should_keep_alive(),
                self.body,
                self._client,
                FieldIndex(fields),
            )
        )
        if parser.should_upgrade():
            # The parser takes what follows for the other protocol's.
            self._body_framing = b"".join(
                b"%b: %b\r\n" % field for field in fields if field[0].lower() in _FRAMING_FIELDS
            )

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._has_progressed = True
        assert self.body is not None
        self.body.feed(data)

    def on_message_complete(self) -> None:
        """The end of the body, or of a head without one."""
        self._has_progressed = True
        if self._body_framing:
            return
        if self._fields:
            # Trailers, which are dropped; but not any number of them.
            if len(self._fields) > MAX_FIELDS:
                raise InvalidRequestError
            self._fields = []
        body, self.body = self.body, None
        assert body is not None
        body.end()
