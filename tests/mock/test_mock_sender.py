from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from proxy.mock.answer import Answer
from proxy.mock.controls import Controls
from proxy.mock.sender import GARBAGE, Sender
from tests.mock.mock_wire import (
    BEARER,
    CHAT,
    PROMPT,
    TIMEOUT_S,
    ask,
    connected,
    dechunk,
    parse,
    request,
    vendor_of_tests,
)
from tests.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Iterator

STREAM = {**PROMPT, "stream": True}
HEAD_END = b"\r\n\r\n"


def asked(fault: str, after: int = 0, *, body: object = STREAM, more: str = "") -> bytes:
    return request(f"{CHAT}?events=4&fault={fault}&fault_after={after}{more}", body)


async def test_fault_reset() -> None:
    """A reset comes as RST, when the events before it have arrived."""
    async with vendor_of_tests() as vendor, connected(vendor) as client:
        await client.send(asked("reset", 2))
        with pytest.raises(ConnectionResetError):
            await client.read_all()

        chunks = dechunk(bytes(client.received).partition(HEAD_END)[2])
        assert len(chunks) == 2
        assert all(chunks)
        assert (await vendor.wait_for(lambda stats: stats.active == 0)).finished == 1


async def test_fault_truncate() -> None:
    """A truncated answer ends with FIN, after whole chunks, without the final one."""
    async with vendor_of_tests() as vendor, connected(vendor) as client:
        await client.send(asked("truncate", 3))
        received = await client.read_all()

    chunks = dechunk(received.partition(HEAD_END)[2])
    assert len(chunks) == 3
    assert all(chunks)


async def test_fault_garbage() -> None:
    """Garbage stands where the next chunk's size should, then the connection ends."""
    async with vendor_of_tests() as vendor, connected(vendor) as client:
        await client.send(asked("garbage", 1))
        received = await client.read_all()

    framed = received.partition(HEAD_END)[2]
    assert framed.endswith(b"\r\n" + GARBAGE)
    assert len(dechunk(framed.removesuffix(GARBAGE))) == 1


async def test_fault_before_head() -> None:
    """After no event, reset, truncate and garbage come instead of the answer's head."""
    async with vendor_of_tests() as vendor:
        async with connected(vendor) as client:
            await client.send(asked("truncate"))
            assert await client.read_all() == b""
        async with connected(vendor) as client:
            await client.send(asked("garbage"))
            assert await client.read_all() == GARBAGE
        async with connected(vendor) as client:
            await client.send(asked("reset"))
            with pytest.raises(ConnectionResetError):
                await client.read_all()
            assert client.received == b""


async def test_fault_after_end() -> None:
    """A fault after exactly all events takes the final chunk away; one after more never happens."""
    async with vendor_of_tests() as vendor:
        async with connected(vendor) as client:
            await client.send(asked("truncate", 7))
            chunks = dechunk((await client.read_all()).partition(HEAD_END)[2])
            assert (len(chunks), chunks[-1]) == (7, b"data: [DONE]\n\n")
        async with connected(vendor) as client:
            await client.send(asked("truncate", 8))
            assert len(parse(await client.read_all()).chunks) == 7


async def test_fault_error_event_after_end() -> None:
    """An error event after all events follows them; after more than all it never comes."""
    async with vendor_of_tests() as vendor:
        last = (await ask(vendor, f"{CHAT}?events=1&fault=error_event&fault_after=4", STREAM)).chunks
        never = (await ask(vendor, f"{CHAT}?events=1&fault=error_event&fault_after=5", STREAM)).chunks
    assert (len(last), b'"error"' in last[-1]) == (5, True)
    assert (len(never), never[-1]) == (4, b"data: [DONE]\n\n")


@pytest.mark.parametrize(("after", "events"), [(0, 0), (2, 2)])
async def test_fault_stall(after: int, events: int) -> None:
    """A stalled answer stays open and silent, before its head or inside its body, until its client goes."""
    async with vendor_of_tests() as vendor:
        async with connected(vendor) as client:
            await client.send(asked("stall", after))
            if events:
                await client.read_until(b"Hello")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.read(), 0.1)
            assert len(dechunk(bytes(client.received).partition(HEAD_END)[2])) == events
            assert vendor.stats.active == 1
        async with asyncio.timeout(TIMEOUT_S):
            await vendor.wait_for(lambda stats: stats.cancelled == 1)


@pytest.mark.parametrize("after", [0, 3])
async def test_fault_split(after: int) -> None:
    """A split answer is whole, but from the fault on no two of its bytes come in one packet."""
    async with vendor_of_tests() as vendor, connected(vendor) as client:
        await client.send(asked("split", after))
        response = parse(await client.read_all())

    assert len(response.chunks) == 7
    # Reads may join packets, where the reader is late; hundreds of bytes alone can only come of single writes.
    alone = sum(len(read) == 1 for read in client.reads)
    whole = len(client.received) if after == 0 else sum(map(len, response.chunks[3:]))
    assert alone > whole // 4


async def test_fault_split_later_only() -> None:
    """What comes before the fault is not split."""
    async with vendor_of_tests() as vendor, connected(vendor) as client:
        await client.send(asked("split", 3))
        await client.read_until(HEAD_END)
    assert len(client.reads) <= 2


async def test_fault_slow_headers() -> None:
    """A slow head comes byte by byte at the pace asked for, and then the answer goes on."""
    async with vendor_of_tests() as vendor, connected(vendor) as client:
        await client.send(asked("slow_headers", more="&interval_ms=1"))
        started = asyncio.get_running_loop().time()
        await client.read_until(HEAD_END)
        took_s = asyncio.get_running_loop().time() - started
        assert took_s >= 0.001 * client.received.index(HEAD_END)
        assert len(client.reads) > 50
        assert len(parse(await client.read_all()).chunks) == 7


@pytest.mark.parametrize(("fault", "tail"), [("truncate", b""), ("garbage", GARBAGE)])
async def test_fault_in_json(fault: str, tail: bytes) -> None:
    """A fault after one event strikes in the middle of a JSON body."""
    async with vendor_of_tests() as vendor, connected(vendor) as client:
        await client.send(asked(fault, 1, body=PROMPT))
        head, _, body = (await client.read_all()).partition(HEAD_END)
    half = body.removesuffix(tail)
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
    assert len(half) == int(length.split(b": ")[1]) // 2


async def test_split_json() -> None:
    """A JSON answer sent byte by byte is whole."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{CHAT}?fault=split", PROMPT)
    assert response.json["object"] == "chat.completion"


async def test_crlf_error_length() -> None:
    """The length of an answer counts the line ends that were asked for."""
    async with vendor_of_tests() as vendor:
        response = await ask(
            vendor,
            "/api/v1/services/aigc/text-generation/generation?status=400&newline=crlf",
            {},
            {**BEARER, "X-DashScope-SSE": "enable"},
        )
    assert response.body.startswith(b"id:1\r\nevent:error\r\n:HTTP_STATUS/400\r\ndata:")
    assert response.body.endswith(b"}\r\n\r\n")


async def test_pace() -> None:
    """Events come no faster than their interval, the first no sooner than its own time; each comes by itself."""
    for _ in range(20):
        with Stopwatch() as watch:
            times = await times_of_a_paced_stream()
            # Behind its time the vendor hurries, so only a machine that did not stand still shows each by itself.
            if watch.is_true:
                break

    # The loop's clock has whole milliseconds.
    assert all(at_s > due_s - 0.005 for at_s, due_s in zip(times, (0.06, 0.09, 0.12, 0.15, 0.21), strict=True))
    # A little less than the interval: the reader may be late for one event and in time for the next.
    assert all(later - earlier > 0.01 for earlier, later in pairwise(times[1:]))


async def times_of_a_paced_stream() -> list[float]:
    loop = asyncio.get_running_loop()
    async with vendor_of_tests() as vendor, connected(vendor) as client:
        started = loop.time()
        await client.send(request(f"{CHAT}?events=3&interval_ms=30&first_byte_ms=60", STREAM))
        times = []
        for wanted in (HEAD_END, b"Hello", b" from", b" the", b"[DONE]"):
            await client.read_until(wanted)
            times.append(loop.time() - started)
    return times


async def test_pace_default() -> None:
    """The vendor's own interval holds where a request asks for none."""
    async with vendor_of_tests(interval_ms=20) as vendor:
        started = asyncio.get_running_loop().time()
        await ask(vendor, f"{CHAT}?events=2", STREAM)
        assert asyncio.get_running_loop().time() - started >= 0.08


class FullTransport(asyncio.Transport):
    """A transport whose peer takes a write only when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.drains: asyncio.Queue[asyncio.Event] = asyncio.Queue()
        self.high: int | None = None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    async def drain(self) -> None:
        room = asyncio.Event()
        self.drains.put_nowait(room)
        await room.wait()


async def test_back_pressure() -> None:
    """An event is made and written only when there is room: a client that does not read stops the mock."""
    made: list[int] = []

    def pieces() -> Iterator[bytes]:
        for number in range(1000):
            made.append(number)
            yield b"%d" % number

    transport = FullTransport()
    sender = Sender(transport, transport.drain, Controls(), is_http_1_0=False, keeps_alive=True)
    answer = Answer(200, "text/event-stream", pieces(), error_event=lambda _: b"")
    sending = asyncio.create_task(sender.send(answer, received_at=0.0))
    async with asyncio.timeout(TIMEOUT_S):
        (await transport.drains.get()).set()  # the head has left
        for event in range(3):
            room = await transport.drains.get()
            assert transport.writes[1:] == [b"1\r\n%d\r\n" % number for number in range(event + 1)]
            assert len(made) == event + 2  # one is looked ahead at, to know the last
            room.set()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    assert transport.high == 0


async def test_keep_alive() -> None:
    """A connection serves one answer after another, JSON, stream and refusal alike."""
    async with vendor_of_tests() as vendor, connected(vendor) as client:
        for body, end in ((STREAM, b"0\r\n\r\n"), (PROMPT, b"}}}"), (b"x", b"}}"), (STREAM, b"0\r\n\r\n")):
            await client.send(request(f"{CHAT}?events=1", body, closes=False))
            await client.read_until(end)
            assert b"Connection:" not in client.received
            client.received.clear()
        await vendor.wait_for(lambda stats: stats.finished == 4)


async def test_http_1_0() -> None:
    """A client of HTTP/1.0 gets the stream unframed, ended by the connection's end."""
    async with vendor_of_tests() as vendor, connected(vendor) as client:
        await client.send(request(f"{CHAT}?events=1", STREAM, version="1.0", closes=False))
        response = parse(await client.read_all())
    assert "transfer-encoding" not in response.fields
    assert response.fields["connection"] == "close"
    assert [chunk["object"] for chunk in response.data] == ["chat.completion.chunk"] * 3
    assert response.body.endswith(b"data: [DONE]\n\n")


async def test_large_event() -> None:
    """The largest event arrives whole."""
    async with vendor_of_tests() as vendor:
        response = await ask(vendor, f"{CHAT}?events=1&size=16777216", STREAM)
    assert len(response.data[1]["choices"][0]["delta"]["content"]) == 16 * 1024 * 1024
