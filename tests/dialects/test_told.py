"""What vendors say of an answer as such."""

from __future__ import annotations

from typing import Any

import pytest

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
