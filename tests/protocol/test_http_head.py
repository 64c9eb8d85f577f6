"""Heads of messages: what a request may look like, and how both kinds are written."""

from __future__ import annotations

import pytest

from proxy.errors import InvalidRequestError
from proxy.model import FieldIndex
from proxy.protocol.http_head import (
    MAX_QUERY_MEMBERS,
    asks_for_websocket,
    check_request,
    join_identical,
    origin_form,
    render_request,
    render_response,
)

HOST = (b"Host", b"a.example")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ((), ("none", None)),
        (((b"Content-Length", b"0"),), ("none", None)),
        (((b"content-LENGTH", b"12"),), ("length", 12)),
        (((b"Transfer-Encoding", b"Chunked"),), ("chunked", None)),
    ],
)
def test_check_request_framing(fields: tuple[tuple[bytes, bytes], ...], expected: tuple[str, int | None]) -> None:
    """A plain framing is understood."""
    assert check_request((1, 1), FieldIndex((HOST, *fields))) == expected


@pytest.mark.parametrize(
    "value",
    [b"+5", b"-1", b"5_0", b"0x5", b"5, 5", b"", b"5 5", "\u0665".encode(), b"9" * 5000, b"1e3"],
)
def test_check_request_length_malformed(value: bytes) -> None:
    """A length that is not a plain number of sane size is refused."""
    with pytest.raises(InvalidRequestError):
        check_request((1, 1), FieldIndex((HOST, (b"Content-Length", value))))


@pytest.mark.parametrize(
    "value",
    [b"xchunked", b"chunked, identity", b"gzip, chunked", b"chunked, gzip", b"chunked\x0b", b"chunked, chunked", b""],
)
def test_check_request_transfer_coding_unknown(value: bytes) -> None:
    """Any transfer coding but one `chunked` is refused."""
    with pytest.raises(InvalidRequestError):
        check_request((1, 1), FieldIndex((HOST, (b"Transfer-Encoding", value))))


@pytest.mark.parametrize(
    ("version", "fields"),
    [
        ((1, 1), (HOST, (b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked"))),
        ((1, 1), (HOST, (b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"5"))),
        ((1, 1), (HOST, (b"Content-Length", b"5"), (b"Content-Length", b"5"))),
        ((1, 0), (HOST, (b"Transfer-Encoding", b"chunked"))),
        ((2, 0), (HOST,)),
        ((0, 9), ()),
        ((1, 2), (HOST,)),
        ((1, 1), ()),
        ((1, 1), (HOST, HOST)),
        ((1, 1), ((b"Host", b""),)),
        ((1, 1), ((b"Host", b"a:65536"),)),
        ((1, 1), ((b"Host", b"a:99999"),)),
        ((1, 1), ((b"Host", b"a:000080"),)),
        ((1, 1), ((b"Host", b"a:"),)),
        ((1, 1), (HOST, (b"host", b"b.example"))),
        ((1, 1), (HOST, (b"Content-Length", b"5"), (b"content-length", b"6"))),
        ((1, 1), ((b"Host", b"a@b"),)),
        ((1, 1), ((b"Host", b"[::1"),)),
        ((1, 1), ((b"Host", b"a/b"),)),
        ((1, 1), ((b"Host", b"a b"),)),
        ((1, 1), ((b"Host", b"x/health?"),)),
    ],
)
def test_check_request_refused(version: tuple[int, int], fields: tuple[tuple[bytes, bytes], ...]) -> None:
    """Whatever two servers could read differently is refused."""
    with pytest.raises(InvalidRequestError):
        check_request(version, FieldIndex(fields))


@pytest.mark.parametrize(
    "host", [b"a", b"a.b:80", b"127.0.0.1:8080", b"[::1]:443", b"[fe80::1]", b"a:0", b"a:00080", b"a:59999", b"a:65535"]
)
def test_check_request_host(host: bytes) -> None:
    """Names, addresses and ports are hosts."""
    assert check_request((1, 1), FieldIndex(((b"hOsT", host),))) == ("none", None)


def test_check_request_host_ports() -> None:
    """Every number that is a port is one, and no other number of five digits."""
    for port in (*range(59_990, 66_010), *range(0, 100_000, 999)):
        fields = FieldIndex(((b"Host", b"a:%d" % port),))
        if port <= 65_535:
            check_request((1, 1), fields)
        else:
            with pytest.raises(InvalidRequestError):
                check_request((1, 1), fields)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/a", (b"/a", None)),
        (b"/a?", (b"/a", b"")),
        (b"/a%2F:b?x=?y", (b"/a%2F:b", b"x=?y")),
        (b"http://other.example:81/a?b", (b"/a", b"b")),
        (b"HTTPS://other.example?b", (b"/", b"b")),
    ],
)
def test_origin_form(target: bytes, expected: tuple[bytes, bytes | None]) -> None:
    """A target is split where it must be, and its bytes stay; an absolute one loses its origin."""
    assert origin_form(target) == expected


@pytest.mark.parametrize(
    "target", [b"*", b"a:80", b"", b"/a#b", b"http://", b"ftp://a/b", b"http://a@b/c", b"http://a#b"]
)
def test_origin_form_malformed(target: bytes) -> None:
    """Other forms are refused."""
    with pytest.raises(InvalidRequestError):
        origin_form(target)


def test_origin_form_with_many_members() -> None:
    """A query has as many members as anybody sends; more would take long to look at."""
    most = b"/a?" + b"&" * (MAX_QUERY_MEMBERS - 1)
    assert origin_form(most) == (b"/a", most[3:])
    with pytest.raises(InvalidRequestError, match="members"):
        origin_form(most + b"&")


def test_render_request() -> None:
    """Host comes first, the length last."""
    head = render_request("POST", b"/v1/a:b?c=d", b"h:1", [(b"A", b"1"), (b"a", b"2")], 5)
    assert head == b"POST /v1/a:b?c=d HTTP/1.1\r\nHost: h:1\r\nA: 1\r\na: 2\r\nContent-Length: 5\r\n\r\n"


@pytest.mark.parametrize(("status", "line"), [(200, b"HTTP/1.1 200 OK"), (529, b"HTTP/1.1 529 ")])
def test_render_response(status: int, line: bytes) -> None:
    """An unregistered status has no phrase; the fields stand as given."""
    assert render_response(status, [(b"A", b"\xff")]) == line + b"\r\nA: \xff\r\n\r\n"


TYPE = (b"Content-Type", b"a/b")


def test_check_request_one_content_type() -> None:
    """A second Content-Type is refused, whatever it says, and named."""
    assert check_request((1, 1), FieldIndex((HOST, TYPE))) == ("none", None)
    for second in (TYPE, (b"content-type", b"c/d")):
        with pytest.raises(InvalidRequestError, match="Content-Type"):
            check_request((1, 1), FieldIndex((HOST, TYPE, second)))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param([TYPE], [TYPE], id="nothing repeated"),
        pytest.param([(b"X", b"1"), (b"X", b"1")], [(b"X", b"1"), (b"X", b"1")], id="any other field"),
        pytest.param([TYPE, (b"X", b"1"), (b"content-type", b"a/b")], [TYPE, (b"X", b"1")], id="the first is kept"),
        pytest.param([TYPE, (b"Content-Type", b"a/B")], None, id="two values"),
        pytest.param([TYPE, TYPE, (b"Content-Length", b"1"), (b"Content-Length", b"1")], None, id="a length"),
        pytest.param([(b"Content-Encoding", b"br")] * 2, None, id="a coding"),
        pytest.param([(b"Transfer-Encoding", b"chunked")] * 2, None, id="a transfer coding"),
    ],
)
def test_join_identical(fields: list[tuple[bytes, bytes]], expected: list[tuple[bytes, bytes]] | None) -> None:
    """Repetitions that agree are one field, for its index too; those that frame the body never are."""
    joined = join_identical(fields, FieldIndex(fields))

    assert (joined is None) is (expected is None)
    if joined is not None and expected is not None:
        assert joined[0] == expected
        assert joined[1] == FieldIndex(expected)
        assert joined[1].repeated == FieldIndex(expected).repeated


@pytest.mark.parametrize(
    ("fields", "is_handshake"),
    [
        pytest.param([(b"Upgrade", b"websocket")], True, id="upgrade"),
        pytest.param([(b"upgrade", b"h2c , WebSocket/13")], True, id="in a list"),
        pytest.param([(b"Upgrade", b"h2c"), (b"Upgrade", b"websocket")], True, id="in a second field"),
        pytest.param(
            [(b"Connection", b"keep-alive, Upgrade"), (b"Sec-WebSocket-Key", b"x")], True, id="a proxy took it"
        ),
        pytest.param([(b"Sec-WebSocket-Key", b"x")], False, id="a key alone"),
        pytest.param([(b"Connection", b"Upgrade"), (b"Upgrade", b"h2c")], False, id="another protocol"),
        pytest.param([(b"Upgrade", b"websockets")], False, id="a longer name"),
        pytest.param([], False, id="nothing"),
    ],
)
def test_asks_for_websocket(fields: list[tuple[bytes, bytes]], *, is_handshake: bool) -> None:
    """A handshake is known by its upgrade in any case and place, or by its key and an upgrade that lost its name."""
    assert asks_for_websocket(FieldIndex(fields)) is is_handshake
