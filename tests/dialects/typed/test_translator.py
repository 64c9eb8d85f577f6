"""Each dialect's stream as typed events: what the mock really sends, the vendors' variants, every split, every end."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.dialects import DIALECTS
from proxy.dialects.typed.dashscope import asks_for_increments
from proxy.dialects.typed.translator import Translator
from proxy.exchange.settle import Reckoning
from proxy.model import TYPED_NAMES
from proxy.usage import Estimates, Meter, Prices
from tests.typed_streams import INCREMENTAL, STREAMS, data, end, failed, mocked, read

CUT = ("upstream_unreachable", "cut")


def translator(dialect: str, body: dict[str, Any] | None = None, **options: Any) -> Translator:
    return metered(dialect, body, **options)[0]


def metered(dialect: str, body: dict[str, Any] | None = None, **options: Any) -> tuple[Translator, Meter]:
    """A translator whose `End` says what a meter has read of the same bytes."""
    reader = DIALECTS[dialect].reader(orjson.dumps(body or {}))
    assert reader is not None
    meter = Meter(DIALECTS[dialect], model=None, body_bytes=0)
    meter.is_sent = True
    meter.begin(200, is_stream=True)
    told = Reckoning(meter, "up", Prices({}, {}), Estimates()).told_at_end
    return Translator(reader, TYPED_NAMES, told, **options), meter


def typed(dialect: str, *reads: bytes, body: dict[str, Any] | None = None, **options: Any) -> list[dict[str, Any]]:
    """All typed events of a stream that then ends."""
    translated, meter = metered(dialect, body, **options)
    given = []
    for piece in reads:
        meter.feed(piece)
        given.append(translated.feed(piece))
    events = read(b"".join(given) + translated.finish(*CUT))
    assert translated.events == len(events)
    assert translated.last == events[-1]["t"]
    return events


def said(dialect: str, stream: bytes, kind: str = "Text", **options: Any) -> str:
    return "".join(event["r"] for event in typed(dialect, stream, **options) if event["t"] == kind)


NAMES = list(STREAMS)


@pytest.mark.parametrize("name", NAMES)
def test_typed_mock_stream(name: str) -> None:
    """A whole stream: thoughts, text, picture and usage, each once, in order, and one end."""
    dialect, path, body, expected, _ = STREAMS[name]
    assert typed(dialect, *mocked(path, body)[0], body=body) == expected


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("name", NAMES)
@given(cuts=st.lists(st.integers(0, 12_000), max_size=20))
@settings(max_examples=15)
def test_typed_any_split(name: str, newline: bytes, cuts: list[int]) -> None:
    """The same bytes give the same typed events, wherever they are split and however their lines end."""
    dialect, path, body, expected, _ = STREAMS[name]
    stream = b"\xef\xbb\xbf" + b"".join(mocked(path, body)[0]).replace(b"\n", newline)
    ends = sorted(min(at, len(stream)) for at in cuts)
    reads = [stream[start:end] for start, end in zip([0, *ends], [*ends, len(stream)], strict=True)]

    assert typed(dialect, *reads, body=body) == expected


@pytest.mark.parametrize("name", NAMES)
def test_typed_single_bytes(name: str) -> None:
    """Byte by byte, too."""
    dialect, path, body, expected, _ = STREAMS[name]
    stream = b"".join(mocked(path, body)[0])
    assert typed(dialect, *(stream[at : at + 1] for at in range(len(stream))), body=body) == expected


@pytest.mark.parametrize("name", NAMES)
def test_typed_each_event_is_given_at_once(name: str) -> None:
    """A typed event is given by the very read that has what it says, but for the end, which may need the stream's."""
    dialect, path, body, expected, _ = STREAMS[name]
    translated = translator(dialect, body)
    texts = [event["r"] for event in expected if event["t"] == "Text"]
    seen: list[str] = []
    for piece in mocked(path, body)[0]:
        given = [event["r"] for event in read(translated.feed(piece)) if event["t"] == "Text"]
        assert len(given) <= 1
        seen += given
    assert seen == texts


@pytest.mark.parametrize("name", NAMES)
def test_typed_error_in_the_stream(name: str) -> None:
    """The vendor's error is the last event, with its code; what follows it is not looked at."""
    dialect, path, body, expected, code = STREAMS[name]
    pieces, error = mocked(path, body)
    events = typed(dialect, *pieces[:2], error, *pieces[2:], body=body)

    assert events[-1] == failed(code)
    assert events[:-1] == expected[: len(events) - 1]
    assert not [event for event in events[:-1] if event["t"] in {"End", "Error"}]


@pytest.mark.parametrize("name", NAMES)
def test_typed_cut_off_stream(name: str) -> None:
    """A stream that ends before the vendor said so never looks whole, wherever it was cut."""
    dialect, path, body, expected, _ = STREAMS[name]
    pieces = mocked(path, body)[0]
    for count in range(len(pieces)):
        events = typed(dialect, *pieces[:count], body=body)
        texts = [event for event in events if event["t"] != "End"]
        if events[-1]["t"] == "End":
            # Only what the vendor had said last is missing: usage, or a mark.
            assert [event for event in expected if event["t"] != "End"] == texts
        else:
            assert events[-1] == failed("upstream_unreachable", "cut")
            assert texts[:-1] == expected[: len(texts) - 1]


@pytest.mark.parametrize("name", NAMES)
def test_typed_cancelled(name: str) -> None:
    """A stream that was stopped says so, once, and then nothing."""
    dialect, path, body, _, _ = STREAMS[name]
    pieces = mocked(path, body)[0]
    translated = translator(dialect, body)
    translated.feed(pieces[0])

    assert read(translated.cancel()) == [{"t": "Cancelled", "r": ""}]
    assert translated.feed(b"".join(pieces)) == translated.finish(*CUT) == translated.cancel() == b""


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        ({"choices": [{"delta": {"reasoning": "hm"}}]}, {"t": "Think", "r": "hm"}),
        ({"choices": [{"delta": {"reasoning": "hm", "reasoning_content": "hm"}}]}, {"t": "Think", "r": "hm"}),
        ({"choices": [{"delta": {"refusal": "no"}}]}, {"t": "Text", "r": "no"}),
        ({"choices": [{"text": "old"}]}, {"t": "Text", "r": "old"}),
        ({"type": "response.reasoning_text.delta", "delta": "hm"}, {"t": "Think", "r": "hm"}),
        ({"type": "response.refusal.delta", "delta": "no"}, {"t": "Text", "r": "no"}),
        (
            {
                "type": "response.image_generation_call.partial_image",
                "partial_image_b64": "AA",
                "output_format": "webp",
            },
            {"t": "Image", "r": "data:image/webp;base64,AA"},
        ),
        (
            {"type": "response.output_item.done", "item": {"type": "image_generation_call", "result": "AA"}},
            {"t": "Image", "r": "data:image/png;base64,AA"},
        ),
        (
            {"type": "response.failed", "response": {"error": {"code": "server_error", "message": "m"}}},
            failed("server_error", "m"),
        ),
        ({"type": "error", "error": {"type": "overloaded", "message": "m"}}, failed("overloaded", "m")),
        ({"error": {"message": "m", "type": "t", "code": None}}, failed("t", "m")),
        ({"error": {"message": "m", "code": 502}}, failed("502", "m")),
        ({"error": "m"}, failed("upstream_error", "m")),
        ({"error": [1]}, failed("upstream_error", "The upstream reported an error.")),
        ({"object": "error", "message": "m", "code": 400}, failed("400", "m")),
    ],
)
def test_typed_openai_variants(stream: dict[str, Any], expected: dict[str, Any]) -> None:
    """What servers that speak OpenAI's dialect say in words of their own."""
    assert typed("openai", data(stream))[0] == expected


def test_typed_openai_ends() -> None:
    """A reason to finish or `[DONE]` makes it whole; the usage may come between them, and on every chunk."""
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    finish = {"choices": [{"index": 0, "finish_reason": "length", "delta": {}}]}

    assert typed("openai", data(finish)) == [end()]
    assert typed("openai", b"data: [DONE]\n\n") == [end()]
    assert typed("openai", data(finish, {"choices": [], "usage": usage})) == [end(input=1, output=2, total=3)]
    assert typed("openai", data({"choices": [], "usage": usage}, {"usage": None}), b"data:[DONE]\r\n\r\n") == [
        end(input=1, output=2, total=3)
    ]
    incomplete = {"type": "response.incomplete", "response": {"usage": {"input_tokens": 4}}}
    assert typed("openai", data(incomplete)) == [end(input=4, total=4)]


def test_typed_done_is_given_before_the_streams_end() -> None:
    """The end does not wait for a vendor that keeps the connection open, and comes once."""
    translated = translator("openai")
    assert read(translated.feed(b"data: [DONE]\n\ndata: {}\n\n")) == [end()]
    assert translated.feed(data({"error": "late"})) == translated.finish(*CUT) == b""


def test_typed_first_answer_only() -> None:
    """Of several answers that a request asked for, the first is told: mixed they would be nonsense."""
    chunks = [{"choices": [{"index": index, "delta": {"content": str(index)}}]} for index in (0, 1, 0, 1)]
    candidates = [{"index": 1, "content": {"parts": [{"text": "b"}]}}, {"content": {"parts": [{"text": "a"}]}}]

    assert said("openai", data(*chunks)) == "00"
    assert said("gemini", data({"candidates": candidates})) == "a"


def test_typed_anthropic_variants() -> None:
    """Blocks may begin with text, names may stand for types, and cached input is input."""
    events = (
        b'event: message_start\ndata: {"message":{"usage":{"input_tokens":1,"cache_read_input_tokens":10,'
        b'"cache_creation_input_tokens":100,"output_tokens":1}}}\n\n'
        + data(
            {"type": "content_block_start", "content_block": {"type": "text", "text": "a"}},
            {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "{}"}},
            {"type": "content_block_delta", "delta": {"type": "citations_delta"}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}},
        )
        + b"data: [DONE]\n\n"
    )
    assert typed("anthropic", events) == [{"t": "Text", "r": "a"}, end(input=111, output=5, total=116)]


def test_typed_gemini_variants() -> None:
    """Thoughts are counted as output; a blocked prompt is an error, since there is no answer to it."""
    usage = {"promptTokenCount": 1, "toolUsePromptTokenCount": 2, "candidatesTokenCount": 3, "thoughtsTokenCount": 4}
    answer = {
        "candidates": [
            {"content": {"parts": [{"functionCall": {}}, {"thoughtSignature": "AA"}]}, "finishReason": "STOP"}
        ]
    }

    assert typed("gemini", data({**answer, "usageMetadata": usage})) == [end(input=3, output=7, total=10)]
    assert typed("gemini", data({"promptFeedback": {"blockReason": "SAFETY"}}))[0]["code"] == "SAFETY"
    assert typed("gemini", data({"error": {"code": 503, "message": "m"}})) == [failed("503", "m")]


def outputs(*texts: str, finish: bool = True) -> bytes:
    """A flat DashScope stream whose events have these texts."""
    reasons = ["null"] * (len(texts) - 1) + ["stop" if finish else "null"]
    events = ({"output": {"text": text, "finish_reason": reason}} for text, reason in zip(texts, reasons, strict=True))
    return data(*events)


@pytest.mark.parametrize(
    ("texts", "asked", "expected"),
    [
        (("a", "ab", "abc", "abc"), None, "abc"),
        (("a", "ab", "abc", "abc"), False, "abc"),
        (("ha", "ha", "haha", ""), True, "hahahaha"),
        (("", "", "a", "", "ab"), None, "ab"),
        # Incremental without having been asked: the models that can do nothing else.
        (("The", " answer", " The", ""), None, "The answer The"),
        (("a", "an", "x", "xy"), None, "anxxy"),
        # A new text after a tool's turn.
        (("Searching", "The", "The end"), False, "SearchingThe end"),
        (("a", "ab", "abc", "x", "xy"), None, "abcxy"),
        # Cut inside a character, which the next event has whole.
        (("a\ufffd", "a🙂", "a🙂b"), False, "a🙂b"),
        (("a🙂\ufffd\ufffd", "a🙂你", "a🙂你"), None, "a🙂你"),
        (("a", "a\ufffd"), None, "a\ufffd"),
        (("\ufffd", "你", "你好"), None, "你好"),
    ],
)
def test_typed_dashscope_differences(texts: tuple[str, ...], asked: bool | None, expected: str) -> None:
    """Repeated text becomes differences, by what the request asked for and else by what comes; nothing is left out."""
    body = {"parameters": {} if asked is None else {"incremental_output": asked}}
    assert said("dashscope", outputs(*texts), body=body) == expected


@given(st.text(max_size=60), st.lists(st.integers(0, 60), max_size=10), st.booleans())
def test_typed_dashscope_any_text(text: str, lengths: list[int], is_incremental: bool) -> None:
    """Whatever is said, in whatever steps, repeated or not: what the request asked for, together, is the text."""
    ends = [*sorted(min(length, len(text)) for length in lengths), len(text)]
    starts = [0, *ends[:-1]] if is_incremental else [0] * len(ends)
    texts = [text[start:stop] for start, stop in zip(starts, ends, strict=True)]
    body = {"parameters": {"incremental_output": is_incremental}}

    assert said("dashscope", outputs(*texts), body=body) == text


def test_typed_dashscope_pair_cut_in_two() -> None:
    """Half of a surrogate pair, repeated whole in the next event, is one character."""
    first, second = (b'data:{"output":{"text":"%b"}}\n\n' % text for text in (b"a\\ud83d", b"a\\ud83d\\ude42"))
    assert said("dashscope", first + second) == "a🙂"


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        (b'{"parameters":{"incremental_output":true}}', True),
        (b'{"parameters":{"incremental_output":false}}', False),
        (b'{"parameters":{"incremental_output":"true"}}', None),
        (b'{"input":{"incremental_output":true}}', None),
        (b'{"parameters":[],"incremental_output":true}', None),
        (b'"incremental_output"', None),
        (b'not "incremental_output"', None),
        (b"{}", None),
        (b"", None),
        (b'{"parameters":{"incremental_output":true},"input":"%b"}' % (b"x" * 200_000), True),
        (b'{"input":"%b","parameters":{"incremental_output" : false}}' % (b"x" * 200_000), False),
        (b'{"input":"%b","parameters":{"incremental_output":1}}' % (b"x" * 200_000), None),
        (b'{"input":"\\"incremental_output\\":true%b"}' % (b"x" * 200_000), None),
        (b'{"input":"%b"}' % (b"x" * 200_000), None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_asks_for_increments(body: bytes, asked: bool | None) -> None:
    """What the request says for certain, and nothing where it cannot be read."""
    assert asks_for_increments(body) is asked


def test_typed_dashscope_vendors_example() -> None:
    """The vendor's documented stream: no space after colons, comments, empty contents, usage on every event."""
    stream = (
        b"id:1\nevent:result\n:HTTP_STATUS/200\n"
        b'data:{"output":{"choices":[{"message":{"content":"","reasoning_content":"The","role":"assistant"},'
        b'"finish_reason":"null"}]},"usage":{"total_tokens":290,"output_tokens":3,"input_tokens":287},'
        b'"request_id":"a195"}\n\n:keepalive\n\n'
        b"id:44\nevent:result\n:HTTP_STATUS/200\n"
        b'data:{"output":{"choices":[{"message":{"content":"123 to","reasoning_content":"","role":"assistant"},'
        b'"finish_reason":"stop"}]},"usage":{"total_tokens":800,"output_tokens":66,"input_tokens":734}}\n\n'
    )
    assert typed("dashscope", stream, body={"parameters": INCREMENTAL}) == [
        {"t": "Think", "r": "The"},
        {"t": "Text", "r": "123 to"},
        end(input=734, output=66, total=800),
    ]


@pytest.mark.parametrize(
    "event",
    [
        b'event:error\ndata:{"code":"Arrearage","message":"m"}\n\n',
        b'event: error\ndata: {"code":"Arrearage","message":"m"}\n\n',
        b'data:{"code":"Arrearage","message":"m","request_id":"1"}\n\n',
    ],
)
def test_typed_dashscope_errors(event: bytes) -> None:
    """An error by its name or by its members."""
    assert typed("dashscope", event) == [failed("Arrearage", "m")]


def chat(content: bytes) -> bytes:
    return b'data: {"choices":[{"delta":{"content":"' + content + b'"}}]}\n\n'


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ((b"a\\ud83d", b"\\ude42b"), "a🙂b"),
        ((b"\\uD83D\\uDE42", b""), "🙂"),
        ((b"\\ud83d", b"x"), "\ufffdx"),
        ((b"\\ude42",), "\ufffd"),
        ((b"x\\ud83d",), "x\ufffd"),
        ((b"\xf0\x9f\x99\x82 \xff \xed\xa0\xbd",), "🙂 \ufffd \ufffd\ufffd\ufffd"),
        ((b"\\u4f60\\/\\u0041",), "你/A"),
    ],
)
def test_typed_text_is_utf_8(contents: tuple[bytes, ...], expected: str) -> None:
    """Whatever escapes or broken bytes the vendor sends, what is written is UTF-8, with the characters whole."""
    assert said("openai", b"".join(map(chat, contents))) == expected


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini", "dashscope"])
@pytest.mark.parametrize("event", [b"not json", b"[]", b"1", b'"text"', b'{"a":', b"[" * 100_000, b'{"a":"\\ud83d'])
def test_typed_nonsense(dialect: str, event: bytes) -> None:
    """What is no JSON object cannot be passed over silently: text might be missing."""
    events = typed(dialect, b"data: " + event + b"\n\n" + b"data: {}\n\n")
    assert events == [failed("upstream_protocol_error", "The upstream sent an event that cannot be read.")]


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini", "dashscope"])
def test_typed_too_large(dialect: str) -> None:
    """An event beyond the bound is an error, before all of it has come."""
    translated = translator(dialect, max_event_bytes=1000)
    given = b"".join(translated.feed(b"data: " + b"x" * 94) for _ in range(11))
    assert read(given) == [failed("upstream_protocol_error", "The upstream sent an event that is too large.")]


UNREADABLE = failed("upstream_protocol_error", "The upstream sent an event that cannot be read.")
FINISH = {
    "openai": data({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}) + b"data: [DONE]\n\n",
    "responses": data({"type": "response.completed", "response": {"output": []}}),
    "anthropic": data(
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {}}, {"type": "message_stop"}
    ),
    "gemini": data({"candidates": [{"finishReason": "STOP"}]}),
    "dashscope": data({"output": {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}}),
}
DIALECT_OF = {name: "openai" if name == "responses" else name for name in FINISH}


def delta(**members: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": members}]}


THINKING = {"type": "thinking", "thinking": [{"type": "text", "text": "Let me "}, {"type": "text", "text": "see."}]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param([THINKING], [("Think", "Let me "), ("Think", "see.")], id="thinking"),
        pytest.param([{"type": "text", "text": "42"}], [("Text", "42")], id="text"),
        pytest.param(
            [THINKING, {"type": "text", "text": "42"}, {"type": "text", "text": "!"}],
            [("Think", "Let me "), ("Think", "see."), ("Text", "42"), ("Text", "!")],
            id="thinking then text",
        ),
        pytest.param([{"type": "thinking", "thinking": "hm"}], [("Think", "hm")], id="thinking that is a string"),
        pytest.param(
            [{"type": "thinking", "thinking": [{"type": "tool_reference", "title": "t"}], "closed": True}],
            [],
            id="thinking with a citation",
        ),
        pytest.param(
            [{"type": "text", "text": "so"}, {"type": "reference", "reference_ids": [1]}],
            [("Text", "so")],
            id="text with a citation",
        ),
        pytest.param([{"type": "image_url", "image_url": "data:x"}], [("Image", "data:x")], id="picture"),
        pytest.param(
            [{"type": "image_url", "image_url": {"url": "data:x"}}], [("Image", "data:x")], id="picture's url"
        ),
        pytest.param([], [], id="empty list"),
        pytest.param("plain", [("Text", "plain")], id="string"),
        pytest.param(None, [], id="null"),
    ],
)
def test_typed_content_that_is_a_list(content: Any, expected: list[tuple[str, str]]) -> None:
    """Mistral's reasoning models send thoughts and text as a list: each becomes its event, in order."""
    events = typed("openai", data(delta(content=content)) + FINISH["openai"])
    assert [(event["t"], event["r"]) for event in events] == [*expected, ("End", "")]


@pytest.mark.parametrize(
    ("stream", "event"),
    [
        pytest.param("openai", delta(content={"text": "a"}), id="openai content is an object"),
        pytest.param("openai", delta(content=5), id="openai content is a number"),
        pytest.param("openai", delta(content=[{"type": "mystery", "value": "a"}]), id="openai unknown part"),
        pytest.param("openai", delta(content=["a"]), id="openai part is a string"),
        pytest.param("openai", delta(content=[{"type": "text", "text": 5}]), id="openai part's text is a number"),
        pytest.param("openai", delta(content=[{"type": "thinking", "thinking": 5}]), id="openai thinking is a number"),
        pytest.param("openai", delta(reasoning_content={"text": "a"}), id="openai reasoning is an object"),
        pytest.param("openai", delta(images="data:x"), id="openai images is a string"),
        pytest.param("openai", delta(images=[{"url": "data:x"}]), id="openai picture without a url"),
        pytest.param("openai", delta(text="a"), id="openai delta in another's words"),
        pytest.param("openai", {"choices": [{"delta": "a"}]}, id="openai delta is a string"),
        pytest.param("openai", {"choices": [{"text": {"a": 1}}]}, id="openai text is an object"),
        pytest.param("openai", {"choices": {"delta": {"content": "a"}}}, id="openai choices is an object"),
        pytest.param("openai", {"choices": ["a"]}, id="openai choice is a string"),
        pytest.param("openai", {"choices": [{"index": "0", "delta": {"content": "a"}}]}, id="openai index is a string"),
        pytest.param("openai", {"content": "a"}, id="openai bare content"),
        pytest.param("openai", {"response": "a"}, id="openai bare response"),
        pytest.param("openai", {"message": {"content": "a"}}, id="openai bare message"),
        pytest.param("openai", {"candidates": [{}]}, id="gemini's event on openai"),
        pytest.param("openai", {"type": "content_block_delta", "delta": {"text": "a"}}, id="anthropic's on openai"),
        pytest.param("responses", {"type": "response.output_text.delta", "delta": {"a": 1}}, id="responses text"),
        pytest.param("responses", {"type": "response.reasoning_text.delta", "delta": 1}, id="responses thought"),
        pytest.param(
            "responses",
            {"type": "response.image_generation_call.partial_image", "partial_image_b64": 1},
            id="responses picture",
        ),
        pytest.param(
            "responses",
            {
                "type": "response.completed",
                "response": {"output": [{"type": "message", "content": [{"type": "output_text", "text": 1}]}]},
            },
            id="responses whole text",
        ),
        pytest.param(
            "anthropic",
            {"type": "content_block_delta", "delta": {"type": "text_delta", "text": 1}},
            id="anthropic text",
        ),
        pytest.param(
            "anthropic",
            {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": []}},
            id="anthropic thought",
        ),
        pytest.param("anthropic", {"type": "content_block_delta", "delta": "a"}, id="anthropic delta is a string"),
        pytest.param("anthropic", {"type": "content_block_start", "content_block": "a"}, id="anthropic block"),
        pytest.param(
            "anthropic",
            {"type": "content_block_delta", "delta": {"type": "new_delta", "text": "a"}},
            id="anthropic unknown delta with text",
        ),
        pytest.param("anthropic", delta(content="a"), id="openai's event on anthropic"),
        pytest.param("gemini", {"candidates": "a"}, id="gemini candidates is a string"),
        pytest.param("gemini", {"candidates": [{"content": "a"}]}, id="gemini content is a string"),
        pytest.param("gemini", {"candidates": [{"content": {"parts": "a"}}]}, id="gemini parts is a string"),
        pytest.param("gemini", {"candidates": [{"content": {"parts": ["a"]}}]}, id="gemini part is a string"),
        pytest.param("gemini", {"candidates": [{"content": {"parts": [{"text": 1}]}}]}, id="gemini text is a number"),
        pytest.param(
            "gemini", {"candidates": [{"content": {"parts": [{"inlineData": {"data": 1}}]}}]}, id="gemini picture"
        ),
        pytest.param("gemini", delta(content="a"), id="openai's event on gemini"),
        pytest.param("dashscope", {"output": "a"}, id="dashscope output is a string"),
        pytest.param("dashscope", {"output": {"text": ["a", 1]}}, id="dashscope text is a list of scalars"),
        pytest.param("dashscope", {"output": {"choices": [{"message": "a"}]}}, id="dashscope message is a string"),
        pytest.param(
            "dashscope",
            {"output": {"choices": [{"message": {"content": {"a": 1}}}]}},
            id="dashscope content is an object",
        ),
        pytest.param(
            "dashscope", {"output": {"choices": [{"message": {"content": [{"mystery": "a"}]}}]}}, id="dashscope part"
        ),
        pytest.param(
            "dashscope", {"output": {"choices": [{"message": {"reasoning_content": 1}}]}}, id="dashscope thought"
        ),
        pytest.param("dashscope", delta(content="a"), id="openai's event on dashscope"),
    ],
)
def test_typed_unreadable_answer(stream: str, event: dict[str, Any]) -> None:
    """A piece of the answer that cannot be read ends the stream in `Error`, though the vendor then says it is whole."""
    assert typed(DIALECT_OF[stream], data(event) + FINISH[stream]) == [UNREADABLE]


@pytest.mark.parametrize("stream", FINISH)
@pytest.mark.parametrize(
    "event",
    [
        pytest.param({"type": "ping"}, id="ping"),
        pytest.param({"type": "response.foo.delta", "delta": "a"}, id="unknown response event"),
        pytest.param({"type": "new_lifecycle_event", "sequence_number": 3}, id="unknown lifecycle event"),
        pytest.param({"usage": None}, id="usage alone"),
        pytest.param({"id": "1", "provider": "p", "timings": {"n": 1}}, id="figures alone"),
        pytest.param({}, id="empty object"),
    ],
)
def test_typed_unknown_event(stream: str, event: dict[str, Any]) -> None:
    """An event that nobody knows, and that carries no answer, kills no stream."""
    if stream in {"gemini", "dashscope"}:
        # Their events have no types; one that carries an answer is somebody else's.
        event = {name: value for name, value in event.items() if name != "delta"}
    assert typed(DIALECT_OF[stream], data(event) + FINISH[stream]) == [end()]


@pytest.mark.parametrize(
    "members",
    [
        pytest.param({"tool_calls": [{"function": {"arguments": "{}"}}]}, id="tool call"),
        pytest.param({"role": "assistant", "content": None}, id="role"),
        pytest.param({"content": "", "annotations": [{"type": "url_citation"}]}, id="citation"),
        pytest.param({"audio": {"data": "AA"}}, id="sound"),
        pytest.param({"reasoning_content": None, "reasoning": None, "images": None}, id="nulls"),
        pytest.param(None, id="null delta"),
    ],
)
def test_typed_delta_without_an_answer(members: dict[str, Any] | None) -> None:
    """What has no typed event is passed over."""
    assert typed("openai", data({"choices": [{"index": 0, "delta": members}]}) + FINISH["openai"]) == [end()]


def test_typed_message_instead_of_a_delta() -> None:
    """A server that sends one whole message is read; one that repeats it in the end says nothing twice."""
    whole = {"choices": [{"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}]}

    assert said("openai", data(whole)) == "Hello"
    assert said("openai", data(delta(content="Hel"), delta(content="lo"), whole)) == "Hello"


def test_typed_response_in_one_piece() -> None:
    """A response without deltas is read where it is told whole, and not twice where there were some."""
    content = [{"type": "output_text", "text": "Hello"}, {"type": "refusal", "refusal": "!"}]
    output = [{"type": "reasoning", "summary": []}, {"type": "message", "content": content}]
    whole = {"type": "response.completed", "response": {"output": output}}

    assert said("openai", data(whole)) == "Hello!"
    assert said("openai", data({"type": "response.output_text.delta", "delta": "Hello!"}, whole)) == "Hello!"


MEMBERS = st.sampled_from(
    [
        *("choices", "delta", "content", "text", "index", "type", "error", "code", "message", "output", "usage"),
        *("images", "image_url", "url", "candidates", "parts", "inlineData", "response", "item", "result", "models"),
        *("content_block", "finish_reason", "promptFeedback"),
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(MEMBERS, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("dialect", ["openai", "anthropic", "gemini", "dashscope"])
@given(values=st.lists(st.dictionaries(MEMBERS, JSON), max_size=3))
def test_typed_never_raises(dialect: str, values: list[dict[str, Any]]) -> None:
    """Whatever JSON stands where other types are expected, there is one last event and no exception."""
    events = typed(dialect, *(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values))
    assert [event["t"] for event in events].count(events[-1]["t"]) == 1
    assert events[-1]["t"] in {"End", "Error"}
