"""The benchmark's own measuring tools: the numbers of the product's central claim hang on them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

NATIVE = Path(__file__).parents[2] / "benchmarks" / "native"
WAIT_S = 10

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
DELTA = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":0,"model":"bench",'
    b'"choices":[{"index":0,"delta":%s,"finish_reason":%s}]}\n\n'
)
STOP = DELTA % (b"{}", b'"stop"')
DONE = b"data: [DONE]\n\n"
LAST = b"0\r\n\r\n"


class Asked(NamedTuple):
    """What one request asked for, and where it came from."""

    id: int
    events: int
    size: int
    connection: int
    address: str


class Answer(NamedTuple):
    """The bytes of one answer, in the pieces to be written, and what happens to the connection after them."""

    pieces: list[bytes]
    after: str = "keep"


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both programs, built as anyone would build them, with every warning an error."""
    compiler = shutil.which("cc")
    if compiler is None:
        absent = "no C compiler (cc) on this machine"
        if os.environ.get("CI") == "true":
            pytest.fail(absent)
        pytest.skip(absent)
    folder = tmp_path_factory.mktemp("native")
    flags = ["-O2", "-Wall", "-Wextra", "-Werror"]
    for name in ("upstream", "load"):
        subprocess.run([compiler, *flags, "-o", folder / name, NATIVE / f"{name}.c"], check=True)
    return folder


@pytest.fixture
def upstream(native: Path) -> Iterator[int]:
    """The port of a fresh upstream, which has to end cleanly when it is told to."""
    with subprocess.Popen([native / "upstream", "--port", "0"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline().removeprefix(b"ready "))
        process.terminate()
        assert process.wait(WAIT_S) == 0


class Load:
    """Runs the load generator; its lines are read as they come."""

    def __init__(self, program: Path) -> None:
        self._program = program

    async def start(self, port: int, mode: str, **options: Any) -> asyncio.subprocess.Process:
        flags = [name for name, value in options.items() if value is True]
        values = [text for name, value in options.items() if value is not True for text in (f"--{name}", str(value))]
        arguments = [text.replace("_", "-") for text in ("--mode", mode, *(f"--{name}" for name in flags), *values)]
        return await asyncio.create_subprocess_exec(
            self._program, "--port", str(port), *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    async def __call__(self, port: int, mode: str = "request", **options: Any) -> Any:
        """The result of a run that goes on to its end."""
        process = await self.start(port, mode, **options)
        async with asyncio.timeout(WAIT_S):
            output, errors = await process.communicate()
        assert process.returncode == 0, errors
        return json.loads(output.splitlines()[-1])


@pytest.fixture
def load(native: Path) -> Load:
    return Load(native / "load")


async def talk(port: int, request: bytes) -> tuple[bytes, bytes]:
    """Head and body of the answer to one request on a connection of its own."""
    async with asyncio.timeout(WAIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        body = await (reader.readexactly(int(length[1])) if length else reader.read())
        writer.close()
        await writer.wait_closed()
    return head, body


async def ask(port: int, path: str, method: str = "GET") -> Any:
    _, body = await talk(port, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return json.loads(body)


async def settled(port: int) -> dict[str, Any]:
    """The upstream's counts once no stream runs any more."""
    async with asyncio.timeout(WAIT_S):
        while True:
            stats: dict[str, Any] = await ask(port, "/bench/stats")
            if not stats["active"]:
                return stats


def event(seq: int, size: int = 0, ns: int | None = None) -> bytes:
    marker = f"@{seq},{time.monotonic_ns() if ns is None else ns}@".ljust(size, "~")
    return DELTA % (b'{"content":"%s"}' % marker.encode(), b"null")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def chunks(*parts: bytes) -> list[bytes]:
    return [chunk(part) for part in parts]


def right(asked: Asked) -> list[bytes]:
    """The body that the upstream would have sent."""
    return [*(event(seq, asked.size) for seq in range(asked.events)), STOP, DONE]


@asynccontextmanager
async def scripted(script: Callable[[Asked], Answer]) -> AsyncIterator[int]:
    """The port of a server that answers as a proxy that is at fault would."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        number = connections
        writer.transport.set_write_buffer_limits(0)  # a piece has left when it is drained
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = re.search(rb"Content-Length: (\d+)", head)
                assert length is not None
                body = (await reader.readexactly(int(length[1]))).decode()
                tokens = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", body)}
                address = writer.get_extra_info("peername")[0]
                answer = script(Asked(tokens["id"], tokens["events"], tokens["size"], number, address))
                for piece in answer.pieces:
                    writer.write(piece)
                    await writer.drain()
                if answer.after == "reset":
                    connection = writer.get_extra_info("socket")
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if answer.after != "keep":
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the load generator is done with this connection
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


def check_times(result: dict[str, Any]) -> None:
    """Every figure is there, none is negative, and they stand in order."""
    delay = result["delay_us"]
    assert 0 <= delay["p50"] <= delay["p99"] <= delay["max"] < WAIT_S * 1e6
    assert 0 < result["ttfb_us"]["p50"] <= result["ttfb_us"]["p99"]
    assert result["wall_s"] > 0


# ---- against the upstream itself ----


async def test_native_request(load: Load, upstream: int) -> None:
    """A closed loop counts every request once on both sides, and sees the upstream's very bytes."""
    result = await load(upstream, connections=8, requests=500, size=60, expect_exact=True)
    stats = await settled(upstream)

    assert (result["requests"], result["complete"], result["failed"], result["failures"]) == (500, 500, 0, {})
    assert result["events"] == 500
    assert result["bytes"] == 500 * (len(event(0, 60)) + len(STOP) + len(DONE))
    assert (stats["requests"], stats["finished"], stats["cancelled"]) == (500, 500, 0)
    check_times(result)
    assert result["ttfb_us"]["p50"] <= result["request_us"]["p99"]


async def test_native_paced(load: Load, upstream: int) -> None:
    """Paced streams bring each event once, at the pace that was asked for."""
    result = await load(
        upstream, "streams", connections=10, events=20, interval_us=5000, size=40, repeat=2, expect_exact=True
    )

    assert (result["complete"], result["failed"], result["events"]) == (20, 0, 400)
    assert result["wall_s"] >= 2 * 18.5 * 0.005
    check_times(result)


async def test_native_flat(load: Load, upstream: int) -> None:
    """Unpaced streams that fill every buffer on the way arrive whole."""
    result = await load(upstream, "streams", connections=5, events=5000, size=1000, expect_exact=True)

    assert (result["complete"], result["failed"], result["events"]) == (5, 0, 25000)
    assert (await settled(upstream))["finished"] == 5
    check_times(result)


async def test_native_hold(load: Load, upstream: int) -> None:
    """The line `holding` comes when all streams run, and they run on until the time is over."""
    process = await load.start(upstream, "streams", connections=20, interval_us=100_000, ramp_ms=50, hold_s=0.3)
    async with asyncio.timeout(WAIT_S):
        assert process.stdout is not None
        assert await process.stdout.readline() == b"holding 20\n"
        during = await ask(upstream, "/bench/stats")
        result = json.loads(await process.stdout.read())
        assert await process.wait() == 0

    assert during["active"] == 20
    assert (result["complete"], result["failed"]) == (20, 0)
    assert result["events"] >= 40
    assert result["wall_s"] >= 0.3
    assert (await settled(upstream))["cancelled"] == 20


async def test_native_cancel(load: Load, upstream: int) -> None:
    """Every stream left, by FIN or by RST, is seen closing after it was left, under the same id."""
    result = await load(
        upstream, "cancel", connections=8, requests=40, events=100_000, interval_us=1000, leave_ms=20, first_id=7
    )
    stats = await settled(upstream)
    seen = dict(await ask(upstream, "/bench/closes"))

    leaves = dict(result["leaves"])
    assert (result["complete"], result["failed"]) == (40, 0)
    assert sorted(leaves) == sorted(seen) == list(range(7, 47))
    assert all(seen[number] >= left_ns for number, left_ns in leaves.items())
    assert (stats["requests"], stats["finished"], stats["cancelled"]) == (40, 0, 40)


async def test_native_cancel_too_late(load: Load, upstream: int) -> None:
    """A stream that ends before it is left is no cancellation, and counts as a failure."""
    result = await load(upstream, "cancel", requests=3, events=1, leave_ms=1_000_000)

    assert result["failures"] == {"ended before we left": 3}
    assert result["leaves"] == []


async def test_native_slow(load: Load, upstream: int) -> None:
    """A reader that stalls holds the upstream up, and gets all of the answer afterwards."""
    process = await load.start(
        upstream, "slow", connections=3, events=12_000, size=1000, stall_s=0.3, expect_exact=True
    )
    async with asyncio.timeout(WAIT_S):
        assert process.stdout is not None
        assert await process.stdout.readline() == b"stalled 3\n"
        during = await ask(upstream, "/bench/stats")
        result = json.loads(await process.stdout.read())
        assert await process.wait() == 0

    assert during["active"] == 3
    assert (result["complete"], result["failed"], result["events"]) == (3, 0, 36_000)
    assert result["wall_s"] >= 0.3


async def test_native_upstream_reset(load: Load, upstream: int) -> None:
    """A reset forgets the counts and the closes of the runs before."""
    await load(upstream, "cancel", requests=3, events=1000, interval_us=1000, leave_ms=0)
    await settled(upstream)
    await ask(upstream, "/bench/reset", "POST")

    stats = await ask(upstream, "/bench/stats")
    assert (stats["requests"], stats["active"], stats["finished"], stats["cancelled"]) == (0, 0, 0, 0)
    assert await ask(upstream, "/bench/closes") == []


async def test_native_upstream_framings(upstream: int) -> None:
    """A body in chunks is understood, HTTP/1.0 gets a close-delimited answer, and no stream is JSON."""
    post = b"POST /v1/chat/completions HTTP/1.%s\r\nHost: x\r\n%s\r\n\r\n"
    body = b'{"stream": true, "messages": [{"content": "other=1 bench id=1 events=2 unknown=3;"}]}'
    in_chunks = post % (b"1", b"Connection: close\r\nTransfer-Encoding: chunked")
    in_chunks += chunk(body[:60]) + chunk(body[60:]) + LAST

    head, answer = await talk(upstream, in_chunks)
    assert b"chunked" in head
    assert (answer.count(b"@"), answer.endswith(LAST)) == (4, True)
    head, answer = await talk(upstream, post % (b"0", b"Content-Length: %d" % len(body)) + body)
    assert b"chunked" not in head
    assert (answer.count(b"@"), answer.endswith(STOP + DONE)) == (4, True)
    plain = body.replace(b"true", b"false")
    _, answer = await talk(upstream, post % (b"1", b"Content-Length: %d" % len(plain)) + plain)
    assert json.loads(answer)["object"] == "chat.completion"
    assert [model["id"] for model in (await ask(upstream, "/v1/models"))["data"]] == ["bench"]


# ---- against answers that are right in other shapes ----


def by_length(asked: Asked) -> Answer:
    body = b"".join(right(asked))
    return Answer([HEAD + b"X-One: 1\r\ncontent-length:%d \r\nX-Two:\r\n\r\n" % len(body), body])


def by_close(asked: Asked) -> Answer:
    return Answer([HEAD + b"\r\n", *right(asked)], after="close")


def after_interim(asked: Asked) -> Answer:
    return Answer([b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", CHUNKED, *chunks(*right(asked)), LAST])


def byte_by_byte(asked: Asked) -> Answer:
    whole = b"".join([CHUNKED, *chunks(*right(asked)), b"0\r\nTrailer: 1\r\n\r\n"])
    return Answer([whole[at : at + 1] for at in range(len(whole))])


def in_odd_chunks(asked: Asked) -> Answer:
    body = b"".join(right(asked))
    parts = [b"%02X;note=1\r\n%s\r\n" % (7, body[at : at + 7]) for at in range(0, len(body) - 7, 7)]
    return Answer([CHUNKED, *parts, chunk(body[7 * len(parts) :]), LAST])


def closing(asked: Asked) -> Answer:
    head = CHUNKED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    return Answer([head, *chunks(*right(asked)), LAST], after="close")


@pytest.mark.parametrize("script", [by_length, by_close, after_interim, byte_by_byte, in_odd_chunks, closing])
async def test_native_framings(load: Load, script: Callable[[Asked], Answer]) -> None:
    """An answer in any framing and any split that HTTP allows is complete."""
    async with scripted(script) as port:
        result = await load(port, connections=2, requests=4, events=5, size=50, expect_exact=True)

    assert (result["complete"], result["failures"], result["events"]) == (4, {}, 20)
    check_times(result)


async def test_native_rewritten_events(load: Load) -> None:
    """Events that a proxy has written anew, in other bytes around the same content, are recognised."""

    def rewritten(asked: Asked) -> Answer:
        body = [b'data:{"x":"@%d,%d@"}\r\n\r\n' % (seq, time.monotonic_ns()) for seq in range(asked.events)]
        return Answer([CHUNKED, *chunks(b": hello @ you, 1@2\r\n\r\n", *body, b"data:[DONE]\r\n\r\n"), LAST])

    async with scripted(rewritten) as port:
        result = await load(port, "streams", connections=2, events=5)

    assert (result["complete"], result["failures"], result["events"]) == (2, {}, 10)


async def test_native_kept_connections(load: Load) -> None:
    """A connection is used again until the answer says otherwise."""
    seen: list[int] = []

    def count(asked: Asked) -> Answer:
        seen.append(asked.connection)
        return closing(asked) if asked.id == 5 else by_length(asked)

    async with scripted(count) as port:
        result = await load(port, connections=1, requests=10)

    assert (result["complete"], seen) == (10, [1] * 5 + [2] * 5)


async def test_native_delay(load: Load) -> None:
    """The delay of an event is what passed between its stamp and its receipt."""

    def late(asked: Asked) -> Answer:
        body = right(asked)
        time.sleep(0.02)  # the delay to be measured; nobody else is served here
        return Answer([CHUNKED, *chunks(*body), LAST])

    async with scripted(late) as port:
        result = await load(port, requests=3)

    assert result["delay_us"]["p50"] >= 0.99 * 20_000
    check_times(result)


async def test_native_source_addresses(load: Load) -> None:
    """Above the mark the connections come from several loopback addresses, so that the ports do not run out."""
    seen = set()

    def note(asked: Asked) -> Answer:
        seen.add(asked.address)
        return by_length(asked)

    async with scripted(note) as port:
        result = await load(port, "streams", connections=6, per_source=2)

    assert (result["complete"], seen) == (6, {"127.0.0.2", "127.0.0.3", "127.0.0.4"})


# ---- against answers that are wrong ----


def broken(*parts: bytes, after: str = "keep") -> Callable[[Asked], Answer]:
    """Events 0 … 3 are asked for; digits among the parts stand for events."""

    def script(asked: Asked) -> Answer:
        body = [event(int(part), asked.size) if part.isdigit() else part for part in parts]
        return Answer([CHUNKED, *chunks(*body), LAST], after)

    return script


def raw(head: bytes, *parts: bytes, after: str = "close") -> Callable[[Asked], Answer]:
    def script(asked: Asked) -> Answer:
        return Answer([head, *(event(int(part), asked.size) if part.isdigit() else part for part in parts)], after)

    return script


def stamped(shift_ns: int) -> Callable[[Asked], Answer]:
    def script(asked: Asked) -> Answer:
        body = [event(seq, ns=time.monotonic_ns() + shift_ns) for seq in range(asked.events)]
        return Answer([CHUNKED, *chunks(*body, DONE), LAST])

    return script


def in_part(keep: int) -> Callable[[Asked], Answer]:
    def script(asked: Asked) -> Answer:
        return Answer([CHUNKED, b"".join([*chunks(*right(asked)), LAST])[:keep]], "close")

    return script


EVENTS = (b"0", b"1", b"2", b"3")
REFUSAL = b"HTTP/1.1 %s\r\nContent-Length: 2\r\n\r\n{}"
WRONG = {
    "missing": (broken(b"0", b"2", b"3", STOP, DONE), "event missing"),
    "reordered": (broken(b"0", b"2", b"1", b"3", STOP, DONE), "events reordered"),
    "duplicated": (broken(b"0", b"1", b"1", b"2", b"3", STOP, DONE), "event duplicated"),
    "repeated": (broken(*EVENTS, *EVENTS, DONE), "event duplicated"),
    "surplus": (broken(*EVENTS, b"4", DONE), "more events than asked"),
    "short": (broken(b"0", b"1", b"2", STOP, DONE), "events missing at the end"),
    "empty": (broken(), "events missing at the end"),
    "spoiled": (broken(b"0", b"1", event(2).replace(b",", b";"), b"3", DONE), "event missing"),
    "unterminated": (broken(*EVENTS, STOP), "no [DONE] at the end"),
    "no empty line": (broken(*EVENTS, STOP, DONE[:-1]), "no [DONE] at the end"),
    "after the end": (broken(*EVENTS, DONE, STOP), "no [DONE] at the end"),
    "stale": (stamped(-5_000_000_000), "event older than its request"),
    "early": (stamped(5_000_000_000), "event from the future"),
    "cut head": (raw(HEAD), "closed before the head"),
    "no answer": (raw(b""), "closed before the head"),
    "cut body": (in_part(300), "closed before the end"),
    "no final chunk": (in_part(-5), "closed before the end"),
    "half a final chunk": (in_part(-2), "closed before the end"),
    "cut by length": (raw(HEAD + b"Content-Length: 2000\r\n\r\n", *EVENTS, DONE), "closed before the end"),
    "cut by close": (raw(HEAD + b"\r\n", *EVENTS, STOP), "no [DONE] at the end"),
    "reset": (raw(CHUNKED, chunk(b": hello\n\n"), after="reset"), "reset before the end"),
    "limited": (raw(REFUSAL % b"429 Too Many Requests", after="keep"), "status 429"),
    "bad gateway": (raw(REFUSAL % b"502 Bad Gateway\r\nConnection: close"), "status 502"),
    "bodiless": (raw(b"HTTP/1.1 204 No Content\r\n\r\n", after="keep"), "status 204"),
    "not HTTP": (raw(b"SSH-2.0-OpenSSH_9\r\n"), "malformed status line"),
    "line ends": (raw(b"HTTP/1.1 200 OK\n\n"), "line without CRLF"),
    "two framings": (raw(CHUNKED[:-2] + b"Content-Length: 5\r\n\r\n"), "two framings"),
    "encoding": (raw(HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n"), "unknown Transfer-Encoding"),
    "length": (raw(HEAD + b"Content-Length: 5x\r\n\r\n"), "malformed Content-Length"),
    "chunk size": (raw(CHUNKED, b"xyz\r\n"), "malformed chunk size"),
    "chunk end": (raw(CHUNKED, b"2\r\nabc\r\n"), "chunk longer than its size"),
    "pipelined": (raw(REFUSAL % b"200 OK" + b"HTTP/1.1 200 OK\r\n"), "bytes after the answer"),
    "failed in JSON": (raw(REFUSAL % b"200 OK", after="keep"), "events missing at the end"),
}


@pytest.mark.parametrize(("script", "reason"), WRONG.values(), ids=WRONG.keys())
async def test_native_wrong_answers(load: Load, script: Callable[[Asked], Answer], reason: str) -> None:
    """An answer that is not what was asked for is a failure, every time, under the reason that it has."""
    async with scripted(script) as port:
        result = await load(port, requests=3, events=4)

    assert (result["requests"], result["complete"], result["failed"]) == (3, 0, 3)
    assert result["failures"] == {reason: 3}


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [(b"~", b"~~", "length differs"), (b"bench", b"BENCH", "bytes differ"), (b"~", b"x", "bytes differ")],
)
async def test_native_exact(load: Load, old: bytes, new: bytes, reason: str) -> None:
    """With `--expect-exact` one byte more, or another one, is a failure although every event is there."""

    def changed(asked: Asked) -> Answer:
        return Answer([CHUNKED, *chunks(b"".join(right(asked)).replace(old, new, 1)), LAST])

    async with scripted(changed) as port:
        strict = await load(port, requests=3, events=4, size=50, expect_exact=True)
        lenient = await load(port, requests=3, events=4, size=50)

    assert strict["failures"] == {reason: 3}
    assert (lenient["complete"], lenient["failures"]) == (3, {})


async def test_native_one_wrong_among_many(load: Load) -> None:
    """A wrong answer does not spoil the ones around it, and its connection serves on."""
    wrong = broken(b"0", b"0", DONE)

    async with scripted(lambda asked: wrong(asked) if asked.id % 3 == 0 else by_length(asked)) as port:
        result = await load(port, connections=2, requests=30, events=1)

    assert (result["complete"], result["failures"]) == (20, {"event duplicated": 10})


async def test_native_silence(load: Load) -> None:
    """An answer that stops coming is given up, not waited for."""
    async with scripted(lambda asked: Answer([CHUNKED, chunk(event(0))])) as port:
        result = await load(port, "streams", connections=2, events=3, silence_s=0.2)

    assert result["failures"] == {"silent before the end": 2}


async def test_native_ended_while_held(load: Load) -> None:
    """A stream that ends by itself was not held."""
    async with scripted(broken(b"0", b"1", STOP, DONE)) as port:
        result = await load(port, "streams", connections=2, hold_s=5)

    assert result["failures"] == {"events missing at the end": 2}


async def test_native_slow_reset(load: Load) -> None:
    """A proxy that gives up on a stalled reader has failed it."""
    stall = raw(CHUNKED, chunk(b": %s\n\n" % (b"x" * 2000)), after="reset")
    async with scripted(stall) as port:
        result = await load(port, "slow", connections=2, events=3, stall_s=5)

    assert result["failures"] == {"reset before the end": 2}
    assert result["wall_s"] < 4


async def test_native_refused(load: Load) -> None:
    """A proxy that is not there is a failure of each request, not of the run."""
    async with scripted(by_length) as port:
        pass
    result = await load(port, connections=2, requests=5)

    assert result["failures"] == {"connect: Connection refused": 5}
    assert result["delay_us"] == {"p50": None, "p99": None, "max": None}


# ---- the program itself ----


async def test_native_progress(load: Load, upstream: int) -> None:
    """Progress goes to standard error, never above its total, and ends there."""
    process = await load.start(upstream, "streams", connections=2, events=30, interval_us=10_000, progress=True)
    async with asyncio.timeout(WAIT_S):
        output, errors = await process.communicate()

    lines = [line.split() for line in errors.decode().splitlines()]
    assert {line[0] for line in lines} == {"progress"}
    done = [int(line[1]) for line in lines]
    assert done == sorted(done)
    assert lines[-1] == ["progress", "60", "60"]
    assert json.loads(output)["complete"] == 2


async def test_native_terminated(load: Load, upstream: int) -> None:
    """Ended from outside, the run says what it had, and that it is not whole."""
    process = await load.start(upstream, "streams", connections=3, interval_us=1_000_000, hold_s=100)
    async with asyncio.timeout(WAIT_S):
        assert process.stdout is not None
        assert await process.stdout.readline() == b"holding 3\n"
        process.terminate()
        result = json.loads(await process.stdout.read())
        assert await process.wait() == 1

    assert result["failures"] == {"interrupted": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--mode request", "--port is missing"),
        ("--port 1 --mode fast", "--mode is one of"),
        ("--port 1 --conections 2", "unknown option --conections"),
        ("--port 1 --requests", "--requests needs a value"),
        ("--port 1 --requests -1", "--requests: -1 is not a whole number"),
        ("--port 1 --hold-s 1", "--hold-s goes with"),
        ("--port 1 --host example.com", "--host: example.com is not"),
    ],
)
def test_native_wrong_use(native: Path, arguments: str, message: str) -> None:
    """Wrong use is exit 2 and names the option."""
    process = subprocess.run([native / "load", *arguments.split()], capture_output=True, text=True, check=False)

    assert (process.returncode, process.stdout) == (2, "")
    assert message in process.stderr


def test_native_descriptor_limit(native: Path) -> None:
    """More connections than the machine allows are refused before the run, with both figures."""
    command = f"ulimit -n 64; exec {native / 'load'} --port 1 --mode streams --connections 100"
    process = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)

    assert process.returncode == 1
    assert "100 connections" in process.stderr
    assert "64" in process.stderr
