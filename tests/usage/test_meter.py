"""Tokens read from the bytes of answers: each dialect's figures, whatever the reads, codings and repetitions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects import DIALECTS
from proxy.dialects.told import Told
from proxy.usage import Estimates, Figures, Meter
from proxy.usage.estimates import MAX_LEARNED, SEED


def sse(*events: dict[str, Any] | str, line_end: str = "\n") -> bytes:
    lines = [f"data: {event if isinstance(event, str) else orjson.dumps(event).decode()}" for event in events]
    return "".join(f"{line}{line_end * 2}" for line in lines).encode()


def meter(
    dialect: str = "openai", *, is_stream: bool | None = True, model: str | None = "m", status: int = 200
) -> Meter:
    meter = Meter(DIALECTS[dialect], model=model, body_bytes=400)
    meter.begin(status, is_stream=is_stream)
    return meter


def figures_of(dialect: str, data: bytes, *, is_whole: bool = True, is_stream: bool = True) -> Figures:
    read = meter(dialect, is_stream=is_stream)
    read.feed(data)
    return Estimates().figures(read, "up", is_whole=is_whole)


def text(content: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content}}], "usage": None, **more}


OPENAI_USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 20,
    "total_tokens": 30,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 7},
}
STREAMS: dict[str, tuple[str, tuple[dict[str, Any] | str, ...], tuple[int, int, int, int, int]]] = {
    "openai chat": ("openai", (text("a"), {"choices": [], "usage": OPENAI_USAGE}, "[DONE]"), (10, 20, 4, 0, 7)),
    # Of some clones, every chunk: the last counts, and is not added.
    "openai running totals": (
        "openai",
        (
            text("a", usage={"prompt_tokens": 10, "completion_tokens": 1}),
            text("b", usage={"prompt_tokens": 10, "completion_tokens": 2}),
            text("", usage={"prompt_tokens": None, "completion_tokens": 3}),
        ),
        (10, 3, 0, 0, 0),
    ),
    "openai responses": (
        "openai",
        (
            {"type": "response.created", "response": {"model": "m", "usage": None}},
            {"type": "response.output_text.delta", "delta": "a"},
            {
                "type": "response.completed",
                "response": {
                    "usage": {
                        "input_tokens": 5,
                        "input_tokens_details": {"cached_tokens": 0},
                        "output_tokens": 6,
                        "output_tokens_details": {"reasoning_tokens": 2},
                    }
                },
            },
        ),
        (5, 6, 0, 0, 2),
    ),
    "anthropic": (
        "anthropic",
        (
            {
                "type": "message_start",
                "message": {
                    "model": "m",
                    "usage": {
                        "input_tokens": 3,
                        "cache_creation_input_tokens": 20,
                        "cache_read_input_tokens": 100,
                        "output_tokens": 1,
                    },
                },
            },
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}},
            {"type": "message_delta", "usage": {"output_tokens": 5}},
            {"type": "message_delta", "usage": {"output_tokens": 15, "cache_read_input_tokens": None}},
        ),
        (123, 15, 100, 20, 0),
    ),
    "gemini": (
        "gemini",
        (
            {"usageMetadata": {"promptTokenCount": 8, "thoughtsTokenCount": 3}},
            {"usageMetadata": {"promptTokenCount": 8, "candidatesTokenCount": 5, "cachedContentTokenCount": 2}},
            {"usageMetadata": {"promptTokenCount": 8, "candidatesTokenCount": 9, "thoughtsTokenCount": 40}},
        ),
        (8, 49, 2, 0, 40),
    ),
    "dashscope": (
        "dashscope",
        (
            {"output": {"text": "a"}, "usage": {"input_tokens": 2, "output_tokens": 1}},
            {
                "output": {"text": "b"},
                "usage": {"input_tokens": 2, "output_tokens": 9, "prompt_tokens_details": {"cached_tokens": 1}},
            },
        ),
        (2, 9, 1, 0, 0),
    ),
    "dashscope application": (
        "dashscope",
        ({"usage": {"models": [{"input_tokens": 2, "output_tokens": 1}, {"input_tokens": 3, "output_tokens": 4}]}},),
        (5, 5, 0, 0, 0),
    ),
    "zero is a value": (
        "openai",
        (text("", usage={"prompt_tokens": 9, "completion_tokens": 9}), {"usage": {"completion_tokens": 0}}),
        (9, 0, 0, 0, 0),
    ),
}


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", STREAMS)
@given(cuts=st.lists(st.integers(0, 2000), max_size=6))
def test_reported_whatever_the_reads(name: str, line_end: str, cuts: list[int]) -> None:
    """Of each figure the last value that is not null, however the bytes are split."""
    dialect, events, expected = STREAMS[name]
    data = sse(*events, line_end=line_end)
    read = meter(dialect)
    ends = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in pairwise(ends):
        read.feed(data[start:end])
    assert Estimates().figures(read, "up", is_whole=True) == Figures("reported", "m", *expected)


@pytest.mark.parametrize("name", STREAMS)
def test_reported_event_by_event(name: str) -> None:
    """The same where each read was one whole event in a chunk of its own."""
    dialect, events, expected = STREAMS[name]
    read = meter(dialect)
    for event in events:
        data = sse(event)
        read.passed.append(b"%x\r\n%b\r\n" % (len(data), data))
    assert Estimates().figures(read, "up", is_whole=True) == Figures("reported", "m", *expected)


PASSED = st.one_of(
    st.just(text("words and 文字")),
    st.integers(0, 99).map(lambda tokens: text("x", usage={"prompt_tokens": 7, "completion_tokens": tokens})),
    st.just(text('he said "usage": {"completion_tokens": 5}')),
    st.just({"choices": [], "usage": {"prompt_tokens": None, "completion_tokens": 3}}),
)


@given(events=st.lists(PASSED, max_size=40), together=st.integers(1, 20), is_whole=st.booleans())
def test_passed_events_read_together(events: list[dict[str, Any]], together: int, *, is_whole: bool) -> None:
    """However many passed events are read at once, the figures are those of one after the other."""
    one, several = meter(), meter()
    for count, event in enumerate(map(sse, events), 1):
        one.passed.append(event)
        one.read_passed()
        several.passed.append(event)
        if count % together == 0:
            several.read_passed()
    expected = Estimates().figures(one, "up", is_whole=is_whole)
    assert Estimates().figures(several, "up", is_whole=is_whole) == expected


class Parsing(Told):
    """Has every event parsed that is looked at."""

    def is_known(self, event: bytes) -> bool:
        return False


TOLD_EVENTS = st.fixed_dictionaries(
    {"id": st.sampled_from(("c-1", "c-1", "c-1", "c-2"))},
    optional={
        "choices": st.tuples(
            st.fixed_dictionaries(
                {
                    "delta": st.fixed_dictionaries(
                        {"content": st.sampled_from(("words", "文字", "the id", 'a "quote"', ""))}
                    )
                },
                optional={"finish_reason": st.none() | st.sampled_from(("stop", "length"))},
            )
        ),
        "delta": st.sampled_from(({"type": "text_delta", "text": "words"}, {"stop_reason": "end_turn"})),
        "model": st.sampled_from(("m-1", "m-2")),
        "usage": st.none() | st.integers(0, 99).map(lambda tokens: {"prompt_tokens": 7, "completion_tokens": tokens}),
    },
)


@given(
    events=st.lists(TOLD_EVENTS, max_size=40),
    dialect=st.sampled_from(("openai", "anthropic")),
    model=st.none() | st.just("m"),
    is_whole=st.booleans(),
)
def test_told_as_if_all_were_parsed(
    events: list[dict[str, Any]], dialect: str, model: str | None, *, is_whole: bool
) -> None:
    """Figures, the answer's id and its reasons are those of a meter that parses each sample."""
    by_pattern, parsing, silent = (meter(dialect, model=model) for _ in range(3))
    by_pattern.told, parsing.told = Told(), Parsing()
    for event in map(sse, events):
        for read in (by_pattern, parsing, silent):
            read.passed.append(event)
            read.read_passed()
    figures = [Estimates().figures(read, "up", is_whole=is_whole) for read in (by_pattern, parsing, silent)]
    assert figures[0] == figures[1] == figures[2]
    assert by_pattern.text_bytes == parsing.text_bytes == silent.text_bytes
    assert by_pattern.told.id == parsing.told.id
    assert by_pattern.told.finish_reasons == parsing.told.finish_reasons


@pytest.mark.parametrize(
    ("dialect", "answer", "expected"),
    [
        (
            "openai",
            {"choices": [{"message": {"content": 'say \\"usage\\": {"a"'}}], "usage": OPENAI_USAGE},
            (10, 20, 4, 0, 7),
        ),
        (
            "openai",
            {"data": [{"embedding": [0.1] * 20_000}], "usage": {"prompt_tokens": 3, "total_tokens": 3}},
            (3, 0, 0, 0, 0),
        ),
        ("anthropic", {"content": [], "usage": {"input_tokens": 3, "output_tokens": 4}, "model": "x"}, (3, 4, 0, 0, 0)),
        (
            "gemini",
            {
                "candidates": [],
                "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 2},
                "modelVersion": "x",
            },
            (1, 2, 0, 0, 0),
        ),
        (
            "dashscope",
            {"output": {}, "usage": {"input_tokens": 1, "output_tokens": 2}, "request_id": "x"},
            (1, 2, 0, 0, 0),
        ),
    ],
)
def test_reported_in_a_whole_answer(dialect: str, answer: dict[str, Any], expected: tuple[int, ...]) -> None:
    """A JSON answer's usage is found, however large what stands before it; also with white space."""
    for data in (orjson.dumps(answer), orjson.dumps(answer, option=orjson.OPT_INDENT_2)):
        assert figures_of(dialect, data, is_stream=False) == Figures("reported", "m", *expected)


@pytest.mark.parametrize(
    ("dialect", "answer"),
    [
        ("openai", {"choices": [{"message": {"content": "x" * 30, "reasoning": "y" * 10}}]}),
        ("openai", {"choices": [{"text": "x" * 20}, {"text": "x" * 20}]}),
        ("openai", {"choices": [{"message": {"content": [{"type": "text", "text": "x" * 40}]}}]}),
        ("openai", {"choices": [{"message": {"tool_calls": [{"function": {"arguments": "x" * 40}}]}}]}),
        ("openai", {"output": [{"content": [{"text": "x" * 30}]}, {"summary": [{"text": "x" * 10}]}]}),
        ("openai", {"output": [{"arguments": "x" * 40}], "usage": {"input_tokens": 100}}),
        ("anthropic", {"content": [{"thinking": "x" * 10}, {"text": "x" * 20}, {"input": {"a": "1234"}}]}),
        ("gemini", {"candidates": [{"content": {"parts": [{"text": "x" * 40}]}}]}),
        ("dashscope", {"output": {"text": "x" * 40}}),
        ("dashscope", {"output": {"choices": [{"message": {"content": "\u00e4" * 20}}]}, "usage": {}}),
    ],
)
def test_estimated_of_a_whole_answer(dialect: str, answer: dict[str, Any]) -> None:
    """A JSON answer whose vendor tells no output has taken what its text is."""
    figures = figures_of(dialect, orjson.dumps(answer), is_stream=False)

    assert figures == Figures("estimated", "m", 100, round(40 * SEED))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[1]",
        b"null",
        b'{"choices":[{"message":{"content":"',
        b'{"choices":5,"output":"x","content":[5]}',
        b'{"choices":[null,{"message":5,"text":[]},{"message":{"content":[5,{"text":5}],"tool_calls":[5]}}]}',
        b'{"content":[{"input":' + b"[" * 900 + b"]" * 900 + b"}]}",
        b'{"data":[{"embedding":[0.5]}]}',
    ],
    ids=range(8),
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_text_in_a_whole_answer(dialect: str, data: bytes) -> None:
    """What is no answer with a text counts as none."""
    assert figures_of(dialect, data, is_stream=False).output == 0


def test_reported_in_an_event_of_any_length() -> None:
    """The last event of a long response has all of it, and its usage at the end."""
    completed = {
        "type": "response.completed",
        "response": {"output": "y" * 300_000, "usage": {"input_tokens": 5, "output_tokens": 6}, "user": None},
    }
    data = sse({"type": "response.created"}, completed)
    for size in (1000, 16_384, 262_144, len(data)):
        read = meter()
        for start in range(0, len(data), size):
            read.feed(data[start : start + size])
        assert Estimates().figures(read, "up", is_whole=True) == Figures("reported", "m", 5, 6)


def test_numbers_that_are_no_counts() -> None:
    """A vendor's nonsense in place of a number of tokens is passed over, however large."""
    for wrong in ("-1", "1.5", "true", '"7"', "1" + "0" * 30, "null", "[]"):
        body = b'{"usage": {"prompt_tokens": 3, "completion_tokens": %b}}' % wrong.encode()
        figures = figures_of("openai", body, is_stream=False)
        assert (figures.input, figures.output, figures.source) == (3, 0, "estimated")


def test_estimated_by_text() -> None:
    """What a stream that did not end has generated is estimated by the bytes of its text, not by those of its JSON."""
    data = sse(*[text("word " * 4, id="chatcmpl-" + "x" * 100) for _ in range(100)])
    figures = figures_of("openai", data, is_whole=False)
    assert figures == Figures("estimated", "m", round(400 * SEED), round(100 * 20 * SEED))


@pytest.mark.parametrize("is_whole", [False, True])
def test_learned_from_streams_that_ended(is_whole: bool) -> None:
    """What streams with usage took teaches how much those without took: for their upstream and model only."""
    estimates = Estimates()
    taught = sse(*[text("\u4f60\u597d" * 5) for _ in range(64)])
    for _ in range(40):
        read = meter()
        read.feed(taught + sse({"choices": [], "usage": {"prompt_tokens": 200, "completion_tokens": 960}}))
        assert estimates.figures(read, "up", is_whole=True).source == "reported"
    read = meter()
    read.feed(sse(*[text("\u4f60\u597d" * 5) for _ in range(16)]))
    learned = estimates.figures(read, "up", is_whole=is_whole)
    assert learned.source == "estimated"
    assert abs(learned.output - 240) <= 5
    assert abs(learned.input - 200) <= 2
    other = meter(model="other")
    other.feed(sse(text("\u4f60\u597d" * 5)))
    assert estimates.figures(other, "up", is_whole=False).output == round(30 * SEED)


def test_asked_twice() -> None:
    """Whoever asks later gets the figures that were told first, and nothing is learned twice."""
    estimates = Estimates()
    read = meter()
    read.feed(sse(text("word " * 20), {"choices": [], "usage": OPENAI_USAGE}))
    told = estimates.figures(read, "up", is_whole=True)
    taught = estimates.figures(meter(), "up", is_whole=False).input
    read.feed(sse({"choices": [], "usage": {"prompt_tokens": 99, "completion_tokens": 99}}))
    assert estimates.figures(read, "up", is_whole=False) == told == Figures("reported", "m", 10, 20, 4, 0, 7)
    assert estimates.figures(meter(), "up", is_whole=False).input == taught


def test_running_totals_of_a_stream_that_did_not_end() -> None:
    """They count as told so far, and are an estimate of what was taken; a placeholder is no total."""
    dialect, events, _ = STREAMS["gemini"]
    assert figures_of(dialect, sse(*events[:2]), is_whole=False) == Figures("estimated", "m", 8, 8, 2, 0, 3)
    dialect, events, _ = STREAMS["anthropic"]
    assert figures_of(dialect, sse(*events[:2]), is_whole=False) == Figures("estimated", "m", 123, 0, 100, 20, 0)


@pytest.mark.parametrize("status", [301, 302, 304, 307, 400, 404, 500])
def test_redirects_and_errors_ran_nothing(status: int) -> None:
    """Where a vendor sends the client elsewhere, or away, no model has run."""
    read = meter(is_stream=None, status=status)

    assert Estimates().figures(read, "up", is_whole=True) == Figures("none", "m")


def test_none_where_no_model_was_run() -> None:
    """A vendor's own error without usage, or what has no model, took nothing; an error with usage did."""
    estimates = Estimates()
    assert estimates.figures(None, "up", is_whole=False) == Figures("none")
    refused = meter(is_stream=False, status=429)
    refused.feed(b'{"error": {"message": "slow down"}}')
    assert estimates.figures(refused, "up", is_whole=False) == Figures("none", "m")
    listed = meter(is_stream=False, model=None)
    listed.feed(b'{"data": []}')
    assert estimates.figures(listed, "up", is_whole=True) == Figures("none")
    charged = meter(is_stream=False, status=500)
    charged.feed(orjson.dumps({"usage": {"prompt_tokens": 1, "completion_tokens": 0}}))
    assert estimates.figures(charged, "up", is_whole=False).input == 1


@given(
    data=st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from(
                [
                    b'data: {"usage":',
                    b'{"usage":{}}',
                    b'"usage":[1]',
                    b"\n\n",
                    b'data: {"usage":{"prompt_tokens":true}}',
                    b"\r\n\r\n",
                    b'data: {"choices":[{"delta":[]}]}',
                    b'data: {"usage":{"prompt_tokens":-1,"completion_tokens":1e9}}',
                ]
            ),
        ),
        max_size=12,
    ),
    is_stream=st.sampled_from([True, False, None]),
    dialect=st.sampled_from(sorted(DIALECTS)),
)
def test_nonsense_is_nothing(data: list[bytes], is_stream: bool | None, dialect: str) -> None:
    """Whatever comes, reading it raises nothing, keeps little, and makes no negative figure."""
    read = meter(dialect, is_stream=is_stream)
    for piece in data:
        read.feed(piece)
        read.passed.append(piece)
        assert len(read._held) <= 65_536
    figures = Estimates().figures(read, "up", is_whole=False)
    assert min(figures.input, figures.output, figures.cached, figures.reasoning) >= 0


def test_what_is_learned_is_bounded() -> None:
    """Callers choose the models' names."""
    estimates = Estimates()
    for number in range(MAX_LEARNED + 10):
        read = meter(model=f"m-{number}")
        read.feed(sse({"usage": {"prompt_tokens": 1, "completion_tokens": 1}}))
        estimates.figures(read, "up", is_whole=True)
    assert len(estimates._learned) == MAX_LEARNED


@pytest.mark.parametrize("number", [-1, 10**9 + 1, 2**63, 2**64 - 1, 1.5, "9", True, [9], {"tokens": 9}])
def test_number_that_is_none(number: object) -> None:
    """What cannot be a number of tokens is none: the figure is estimated, and locks nobody out."""
    read = meter(model="m")
    read.feed(sse({"usage": {"prompt_tokens": number, "completion_tokens": number}}))
    figures = Estimates().figures(read, "up", is_whole=True)
    assert figures.source == "estimated"
    assert 0 <= figures.input + figures.output < 1000


@pytest.mark.parametrize("model", ["\\ud800", "x" * 257, ""])
def test_answer_of_a_model_without_a_name(model: str) -> None:
    """A name that no log could hold is none: the exchange has its line all the same."""
    read = Meter(DIALECTS["dashscope"], model=None, body_bytes=400)
    read.begin(200, is_stream=False)
    read.feed(b'{"usage": {"models": [{"model_id": "%b", "input_tokens": 1, "output_tokens": 2}]}}' % model.encode())
    assert Estimates().figures(read, "up", is_whole=True) == Figures("reported", None, 1, 2)
