"""A client's bytes to requests: the same ones however the bytes are split, and none of what is out of bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import HeaderTooLargeError, InvalidRequestError
from proxy.request_parser import MAX_FIELDS, MAX_LINE_BYTES, MAX_OVERHEAD_BYTES, RequestParser

if TYPE_CHECKING:
    from collections.abc import Iterable

    from proxy.phases.accept import Incoming

STEADY = settings(max_examples=200)


@dataclass
class Connection:
    """Who takes the requests, and never makes the client wait."""

    transport: None = None
    relay: None = None
    has_answered: bool = False
    requests: list[Incoming] = field(default_factory=list)

    def arrived(self, request: Incoming) -> None:
        self.requests.append(request)

    def hold(self) -> None: ...

    def read_on(self) -> None: ...

    def close(self) -> None: ...

    def discard_rest(self, *, linger: bool) -> None: ...


@dataclass(frozen=True)
class Sent:
    """A request as a client writes it, and as it should arrive."""

    wire: bytes
    body: bytes
    fields: tuple[tuple[bytes, bytes], ...]


HOST = (b"Host", b"x")
UPGRADE = ((b"Connection", b"Upgrade, HTTP2-Settings"), (b"Upgrade", b"h2c"))
BODIES = st.binary(max_size=40)


def sent(body: bytes, cuts: list[int], *, is_chunked: bool, is_upgrade: bool, trailers: bytes = b"") -> Sent:
    """One request; `cuts` say where a chunked body is cut into chunks."""
    fields = [HOST, *(UPGRADE if is_upgrade else ())]
    if is_chunked:
        fields.append((b"Transfer-Encoding", b"chunked"))
        borders = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
        pieces = [body[begin:end] for begin, end in pairwise(borders)]
        content = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailers + b"\r\n"
    else:
        fields.append((b"Content-Length", b"%d" % len(body)))
        content = body
    lines = b"".join(b"%b: %b\r\n" % one for one in fields)
    return Sent(b"POST /forward-sse?a=1 HTTP/1.1\r\n" + lines + b"\r\n" + content, body, tuple(fields))


SENT = st.builds(
    sent,
    BODIES,
    st.lists(st.integers(1, 40), max_size=4),
    is_chunked=st.booleans(),
    is_upgrade=st.booleans(),
    trailers=st.sampled_from([b"", b"X-Sum: 1\r\n"]),
)


def split(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The bytes in pieces."""
    borders = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in pairwise(borders)]


def parsed(pieces: list[bytes]) -> tuple[RequestParser, list[Incoming]]:
    """What a connection is given of these reads."""
    client: Any = Connection()
    parser = RequestParser(client)
    for piece in pieces:
        parser.feed(piece)
    return parser, client.requests


def check(requests: list[Incoming], expected: list[Sent]) -> None:
    """Each came, whole and as it was sent."""
    assert [(one.method, one.target, one.version, one.fields) for one in requests] == [
        ("POST", b"/forward-sse?a=1", (1, 1), one.fields) for one in expected
    ]
    assert [one.content.is_complete for one in requests] == [True] * len(expected)
    assert [one.content.take() for one in requests] == [one.body for one in expected]


@STEADY
@given(st.lists(SENT, min_size=1, max_size=4), st.lists(st.integers(0, 2000), max_size=12))
def test_parser_gives_the_same_of_any_split(expected: list[Sent], cuts: list[int]) -> None:
    """Pipelined, chunked, with trailers, behind upgrades that are declined: nothing is lost, added or joined."""
    parser, requests = parsed(split(b"".join(one.wire for one in expected), cuts))
    check(requests, expected)
    assert parser.body is None


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("is_upgrade", [False, True])
def test_parser_takes_single_bytes(*, is_chunked: bool, is_upgrade: bool) -> None:
    """The slowest client there is; two requests, so that each end is a beginning."""
    one = sent(b'{"a": 1}', [3], is_chunked=is_chunked, is_upgrade=is_upgrade)
    _, requests = parsed([bytes([byte]) for byte in one.wire * 2])
    check(requests, [one, one])


def test_parser_hands_on_a_head_before_its_body() -> None:
    """Who is not let in need not send it."""
    one = sent(b"{}", [], is_chunked=False, is_upgrade=False)
    parser, requests = parsed([one.wire[:-1]])
    assert [request.content.take() for request in requests] == [b"{"]
    assert parser.body is requests[0].content
    assert not requests[0].content.is_complete
    parser.feed(one.wire[-1:])
    assert requests[0].content.is_complete


@pytest.mark.parametrize("fields", [b"", b"Host: x\r\n"], ids=["none", "host"])
def test_parser_takes_many_requests_of_one_read(fields: bytes) -> None:
    """That a read is longer than a line may be says nothing of the lines in it, fields or none."""
    count = 600
    _, requests = parsed([b"GET / HTTP/1.1\r\n%b\r\n" % fields * count])
    assert len(requests) == count


AT_MOST = b"a" * MAX_LINE_BYTES
# A request line is `GET /… HTTP/1.1`, a field `X: …` or `…: x`.
TARGET = b"/" + AT_MOST[: -len("GET / HTTP/1.1")]
SHORT_BY_3 = AT_MOST[:-3]


@pytest.mark.parametrize(
    ("within", "beyond"),
    [
        pytest.param(
            b"GET / HTTP/1.1\r\n%b\r\n" % (b"X: y\r\n" * MAX_FIELDS),
            b"GET / HTTP/1.1\r\n%b\r\n" % (b"X: y\r\n" * (MAX_FIELDS + 1)),
            id="fields",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n%b\r\n" % (b"X: y\r\n" * MAX_FIELDS),
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n%b\r\n" % (b"X: y\r\n" * (MAX_FIELDS + 1)),
            id="trailers",
        ),
    ],
)
@pytest.mark.parametrize("piece", [1000, 1_000_000])
def test_parser_bounds(within: bytes, beyond: bytes, piece: int) -> None:
    """What is just within is taken; one more is not, however it comes."""
    pieces = [within[begin : begin + piece] for begin in range(0, len(within), piece)]
    parser, requests = parsed(pieces)
    assert len(requests) == 1
    assert parser.body is None
    with pytest.raises(InvalidRequestError):
        parsed([beyond[begin : begin + piece] for begin in range(0, len(beyond), piece)])


@pytest.mark.parametrize(
    ("within", "what"),
    [
        pytest.param(b"GET %b HTTP/1.1\r\n\r\n" % TARGET, "The request line", id="target-and-no-field"),
        pytest.param(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % TARGET, "The request line", id="target"),
        pytest.param(b"GET / HTTP/1.1\r\nX: %b\r\nHost: x\r\n\r\n" % SHORT_BY_3, "A header field", id="value"),
        pytest.param(b"GET / HTTP/1.1\r\n%b: x\r\n\r\n" % SHORT_BY_3, "A header field", id="name"),
        pytest.param(
            b"GET / HTTP/1.1\r\nAUTHORIZATION: %b\r\n\r\n" % AT_MOST[len("Authorization: ") :],
            "The Authorization field",
            id="known",
        ),
    ],
)
@pytest.mark.parametrize("piece", [1000, 1_000_000])
def test_parser_bounds_a_line(within: bytes, what: str, piece: int) -> None:
    """A line of the longest length is taken; one byte more is not, and the error says which line that is."""
    assert len(parsed(split(within, range(0, len(within), piece)))[1]) == 1
    beyond = within.replace(b"aaa", b"aaaa", 1)
    with pytest.raises(HeaderTooLargeError) as caught:
        parsed(split(beyond, range(0, len(beyond), piece)))
    assert caught.value.message == f"{what} is longer than {MAX_LINE_BYTES} bytes."


@pytest.mark.parametrize("bound", [1024, 100_000])
def test_parser_bounds_a_line_as_configured(bound: int) -> None:
    """The bound is what it is given; a head may have four of its longest lines."""
    lines = b"".join(b"X-%d: %b\r\n" % (number, b"a" * (bound - 5)) for number in range(3))
    client: Any = Connection()
    RequestParser(client, bound).feed(b"GET / HTTP/1.1\r\n%b\r\n" % lines)
    assert len(client.requests) == 1
    with pytest.raises(HeaderTooLargeError, match=f"than {bound} bytes"):
        RequestParser(client, bound).feed(b"GET / HTTP/1.1\r\n%b\r\n" % lines.replace(b"aaa", b"aaaa", 1))


@pytest.mark.parametrize(
    ("start", "more", "what"),
    [
        pytest.param(b"GET /", b"a" * 4096, "The request line", id="target"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"a" * 4096, "A header field", id="field"),
        pytest.param(b"GET / HTTP/1.1\r\n", b"X: %b\r\n" % (b"a" * 4091), "The request line and the", id="fields"),
        pytest.param(
            b"GET / HTTP/1.1\r\nCookie: %b\r\n" % (b"a" * 20_000), b"X: %b\r\n" % (b"a" * 4091), "The Cookie", id="read"
        ),
    ],
)
def test_parser_gives_up_a_head_that_never_ends(start: bytes, more: bytes, what: str) -> None:
    """A head without an end is not kept for ever, and the error says what of it is too long."""
    with pytest.raises(HeaderTooLargeError) as caught:
        parsed([start, *[more] * (MAX_OVERHEAD_BYTES // 4096 + 1)])
    assert caught.value.message.startswith(what)


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;a=", id="chunk-extension"),
        pytest.param(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", id="trailer"),
    ],
)
def test_parser_gives_up_what_never_ends(start: bytes) -> None:
    """A line without an end is not kept for ever."""
    parser, _ = parsed([start, *[b"a" * 4096] * (MAX_OVERHEAD_BYTES // 4096 - 1)])
    with pytest.raises(InvalidRequestError):
        parser.feed(b"a" * 8192)
