"""What the load generator makes of right and wrong answers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.benchmarks.native_support import (
    CHUNKED,
    DONE,
    HEAD,
    LAST,
    STOP,
    Answer,
    Asked,
    Load,
    check_times,
    chunk,
    chunks,
    event,
    right,
    scripted,
)

if TYPE_CHECKING:
    from collections.abc import Callable

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
