"""The event that comes of `include_usage`: what is it, what is not, and that only it is missing of a stream."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.usage_event import MAX_EVENT_BYTES, UsageEventRemover, is_usage_event

HEAD = '"id":"c","object":"chat.completion.chunk","created":1,"model":"m"'
USAGE = '{"prompt_tokens":1,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":0}}'
TOLD = f'data: {{{HEAD},"choices":[],"usage":{USAGE}}}'.encode()
TEXT = f'data: {{{HEAD},"choices":[{{"index":0,"delta":{{"content":"hi"}}}}],"usage":null}}'.encode()
DONE = b"data: [DONE]"

IS_IT = [
    TOLD,
    b"data:" + TOLD[6:],
    b'data: {"usage":{},"choices":[]}',
    b'data: {"choices" : [ ], "usage" :\t{"prompt_tokens": 1}}',
    b"id: 7\nevent: message\n" + TOLD,
    b'data: {"choices":[],\ndata: "usage":{"total_tokens":1}}',
    b'data: {"choices":[],"usage":{"a":1},"x":"\\"choices\\":[1]"}',
    b'data: {"choices":[],"usage":{"a":1},"error":null}',
]
IS_NOT = [
    TEXT,
    DONE,
    b": comment",
    b": " + TOLD,
    b"event: usage",
    b'data: {"choices":[],"usage":null,"prompt_filter_results":[{"prompt_index":0}]}',
    b'data: {"choices":[],"prompt_filter_results":[{"prompt_index":0}]}',
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"total_tokens":1}}',
    b'data: {"choices": [ {"delta":{}}], "usage": {"total_tokens":1}}',
    b'data: {"choices":[{"delta":{"content":"\\"choices\\":[],\\"usage\\":{}"}}]}',
    b'data: {"usage":{"total_tokens":1}}',
    b'data: {"choices":null,"usage":{"total_tokens":1}}',
    b'data: {"choices":{},"usage":{"total_tokens":1}}',
    b'data: {"choices":[],"usage":7}',
    b'data: {"choices":[],"usage":[]}',
    b'data: {"choices":[],"usage":{"total_tokens":1},"error":{"message":"overloaded"}}',
    b'data: {"choices":[],"usage":{"total_tokens":1}',
    b'data: [{"choices":[],"usage":{}}]',
    b'data: {"x":{"choices":[],"usage":{}}}',
    b'datas: {"choices":[],"usage":{}}',
    b'data: {"type":"response.completed","response":{"usage":{"input_tokens":1}}}',
    TOLD[:-1] + b',"pad":"' + b"x" * MAX_EVENT_BYTES + b'"}',
]
# Its comment is no part of it.
COMMENT = b": still here"
COMMENTED = COMMENT + b"\n" + TOLD
ENDS = [b"\n", b"\r\n", b"\r"]


def name(event: bytes) -> str:
    return event[:70].decode()


def fed(pieces: list[bytes]) -> bytes:
    remover = UsageEventRemover()
    return b"".join(remover.feed(piece) for piece in pieces) + remover.end()


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[begin:end] for begin, end in pairwise(at)]


@pytest.mark.parametrize("event", IS_IT, ids=name)
def test_is_usage_event(event: bytes) -> None:
    """An event without choices that has usage is it, however it is written, with its blank line or without."""
    assert is_usage_event(event)
    assert is_usage_event(event + b"\n\n")
    assert is_usage_event(event.replace(b"\n", b"\r\n") + b"\r\n\r\n")


@pytest.mark.parametrize("event", IS_NOT, ids=name)
def test_is_no_usage_event(event: bytes) -> None:
    """Nothing else is: no chunk with choices, no null, no error, no text that looks like it."""
    assert not is_usage_event(event + b"\n\n")


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 1_000_000])
def test_remover_passes_all_but_one(end: bytes, size: int) -> None:
    """Of a stream in reads of any size and with any line ends, the client is given all bytes but one event's."""

    def lines(event: bytes) -> bytes:
        return event.replace(b"\n", end) + end + end

    before = end + b"".join(lines(event) for event in (IS_NOT[2], TEXT, *IS_NOT, TEXT)) + end
    after = lines(DONE) + end + b"data: unfinished"
    stream = before + lines(TOLD) + after
    assert fed([stream[at : at + size] for at in range(0, len(stream), size)]) == before + after


@given(
    st.lists(
        st.sampled_from(
            [*IS_IT, *IS_NOT[:-1], TEXT, TEXT, COMMENTED, COMMENTED, b"", b"data: \xff", b"\xef\xbb\xbfdata: x"]
        ),
        max_size=8,
    ),
    st.lists(st.sampled_from(ENDS), min_size=4, max_size=4),
    st.lists(st.integers(min_value=0), max_size=30),
    st.booleans(),
)
def test_remover_for_every_split(events: list[bytes], ends: list[bytes], places: list[int], is_whole: object) -> None:
    """Wherever reads split a stream, with line ends mixed, the client is given the bytes of all other events."""
    stream, expected = b"", b""
    for number, event in enumerate(events):
        first, second = ends[number % 4], ends[(number + 1) % 4]
        if first + second == b"\r\n":
            # That is one line end.
            second = b"\r"
        lines = event.replace(b"\n", first) + first + second
        if number == len(events) - 1 and not is_whole:
            lines = lines.removesuffix(first + second)
        # A line feed behind a CR belongs to it: none begins an event here, but an empty one's.
        if stream.endswith(b"\r") and lines.startswith(b"\n"):
            lines = b"\r" + lines[1:]
        stream += lines
        if event == COMMENTED:
            expected += COMMENT + first
        elif event not in IS_IT:
            expected += lines
    assert fed(cut(stream, places)) == expected
    assert fed([stream]) == expected
    assert fed([stream[at : at + 1] for at in range(len(stream))]) == expected


@given(st.binary(max_size=200), st.lists(st.integers(min_value=0), max_size=20))
def test_remover_of_junk(junk: bytes, places: list[int]) -> None:
    """Bytes that are no event stream pass as they are."""
    assert fed(cut(junk, places)) == junk


@pytest.mark.parametrize("at", range(len(TEXT)))
def test_remover_holds_back_no_choices(at: int) -> None:
    """What has come of an event passes before its end, once it shows choices; nothing is lost of it where it ends."""
    remover = UsageEventRemover()
    begun = remover.feed(TEXT[:at])
    assert begun in {b"", TEXT[:at]}
    if b'"choices":[{' in TEXT[:at]:
        assert begun == TEXT[:at]
    rest = remover.feed(TEXT[at:] + b"\n\n")
    assert begun + rest == TEXT + b"\n\n"
    assert remover.is_between


@pytest.mark.parametrize("at", range(1, len(TOLD) + 1))
def test_remover_holds_all_of_its_beginning(at: int) -> None:
    """Of the event itself nothing passes, wherever it breaks off or is split."""
    remover = UsageEventRemover()
    assert remover.feed(TOLD[:at]) == b""
    assert not remover.is_between
    assert remover.feed(TOLD[at:] + b"\n") == b""
    assert remover.feed(b"\n" + DONE + b"\n\n") == DONE + b"\n\n"


@pytest.mark.parametrize("end", ENDS)
def test_remover_passes_comments(end: bytes) -> None:
    """A comment passes with the end of its line: it may be all that keeps a connection alive."""
    remover = UsageEventRemover()
    assert remover.feed(TEXT + end + end) + remover.feed(b": still") == TEXT + end + end
    assert remover.feed(b" here" + end) == b": still here" + end
    assert remover.feed(b": twice" + end + b": in a read" + end) == b": twice" + end + b": in a read" + end
    assert remover.feed(TOLD + end) == b""
    assert remover.feed(end + DONE + end + end) + remover.end() == DONE + end + end


def test_remover_without_blank_line() -> None:
    """A last event that lacks its blank line is removed at the stream's end all the same."""
    for end in (b"", b"\n", b"\r\n", b"\r\n\r"):
        assert fed([TEXT + b"\n\n" + TOLD + end]) == TEXT + b"\n\n"


def test_remover_is_bounded() -> None:
    """Of an event that does not end no more than the bound is held."""
    remover = UsageEventRemover()
    piece = b"x" * 1000
    passed = held = len(remover.feed(b'data: {"usage":{"'))
    for sent in range(1000, 200_000, 1000):
        passed += len(remover.feed(piece))
        held = max(held, sent - passed)
    assert held <= MAX_EVENT_BYTES
    assert passed > 100_000


def test_remover_is_linear() -> None:
    """An event of many reads of one byte costs each of them the same."""

    def cost_s(size: int) -> float:
        remover = UsageEventRemover()
        began_s = time.thread_time()
        for _ in range(size):
            remover.feed(b"x")
        return time.thread_time() - began_s

    small_s, large_s = min(cost_s(6_000) for _ in range(3)), min(cost_s(60_000) for _ in range(3))
    assert large_s < 40 * small_s


def test_remover_of_flat_reads() -> None:
    """A read of many events passes as it is but for the one, and as the same object where that is not in it."""
    flat = (TEXT + b"\n\n") * 500
    remover = UsageEventRemover()
    assert remover.feed(flat) is flat
    assert remover.feed(flat + TOLD + b"\n\n" + flat) == flat + flat
    assert json.loads(TOLD[6:])["choices"] == []
