"""One connection: which bytes are its answer's, and what of them is left for the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from proxy.errors import UpstreamProtocolError, UpstreamUnreachableError
from proxy.upstream.connection import MAX_OVERHEAD_BYTES, Connection
from tests.upstream.wire import Wire

if TYPE_CHECKING:
    import asyncio

    from proxy.errors import ProxyError
    from proxy.upstream.response import UpstreamResponse

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
INTERIM = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"


class Taker:
    """A sink that keeps what it is given."""

    allows_fast_path = False

    def __init__(self) -> None:
        self.taken = b""
        self.is_whole = False
        self.error: ProxyError | None = None

    def body(self, data: bytes, *, is_last: bool = False) -> None:
        assert not self.is_whole
        self.taken += data
        self.is_whole = is_last

    def event(self, data: bytes, payload_bytes: int) -> None:
        raise AssertionError("a sink that allows no fast path was given an event")

    def failed(self, error: ProxyError) -> None:
        assert self.error is None
        self.error = error


class One:
    """A connection, and the vendor at its other end."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.idle = 0
        self.connection = Connection(
            upstream="main", key=None, on_idle=lambda _one: self._count(), on_closed=lambda _one: None
        )
        self.connection.connection_made(cast("asyncio.Transport", self.wire))

    def ask(self, *, is_head_request: bool = False) -> asyncio.Future[UpstreamResponse]:
        return self.connection.send(b"", b"", is_head_request=is_head_request)

    def hear(self, *reads: bytes) -> None:
        for read in reads:
            self.connection.data_received(read)

    def _count(self) -> None:
        self.idle += 1


def take(answer: UpstreamResponse) -> Taker:
    taker = Taker()
    answer.attach(taker)
    return taker


@pytest.mark.parametrize(
    "first",
    [
        OK,
        CHUNKED + b"2\r\nok\r\n0\r\n\r\n",
        CHUNKED + b"2\r\nok\r\n0\r\nX-Trailer: of the first\r\nEmpty:\r\n\r\n",
        INTERIM + OK,
        b"HTTP/1.1 204 No Content\r\nX-First: 1\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 50\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_answers_follow_one_another(first: bytes) -> None:
    """Nothing of an answer, its trailers and interim ones included, is found in the next of its connection."""
    one = One()
    for number in range(3):
        asked = one.ask()
        one.hear(first)
        assert take(await asked).is_whole
        assert one.idle == 2 * number + 1

        asked = one.ask()
        one.hear(b"HTTP/1.1 201 Created\r\nContent-Length: 4\r\nX: y\r\n\r\n", b"next")
        answer = await asked

        assert (answer.status, answer.fields) == (201, [(b"Content-Length", b"4"), (b"X", b"y")])
        assert take(answer).taken == b"next"
        assert one.idle == 2 * number + 2


@pytest.mark.parametrize("extra", [b"H", b"HTTP/1.1 200", INTERIM, OK, CHUNKED, b"\0", b"x: y\r\n"])
@pytest.mark.parametrize("first", [OK, CHUNKED + b"2\r\nok\r\n0\r\n\r\n"])
async def test_unasked_bytes_behind_an_answer(first: bytes, extra: bytes) -> None:
    """However little comes behind an answer, the answer is whole without it, and its connection is closed."""
    one = One()
    asked = one.ask()

    one.hear(first + extra)

    taker = take(await asked)
    assert (taker.taken, taker.is_whole) == (b"ok", True)
    assert (one.idle, one.wire.is_closed) == (0, True)


@pytest.mark.parametrize("extra", [b"H", b"\r\n", INTERIM, OK])
@pytest.mark.parametrize("is_used", [False, True])
async def test_unasked_bytes_on_a_silent_connection(extra: bytes, *, is_used: bool) -> None:
    """Whatever comes before it was asked for closes the connection, and a request on it fails."""
    one = One()
    if is_used:
        asked = one.ask()
        one.hear(OK)
        await asked

    one.hear(extra)

    assert one.wire.is_closed
    assert not one.connection.is_usable()
    with pytest.raises(UpstreamUnreachableError):
        await one.ask()


@pytest.mark.parametrize(
    "bad",
    [
        INTERIM + b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nLocation: /a\r\nlocation: /b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"Content-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 600 No\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 099 No\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ],
)
async def test_bad_head_before_a_good_one(bad: bytes) -> None:
    """A head that is refused is not repaired by a good answer behind it."""
    one = One()
    asked = one.ask()

    one.hear(bad + OK)

    with pytest.raises(UpstreamProtocolError):
        await asked
    assert one.wire.is_closed


@pytest.mark.parametrize("first", [b"HTTP/1.0 200 OK\r\nX: ", INTERIM])
async def test_version_is_that_of_the_head(first: bytes) -> None:
    """The version is read where a head begins, not where a read does."""
    one = One()
    asked = one.ask()
    second = b"HTTP/1.1 \r\n" if first != INTERIM else b"HTTP/1.0 200 OK\r\n"

    one.hear(first, second + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")

    with pytest.raises(UpstreamProtocolError):
        await asked
    assert one.wire.is_closed


@pytest.mark.parametrize("framing", [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b""])
@pytest.mark.parametrize("extra", [b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", OK])
async def test_answer_to_head(framing: bytes, extra: bytes) -> None:
    """The answer to a HEAD has no body, whatever its head or the bytes behind it say; its connection is closed."""
    one = One()
    asked = one.ask(is_head_request=True)

    one.hear(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n" + extra)

    taker = take(await asked)
    assert (taker.taken, taker.is_whole) == (b"", True)
    assert (one.idle, one.wire.is_closed) == (0, True)


async def test_fault_behind_good_chunks() -> None:
    """What came before a fault in the same read is given, and then the fault told, once."""
    one = One()
    asked = one.ask()
    one.hear(CHUNKED + b"2\r\nok\r\n")
    taker = take(await asked)

    one.hear(b"4\r\nmore\r\nzz\r\n5\r\nnever\r\n")

    assert (taker.taken, taker.is_whole) == (b"okmore", False)
    assert isinstance(taker.error, UpstreamProtocolError)
    assert one.wire.is_closed


@pytest.mark.parametrize("is_over", [False, True])
async def test_trailers_without_end(*, is_over: bool) -> None:
    """Trailers beyond the bound are a fault that is told, even where they end in the very same read."""
    one = One()
    asked = one.ask()
    one.hear(CHUNKED + b"2\r\nok\r\n")
    taker = take(await asked)

    one.hear(b"0\r\n" + b"X: y\r\n" * (MAX_OVERHEAD_BYTES // 6 + 1) + (b"\r\n" if is_over else b""))

    assert taker.taken == b"ok"
    assert isinstance(taker.error, UpstreamProtocolError)
    assert one.wire.is_closed


async def test_answer_that_lost_its_asker() -> None:
    """An answer to somebody who gave up is nobody's, and the connection is closed by who asked."""
    one = One()
    asked = one.ask()
    asked.cancel()
    one.connection.abort()

    one.hear(OK)

    assert (one.idle, one.wire.is_closed) == (0, True)
