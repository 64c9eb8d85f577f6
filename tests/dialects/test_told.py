"""What vendors say of an answer as such."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.told import Told


@pytest.mark.parametrize(
    ("event", "id_", "reasons"),
    [
        (
            {"id": "chatcmpl-1", "choices": [{"finish_reason": "stop"}, {"finish_reason": "length"}]},
            "chatcmpl-1",
            ("stop", "length"),
        ),
        ({"type": "response.completed", "response": {"id": "resp_1"}}, "resp_1", ()),
        ({"type": "message_start", "message": {"id": "msg_1", "stop_reason": None}}, "msg_1", ()),
        ({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, None, ("end_turn",)),
        ({"responseId": "r", "candidates": [{"finishReason": "MAX_TOKENS"}]}, "r", ("MAX_TOKENS",)),
        ({"request_id": "d-1", "output": {"finish_reason": "null", "text": "x"}}, "d-1", ()),
        ({"request_id": "d-1", "output": {"choices": [{"finish_reason": "stop"}]}}, "d-1", ("stop",)),
        ({"id": "not an id", "choices": [{"finish_reason": "a sentence of the answer"}, 3]}, None, ()),
        ({"id": 7, "choices": "x", "output": [], "delta": 1, "candidates": {}}, None, ()),
    ],
)
def test_told(event: dict[str, Any], id_: str | None, reasons: tuple[str, ...]) -> None:
    """Ids and single words are taken, whatever else stands in their places is not."""
    told = Told()
    told.read(event)
    assert (told.id, told.finish_reasons) == (id_, reasons)


def test_told_in_a_read() -> None:
    """The event before that of the usage is found in one read; text of the answer that looks like it is not."""
    told = Told()
    told.look(b'data: {"choices":[{"delta":{"content":"\\"finish_reason\\":\\"secret\\""}}]}\n\n')
    assert list(told.finish_reasons) == []
    told.look(b'data: {"choices":[{"finish_reason":null}]}\n\ndata: {"choices":[{"finish_reason": "tool_calls"}]}\n\n')
    assert list(told.finish_reasons) == ["tool_calls"]


def test_told_in_a_whole_answer() -> None:
    """An answer that is no stream is read once; what is no JSON object tells nothing."""
    told = Told()
    told.read_whole(b'{"id":"x","choices":[{"finish_reason":"stop"}]}')
    told.read_whole(b"[]")
    told.read_whole(b"{")
    assert (told.id, told.finish_reasons) == ("x", ("stop",))


IDS = st.sampled_from(("c-1", "c-2", "c\\b", 'a"b', "no id", "")) | st.none() | st.just(7)
REASONS = st.none() | st.sampled_from(("stop", "length", "null", "no reason", ""))
TEXTS = st.sampled_from(("", "words", "the id", "a reason", '"id":"c-1"', '"finish_reason":"stop"', "responseId"))
DELTAS = st.fixed_dictionaries(
    {"content": TEXTS}, optional={"stop_reason": REASONS, "tool_calls": st.lists(st.fixed_dictionaries({"id": IDS}))}
)
EVENTS = st.fixed_dictionaries(
    {},
    optional={
        "choices": st.lists(st.fixed_dictionaries({"delta": DELTAS}, optional={"finish_reason": REASONS}), max_size=2),
        "id": IDS,
        "candidates": st.lists(st.fixed_dictionaries({"finishReason": REASONS}), max_size=1),
        "delta": DELTAS,
        "message": st.fixed_dictionaries({"id": IDS}),
        "output": st.fixed_dictionaries({"finish_reason": REASONS}),
        "request_id": IDS,
        "response": st.fixed_dictionaries({"id": IDS}),
        "responseId": IDS,
        "stop_reason": REASONS,
    },
)


@given(st.lists(EVENTS, max_size=4))
def test_known_events_tell_nothing(events: list[dict[str, Any]]) -> None:
    """Whatever is known without parsing changes nothing where it is parsed."""
    told = Told()
    for event in events:
        before = told.id, told.finish_reasons
        is_known = told.is_known(b"data: " + orjson.dumps(event) + b"\n\n")
        told.read(event)
        assert not is_known or (told.id, told.finish_reasons) == before


@pytest.mark.parametrize(
    "event",
    [
        {
            "id": "c-1",
            "object": "chat.completion.chunk",
            "choices": [{"delta": {"content": "x"}, "finish_reason": None}],
        },
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}},
    ],
)
def test_events_of_text_are_known(event: dict[str, Any]) -> None:
    """What most events of a stream are is not parsed after the first."""
    told = Told()
    told.read(event)
    assert told.is_known(b"data: " + orjson.dumps(event) + b"\n\n")


def test_known_id_with_a_backslash() -> None:
    """An id that JSON writes in other characters is not searched for: those characters are another id."""
    told = Told()
    told.read({"id": r"\u0041"})
    assert not told.is_known(rb'data: {"id":"\u0041","choices":[]}')
