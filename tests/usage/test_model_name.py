"""The model that a request names: what the vendor will read, not what only looks like it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import InvalidRequestError
from proxy.protocol.envelope import read_body
from proxy.usage.model_name import may_name_model, model_in, model_read
from tests.steps import counted, finish

CHAT = b"/v1/chat/completions"


MODELS = pytest.mark.parametrize(
    ("target", "body", "expected"),
    [
        (CHAT, b'{"messages": [], "model" : "gpt-4o"}', "gpt-4o"),
        (CHAT, b'{"messages": [{"content": "the \\"model\\": \\"x\\""}], "model": "a\\u002fb"}', "a/b"),
        (CHAT, b'{"tools": [{"model": 1}], "model": "y"}', "y"),
        # A decoy: within another member, in the query, before the one that counts, beside one in other letters.
        (CHAT, b'{"metadata": {"model": "free"}, "model": "dear"}', "dear"),
        (CHAT, b'{"metadata": {"model": "free"}, "mod\\u0065l": "dear"}', "dear"),
        (CHAT, b'{"metadata": {"model": "free"}}', None),
        (CHAT, b'{"model": "free", "model": "dear"}', "dear"),
        (CHAT, b'{"model": "free", "\\u006dodel": "dear"}', "dear"),
        (CHAT + b"?a=/models/free:b", b'{"model": "dear"}', "dear"),
        (CHAT + b"?/deployments/free/", b'{"model": "dear"}', "dear"),
        (CHAT, b'[{"model": "free"}]', None),
        (CHAT, b'{"model": "dear"} {"model": "free"}', None),
        (b"/v1beta/models/gemini-2.0-flash:streamGenerateContent?alt=sse", b"{}", "gemini-2.0-flash"),
        (b"/openai/deployments/my%2Dgpt/chat/completions", b"{}", "my-gpt"),
        (b"/v1/models", b"", None),
        (b"/v1/x", b"\x1f\x8b\x08", None),
        (b"/v1/x", b'{"model": null}', None),
        (b"/v1/x", b'{"model": ""}', None),
        (b"/v1/x", b'{"model": "\\ud800"}', None),
        (b"/v1/x", b'{"model": "' + b"x" * 257 + b'"}', None),
        (b"/v1/x", b'{"input": "' + b"x" * 5_000_000 + b'", "model": "last"}', "last"),
        (b"/v1/x", b'{"input": "' + b"x" * 300_000 + b'", "model": "mid", "y": "' + b"x" * 300_000 + b'"}', "mid"),
    ],
)


@MODELS
def test_model_in(target: bytes, body: bytes, expected: str | None) -> None:
    """A request's model is the one in its path, else its body's own last member `model`."""
    assert finish(model_in(target, body)) == expected


@MODELS
def test_model_read(target: bytes, body: bytes, expected: str | None) -> None:
    """The member that routing has read is the same model, or leaves the question to `model_in`."""
    try:
        members = finish(read_body(body))
    except InvalidRequestError:
        # Routing refuses the request.
        return
    if not may_name_model(target.partition(b"?")[0]):
        assert model_read(members.model) in {expected, None}


def test_model_read_is_known() -> None:
    """In nearly all requests, nothing is left to `model_in`; a path that may name a model is left to it."""
    assert model_read("gpt-4o") == "gpt-4o"
    assert not may_name_model(CHAT)
    assert may_name_model(b"/openai/deployments/dear/chat/completions")
    assert may_name_model(b"/v1beta/models/gemini-2.0-flash:streamGenerateContent")
    assert model_read("x" * 257) is None
    assert model_read(None) is None


def test_model_in_a_body_that_takes_long() -> None:
    """A body that was made to be slow is read in pieces, between which the loop serves others."""
    body = b'{"x": [' + b"[[[[[[[[[[]]]]]]]]]]," * 12_000 + b'0], "model": "m"}'
    found, turns = counted(model_in(CHAT, body))
    assert found == "m"
    assert turns > 5


@given(st.lists(st.sampled_from([b'"model"', b":", b'"x"', b"{", b"}", b",", b"\\", b"[", b"\xff", b"1"]), max_size=14))
def test_model_in_nonsense(body: list[bytes]) -> None:
    """Whatever the body, it raises nothing."""
    found = finish(model_in(CHAT, b"".join(body)))
    assert found is None or found
