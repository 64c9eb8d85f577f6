"""The text of an event found without parsing it: as much as parsing finds, and nothing where only parsing can tell."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects import DIALECTS

WITHOUT = [name for name, dialect in DIALECTS.items() if dialect.plain_text is None]
TEXTS = st.text(max_size=30) | st.sampled_from(("plain", "\u4f60\u597d", 'a "b"', "}]", '"}}]}', "\\", "\n"))
NAMES = st.sampled_from(("content", "reasoning_content", "reasoning", "role", "refusal", "text", "tool_calls"))
VALUES = (
    TEXTS | st.none() | st.integers(-9, 9) | st.just([{"function": {"arguments": "{}"}}]) | st.just({"content": "x"})
)
DELTAS = st.dictionaries(NAMES, VALUES, max_size=4)
PLAIN = st.fixed_dictionaries({"content": TEXTS})
CHOICES = st.fixed_dictionaries(
    {"delta": PLAIN | DELTAS},
    optional={"index": st.integers(0, 3), "finish_reason": st.none() | TEXTS, "logprobs": st.none() | DELTAS},
)
OPENAI_EVENTS = st.fixed_dictionaries(
    {"choices": st.lists(CHOICES, max_size=3)},
    optional={"model": TEXTS, "usage": st.none(), "obfuscation": TEXTS, "x": st.lists(DELTAS, max_size=2)},
)
BLOCKS = st.dictionaries(st.sampled_from(("type", "text", "thinking", "partial_json", "signature")), VALUES, max_size=3)
ANTHROPIC_EVENTS = st.fixed_dictionaries({"delta": BLOCKS}, optional={"type": TEXTS, "index": st.integers(0, 3)})


def plain_size(dialect: str, event: bytes) -> int | None:
    """How much text is found without parsing; None where nothing is."""
    pattern = DIALECTS[dialect].plain_text
    assert pattern is not None
    found = pattern.search(event)
    return None if found is None else len(found[1])


@pytest.mark.parametrize(
    ("dialect", "event", "size"),
    [
        ("openai", b'{"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}', 2),
        ("openai", b'{"choices":[{"delta":{"content":"\xe4\xbd\xa0"},"logprobs":null}],"usage":null}', 3),
        ("openai", b'{"choices":[{"delta":{"content":null,"reasoning_content":"Hm"}}]}', 2),
        ("openai", b'{"choices":[{"delta":{"content":"Hi","reasoning_content":null}}]}', 2),
        ("anthropic", b'{"type":"x","index":0,"delta":{"type":"text_delta","text":"Hi"}}', 2),
        ("anthropic", b'{"delta":{"type":"thinking_delta","thinking":"Hm."}}', 3),
    ],
)
def test_plain_text_is_found(dialect: str, event: bytes, size: int) -> None:
    """What most events of a stream are is not parsed: one text, without escapes."""
    assert plain_size(dialect, b"data: " + event + b"\n\n") == size
    assert DIALECTS[dialect].text_bytes(orjson.loads(event)) == size


@pytest.mark.parametrize(
    ("dialect", "event"),
    [
        ("openai", b'{"choices":[{"delta":{"content":"\\u4f60"}}]}'),
        ("openai", b'{"choices":[{"delta":{"content":"a","tool_calls":[]}}]}'),
        ("openai", b'{"choices":[{"delta":{"content":"a"}},{"delta":{"content":"b"}}]}'),
        ("openai", b'{"choices":[{"delta":{"content":"a"},"logprobs":{"content":[]}}]}'),
        ("openai", b'{"choices":[{"text":"a"},{"delta":{"content":"b"}}]}'),
        ("openai", b'{"choices":[{"message":{"content":"a"}}]}'),
        ("openai", b'{"type":"response.output_text.delta","delta":"a"}'),
        ("anthropic", b'{"delta":{"type":"text_delta","text":"a\\n"}}'),
        ("anthropic", b'{"content_block":{"type":"text","text":"a"}}'),
    ],
)
def test_other_events_are_parsed(dialect: str, event: bytes) -> None:
    """An escape, a second text, or another shape leaves an event to the parser."""
    assert plain_size(dialect, b"data: " + event + b"\n\n") is None


def test_dialects_without_plain_text() -> None:
    """Vendors that repeat running totals, or of which nothing is known, need no sample of their text."""
    assert WITHOUT == ["dashscope", "gemini", "raw"]


@given(OPENAI_EVENTS)
def test_plain_text_openai(event: dict[str, Any]) -> None:
    """What is found is what parsing finds, whatever else an event has."""
    found = plain_size("openai", orjson.dumps(event))
    assert found is None or found == DIALECTS["openai"].text_bytes(event)


@given(ANTHROPIC_EVENTS)
def test_plain_text_anthropic(event: dict[str, Any]) -> None:
    """What is found is what parsing finds, whatever else an event has."""
    found = plain_size("anthropic", orjson.dumps(event))
    assert found is None or found == DIALECTS["anthropic"].text_bytes(event)


@pytest.mark.parametrize(
    "piece", [b'"delta":{', b'"delta":{"content":"', b'"delta":{"content":"a"}', b'"delta":{"a":null,', b'"choices":[{']
)
def test_plain_text_takes_linear_time(piece: bytes) -> None:
    """An event that a hostile vendor has made to be searched for long is looked at in a moment."""
    event = b"data: " + piece * (2**16 // len(piece)) + b'"a":null,' * 2**14
    begin_s = time.process_time()
    for pattern in (DIALECTS["openai"].plain_text, DIALECTS["anthropic"].plain_text):
        assert pattern is not None
        pattern.search(event)
    assert time.process_time() - begin_s < 1
