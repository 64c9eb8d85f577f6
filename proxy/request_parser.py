"""A client's bytes to requests: llhttp, strict, with the bounds that it lacks.

A head is handed on as soon as it is whole, with the body that is still to come.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Protocol

import httptools

from proxy.errors import InvalidRequestError
from proxy.model import FieldIndex
from proxy.phases.accept import ClientConnection, Incoming
from proxy.request_body import RequestBody, Source

if TYPE_CHECKING:
    from proxy.errors import Field

MAX_LINE_BYTES = 8190
MAX_FIELDS = 100
# What may come without a head, a piece of a body or an end becoming whole by it: of a head, of chunk extensions, of
# trailers. The parser bounds none of these.
MAX_OVERHEAD_BYTES = 64 * 1024

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
        "_fields",
        "_has_progressed",
        "_is_resuming",
        "_overhead",
        "_parser",
        "_size",
        "_target",
        "body",
    )

    def __init__(self, client: Client) -> None:
        self._client = client
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
            InvalidRequestError: they are no HTTP/1.1, or too much of it. Nothing more can be parsed then.
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
            raise InvalidRequestError from None
        if self._has_progressed:
            self._overhead = 0
            return
        self._overhead += self._size
        if self._overhead > MAX_OVERHEAD_BYTES or len(self._fields) > MAX_FIELDS:
            raise InvalidRequestError

    def close(self) -> None:
        """Let the parser go, which holds this as this holds it."""
        del self._parser

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
        if self._overhead + self._size > MAX_LINE_BYTES:
            # Only now may a line of it be too long.
            longest = max(map(len, chain((target,), *fields)))
            if longest > MAX_LINE_BYTES:
                raise InvalidRequestError
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
